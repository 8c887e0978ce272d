"""TLS contexts with pinned certificates: no authority, no names that resolve, no dates.

The roots of a context are the certificates of the peers themselves; whoever accepted a handshake still compares the
certificate presented with the pinned bytes (`ssl` has no verify hook).
"""

import ssl
from collections.abc import Iterable
from pathlib import Path
from typing import Final

_NO_CHECK_TIME: Final = 0x200000  # X509_V_FLAG_NO_CHECK_TIME: clocks of boxes without NTP mean nothing
HANDSHAKE_S: Final = 5.0  # a stranger may not hold a half-open socket longer


def server_context(cert: Path, key: Path, *, roots: Iterable[bytes]) -> ssl.SSLContext:
    """Return a TLS 1.3 server context that demands one of the `roots` (DER). Raises `ssl.SSLError`, `OSError`."""
    context = _bare(ssl.PROTOCOL_TLS_SERVER, cert, key)
    context.verify_mode = ssl.CERT_REQUIRED
    context.num_tickets = 0  # a resumed session would outlive a ban
    _pin(context, roots)
    return context


def open_server_context(cert: Path, key: Path) -> ssl.SSLContext:
    """Return a TLS 1.3 server context for strangers: only the server shows a certificate."""
    context = _bare(ssl.PROTOCOL_TLS_SERVER, cert, key)
    context.num_tickets = 0
    return context


def client_context(cert: Path, key: Path, *, roots: Iterable[bytes]) -> ssl.SSLContext:
    """Return a TLS 1.3 client context that accepts only the `roots` (DER), under the name in the certificate."""
    context = _bare(ssl.PROTOCOL_TLS_CLIENT, cert, key)
    _pin(context, roots)
    return context


def unverified_client_context() -> ssl.SSLContext:
    """Return a client context that accepts any certificate: the caller checks its binding before it sends a byte."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


class SwappedContext:
    """A server context whose roots change while it listens.

    The context handed out trusts nobody; its SNI callback, which OpenSSL runs in every handshake, puts the current one
    in its place. So a new pin or a ban holds from the next handshake on, without a restart.
    """

    def __init__(self, cert: Path, key: Path) -> None:
        self._cert = cert
        self._key = key
        self._current = server_context(cert, key, roots=())
        self.context = server_context(cert, key, roots=())
        self.context.sni_callback = self._swap

    def pin(self, roots: Iterable[bytes]) -> None:
        """Trust exactly `roots` (DER) from the next handshake on."""
        self._current = server_context(self._cert, self._key, roots=roots)

    def _swap(self, socket: ssl.SSLSocket | ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
        socket.context = self._current


def _bare(protocol: int, cert: Path, key: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(cert, key)
    return context


def _pin(context: ssl.SSLContext, roots: Iterable[bytes]) -> None:
    # the default flags of newer Pythons ask for extensions that a pinned self-signed certificate has no use for
    context.verify_flags = ssl.VerifyFlags(ssl.VERIFY_X509_TRUSTED_FIRST | _NO_CHECK_TIME)
    pem = "".join(ssl.DER_cert_to_PEM_cert(der) for der in roots)
    if pem:
        context.load_verify_locations(cadata=pem)
