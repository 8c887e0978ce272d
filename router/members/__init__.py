"""Members' keys: their form, their hashes, and who stands behind one. Pure."""
