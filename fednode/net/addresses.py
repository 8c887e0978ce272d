"""Where to dial: names are resolved once, the result is checked, and the literal that was checked is dialled.

An address is somebody's word. Without these rules a record could make this node speak to a router's admin page or to
a cloud's metadata service.
"""

import asyncio
import ipaddress
import socket
from typing import Final

from fednode.model.errors import LinkError

RESOLVE_S: Final = 3.0  # a dead name server must not hold up the other addresses
_METADATA: Final = frozenset({"169.254.169.254", "fd00:ec2::254", "100.100.100.200"})


def check_ip(ip: str, *, allow_private: bool) -> str:
    """Return `ip` when it may be dialled. Raises `LinkError` saying why not.

    Never: unspecified, multicast, link-local, metadata services, IPv4 inside IPv6, zone ids. With `allow_private`
    only: loopback and private ranges.
    """
    try:
        address = ipaddress.ip_address(ip)
    except ValueError as error:
        raise LinkError(f"{ip} is not an IP address") from error
    if isinstance(address, ipaddress.IPv6Address) and (address.ipv4_mapped is not None or address.scope_id):
        raise LinkError(f"{ip} is refused: write the IPv4 address itself, and no zone")
    if ip in _METADATA or address.is_unspecified or address.is_multicast or address.is_link_local:
        raise LinkError(f"{ip} is refused: no node can live at such an address")
    if not allow_private and not address.is_global:
        raise LinkError(f"{ip} is a private or loopback address: set allow_private = true in [federation] to dial it")
    return ip


async def resolve(host: str, *, allow_private: bool) -> str:
    """Return the one IP literal to dial for `host`, a literal or a name. Raises `LinkError`."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        pass
    else:
        return check_ip(host, allow_private=allow_private)
    try:
        async with asyncio.timeout(RESOLVE_S):
            found = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, TimeoutError, UnicodeError) as error:
        raise LinkError(f"the name {host} does not resolve") from error
    if not found:
        raise LinkError(f"the name {host} does not resolve")
    return check_ip(str(found[0][4][0]), allow_private=allow_private)


def hostport(host: str, port: int) -> str:
    """Return ``host:port``, with brackets around IPv6."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def split(address: str) -> tuple[str, int]:
    """Return host and port of ``host:port`` or ``[v6]:port``. Raises `LinkError`."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65_535:
        raise LinkError(f'{address} is not "host:port"')
    return host.removeprefix("[").removesuffix("]"), int(port)
