"""What to do with a request: surfaces, decision, relay, members and books."""
