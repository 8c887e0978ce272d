"""Nodes with real keys and real TLS, and a book that pins them: what two peered nodes know of each other."""

import hashlib
import ssl
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from fednode.identity.certs import make_certificate, tls_key_pem, tls_name, to_pem
from fednode.identity.keys import SigningKey
from fednode.model.ids import NodeId, node_id
from fednode.model.peer import Trust


@dataclass(frozen=True)
class FakeNode:
    """One node's identity and certificate, the same for the same name."""

    name: str
    node: NodeId
    der: bytes
    key_pem: bytes

    def _context(self, purpose: int) -> ssl.SSLContext:
        context = ssl.SSLContext(purpose)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.verify_mode = ssl.CERT_REQUIRED
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "both.pem")
            path.write_bytes(self.key_pem + to_pem(self.der))
            context.load_cert_chain(path)
        return context

    def serving(self, *peers: "FakeNode") -> ssl.SSLContext:
        context = self._context(ssl.PROTOCOL_TLS_SERVER)
        for peer in peers:
            context.load_verify_locations(cadata=peer.der)
        return context

    def dialling(self, peer: "FakeNode") -> ssl.SSLContext:
        context = self._context(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(cadata=peer.der)
        return context


def fake_node(name: str) -> FakeNode:
    key = SigningKey.from_seed(hashlib.sha256(name.encode()).digest())
    key_pem = tls_key_pem(hashlib.sha512(name.encode()).digest())
    return FakeNode(name, node_id(key.public), make_certificate(key, key_pem), key_pem)


@dataclass
class FakeBook:
    """A node's pins: whom it lets in, and how it reaches them."""

    me: FakeNode
    pinned: tuple[FakeNode, ...]
    trust: dict[NodeId, Trust] = field(default_factory=dict)
    address: str = ""
    contexts: dict[NodeId, ssl.SSLContext] = field(default_factory=dict)

    def server_tls(self) -> ssl.SSLContext:
        return self.me.serving(*self.pinned)

    def client_tls(self, node: NodeId) -> tuple[ssl.SSLContext, str] | None:
        for peer in self.pinned:
            if peer.node == node:
                if node not in self.contexts:
                    self.contexts[node] = self.me.dialling(peer)
                return self.contexts[node], tls_name(node)
        return None

    def serve_address(self, node: NodeId) -> str:
        return self.address

    def peer_of(self, der: bytes) -> NodeId | None:
        return next((peer.node for peer in self.pinned if peer.der == der), None)

    def trust_of(self, node: NodeId) -> Trust:
        return self.trust.get(node, Trust.PARTNER)

    def name_of(self, node: NodeId) -> str:
        return next(peer.name for peer in self.pinned if peer.node == node)
