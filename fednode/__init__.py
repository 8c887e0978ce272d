"""What is true about the fleet: identity, engines, peers, and the snapshot made of them."""
