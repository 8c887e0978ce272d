"""How each kind of engine speaks: one constant a kind, and how to tell them apart."""
