"""The words of the fleet: frozen values every floor may name. Standard library only."""
