"""The node's own tasks: watching its engines and its peers, and publishing what they found."""
