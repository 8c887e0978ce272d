"""The words of a request: frozen values every floor of `router` may name. Standard library only."""
