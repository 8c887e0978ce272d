"""Who may talk to this node, and how: members' HTTP, peers' mTLS, the operator's loopback."""
