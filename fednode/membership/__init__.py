"""Our opinion of every peer: events and time in, effects out."""
