"""Whatever the relay forwards to: local engines, peers, providers. One adapter each, behind one Protocol."""
