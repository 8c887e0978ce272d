"""Rehearsal: what lets a node be tried, drilled and measured without the machine it is meant for."""
