"""The command line `fednode`: a module per group of commands."""
