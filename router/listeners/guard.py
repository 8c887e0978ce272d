"""What is checked before a request is looked at: whose page sent it, and whether an address is this machine's own.

A browser on the operator's or a member's machine reaches loopback like any program, and runs strangers' scripts. Two
checks keep those out: the `Host` header must name this machine (a foreign name pointed at 127.0.0.1 does not), and a
request a browser marks as coming from another page is refused. Programs send neither mark.
"""

from collections.abc import Mapping
from ipaddress import ip_address
from typing import Final

OWN_NAMES: Final = frozenset({"localhost"})  # besides every loopback address
SAFE_FETCH_SITES: Final = frozenset({"same-origin", "none"})  # "same-site" is any other port of this machine


def is_loopback(host: str) -> bool:
    """Whether `host` is an address of this machine that no other machine reaches: 127.0.0.0/8, ::1 or localhost."""
    name = host.strip("[]").lower()
    if name in OWN_NAMES:
        return True
    try:
        return ip_address(name).is_loopback
    except ValueError:
        return False


def host_name(authority: str) -> str:
    """Return the host of `host[:port]` or `[address]:port`, lower case; any port is fine, tunnels change it."""
    authority = authority.strip().lower()
    if authority.startswith("["):
        return authority[1:].partition("]")[0]
    return authority.partition(":")[0] if authority.count(":") == 1 else authority


def foreign_host(headers: Mapping[str, str], own_names: frozenset[str] = frozenset()) -> str:
    """Return why the `Host` header is refused, or "". `headers` has lower-case names.

    `own_names` are further names of this machine, lower case.
    """
    host = host_name(headers.get("host", ""))
    if not host:
        return "a Host header is needed"
    if is_loopback(host) or host in own_names:
        return ""
    return "the Host header names another machine"


def cross_site(headers: Mapping[str, str]) -> str:
    """Return why a request is refused as sent by another site's page, or "". `headers` has lower-case names."""
    site = headers.get("sec-fetch-site")
    if site is not None and site.strip().lower() not in SAFE_FETCH_SITES:
        return "requests from other sites' pages are refused; open this address directly"
    origin = headers.get("origin")
    if origin is not None and not _is_own_origin(origin.strip().lower(), headers.get("host", "").strip().lower()):
        return "requests from other sites' pages are refused (Origin)"
    return ""


def _is_own_origin(origin: str, host: str) -> bool:
    scheme, separator, authority = origin.partition("://")
    return bool(separator) and scheme in {"http", "https"} and authority == host
