"""Reaching a peer: addresses in turn, an introduction where certificates are not known, then the link."""

from collections.abc import Awaitable, Callable
from typing import Final

from fednode.agent.peers_book import PeerBook
from fednode.agent.peers_self import OwnWord
from fednode.disk import Identity
from fednode.identity.envelope import Envelope
from fednode.model.errors import LinkError
from fednode.model.ids import NodeId
from fednode.net.addresses import resolve
from fednode.net.join import Refused, present
from fednode.net.link import Link, Unwelcome, dial

NO_ADDRESS: Final = 'no address is known: add addresses = ["host:port"] to its entry in peers.toml'


class Dialler:
    """Knows whom to introduce ourselves to before a link can work."""

    def __init__(
        self, book: PeerBook, own: OwnWord, identity: Identity, *, allow_private: bool, nonce: Callable[[], bytes]
    ) -> None:
        self._book = book
        self._own = own
        self._identity = identity
        self._allow_private = allow_private
        self._nonce = nonce
        self._introduce: set[NodeId] = set()  # bounded by the peers in the book

    def introduced(self, node: NodeId) -> None:
        """Note that `node` holds our record now."""
        self._introduce.discard(node)

    async def reach(
        self,
        node: NodeId,
        *,
        learn: Callable[[Envelope, NodeId], bool],
        serve: Callable[[Link], Awaitable[None]],
    ) -> None:
        """Open a link to `node` and `serve` it to its end. Raises `LinkError` when it cannot be opened.

        `learn` takes in the record of `node` and says whether it fits.
        """
        if not self._book.certs_of(node) or node in self._introduce:
            await self._present(node, learn)
        failure = LinkError(NO_ADDRESS)
        for host, port in self._book.link_targets(node):
            try:
                ip = await resolve(host, allow_private=self._allow_private)
                certificates = self._book.certs_of(node)
                if not certificates:
                    raise LinkError("its trust was withdrawn meanwhile")
                async with dial(
                    self._identity,
                    node,
                    ip=ip,
                    port=port,
                    certificates=certificates,
                    at=self._own.stamp(),
                    nonce=self._nonce(),
                ) as link:
                    self._introduce.discard(node)
                    await serve(link)
                    return
            except Unwelcome as error:
                self._introduce.add(node)
                failure = error
            except LinkError as error:
                failure = error
        raise failure

    async def _present(self, node: NodeId, learn: Callable[[Envelope, NodeId], bool]) -> None:
        failure = LinkError(NO_ADDRESS)
        for host, port in self._book.join_targets(node):
            try:
                ip = await resolve(host, allow_private=self._allow_private)
                theirs = await present(self._identity, self._own.record(), to=node, ip=ip, port=port)
            except Refused:
                raise
            except LinkError as error:
                failure = error
                continue
            if not learn(theirs, node):
                raise LinkError("it sent a record that does not fit: is it of another network or version?")
            self._book.met(node, ip=ip)
            self._introduce.discard(node)
            return
        raise failure
