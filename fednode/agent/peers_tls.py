"""TLS for requests between nodes: both ends accept pinned certificates and nothing else."""

import ssl
from collections.abc import Iterable

from fednode.disk import Identity
from fednode.identity.certs import tls_name
from fednode.model.ids import NodeId
from fednode.net import tls


class PeerTls:
    """Contexts that follow the pins. Bounded by the number of peers."""

    def __init__(self, identity: Identity) -> None:
        self._cert, self._key = identity.tls_cert_path, identity.tls_key_path
        self._server = tls.SwappedContext(self._cert, self._key)
        self._clients: dict[NodeId, tuple[tuple[bytes, ...], ssl.SSLContext]] = {}

    def pin(self, certificates: Iterable[bytes]) -> None:
        """Accept exactly these certificates (DER) from the next handshake on."""
        self._server.pin(certificates)

    def server(self) -> ssl.SSLContext:
        """Return the context for the serve listener; it stays the same object while the pins change."""
        return self._server.context

    def join(self) -> ssl.SSLContext:
        """Return the context for the join listener, where strangers knock."""
        return tls.open_server_context(self._cert, self._key)

    def client(self, node: NodeId, certificates: tuple[bytes, ...]) -> tuple[ssl.SSLContext, str] | None:
        """Return a context that accepts only `certificates` of `node`, and the name to send; None without any."""
        if not certificates:
            self._clients.pop(node, None)
            return None
        held = self._clients.get(node)
        if held is None or held[0] != certificates:
            context = tls.client_context(self._cert, self._key, roots=certificates)
            held = self._clients[node] = (certificates, context)
        return held[1], tls_name(node)
