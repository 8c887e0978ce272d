"""Sockets and the clock: links, joining, TLS contexts, and reading engines over HTTP."""
