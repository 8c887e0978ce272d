"""Which ports are free on this machine."""

import errno
import socket
from contextlib import ExitStack


def trouble(listen: str) -> str:
    """Return why nothing can listen on ``HOST:PORT`` now, or "" when it can."""
    host, _, port = listen.rpartition(":")
    host = host.strip("[]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the daemon does: TIME_WAIT is no obstacle
        try:
            probe.bind((host, int(port)))
            probe.listen(1)
        except socket.gaierror:
            return "is no name that this machine knows"
        except OSError as error:
            return _said(error)
    return ""


def _said(error: OSError) -> str:
    match error.errno:
        case errno.EADDRINUSE:
            return "is in use by another program"
        case errno.EADDRNOTAVAIL:
            return "is no address of this machine"
        case errno.EACCES:
            return "needs root: ports below 1024 are reserved"
        case _:
            return error.strerror or type(error).__name__


def free_ports(host: str, count: int) -> list[int]:
    """Return different ports that are free on `host` at this moment."""
    with ExitStack() as held:
        probes = [held.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM)) for _ in range(count)]
        for probe in probes:
            probe.bind((host, 0))
        return [int(probe.getsockname()[1]) for probe in probes]
