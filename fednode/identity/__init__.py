"""Who somebody is: keys, TLS certificates bound to them, signed envelopes, and how far an operator trusts whom."""
