import dataclasses
from pathlib import Path

import pytest

from fednode.agent.peers_book import PeerBook
from fednode.config import PeersFile
from fednode.disk import Identity, create_identity, read_identity
from fednode.identity.envelope import Envelope
from fednode.membership.machine import Standing
from fednode.model.engine import Path as ModelPath
from fednode.model.errors import WireError
from fednode.model.load import Accept, LoadReport, LoadRow, Stamp
from fednode.model.peer import Address, NodeRecord, PeerState, ServedModel, Trust
from fednode.model.units import Instant
from fednode.wire.records import seal_record

MODEL = ServedModel(0, "m", ModelPath.SLOW, 4096, 25_600, frozenset(), None)
NOW = Instant(50.0)
ALIVE = Standing(PeerState.ALIVE, Instant(40.0), "", linked=True)


@pytest.fixture
def me(tmp_path: Path) -> Identity:
    create_identity(tmp_path / "me")
    return read_identity(tmp_path / "me")


@pytest.fixture
def peer(tmp_path: Path) -> Identity:
    create_identity(tmp_path / "peer")
    return read_identity(tmp_path / "peer")


def signed(by: Identity, *, ver: int = 1, name: str = "box", ip: str = "203.0.113.7") -> Envelope:
    record = NodeRecord(
        by.node, Stamp(1, ver), by.root, name, "co-op", "graz", (by.tls_cert,), (Address(ip, 1, 2, 3),), (MODEL,), 60
    )
    return seal_record(record, network=by.network, by=by)


def listing(*entries: dict[str, object]) -> PeersFile:
    rows = [{"name": f"entry {number}", **entry} for number, entry in enumerate(entries)]
    return PeersFile.model_validate({"peer": rows})


def reason_of(book: PeerBook, envelope: Envelope) -> str:
    with pytest.raises(WireError) as caught:
        book.learn(envelope)
    return caught.value.reason


def test_a_listed_node_is_pinned_by_its_record_and_unpinned_by_a_ban(me: Identity, peer: Identity) -> None:
    book = PeerBook(me, listing({"node": peer.node, "trust": "partner"}))
    assert book.pins() == ()
    assert book.learn(signed(peer)) is not None
    assert book.peer_of(peer.tls_cert) == peer.node
    assert book.certs_of(peer.node) == (peer.tls_cert,)
    book.load(listing({"node": peer.node, "trust": "banned"}))
    assert book.pins() == ()
    assert book.certs_of(peer.node) == ()
    assert reason_of(book, signed(peer)) == "stranger"
    assert not book.signed_by_friend(signed(peer))


def test_strangers_and_ourselves_are_not_learned(me: Identity, peer: Identity) -> None:
    book = PeerBook(me, PeersFile())
    assert reason_of(book, signed(peer)) == "stranger"
    assert reason_of(book, signed(me)) == "stranger"
    assert book.nodes() == ()


def test_a_collective_is_trusted_as_one_and_a_single_box_can_only_be_narrowed(me: Identity, peer: Identity) -> None:
    book = PeerBook(me, listing({"root": peer.root, "trust": "partner"}))
    assert book.trust_of(peer.node) is None
    book.learn(signed(peer))
    assert book.trust_of(peer.node) is Trust.PARTNER
    assert book.nodes() == (peer.node,)
    book.load(listing({"root": peer.root, "trust": "partner"}, {"node": peer.node, "trust": "guest"}))
    assert book.trust_of(peer.node) is Trust.GUEST
    assert book.name_of(peer.node) == "entry 1"


def test_records_are_ordered_by_stamp_and_contradictions_are_noticed(me: Identity, peer: Identity) -> None:
    book = PeerBook(me, listing({"node": peer.node, "trust": "partner"}))
    book.learn(signed(peer, ver=5))
    assert book.learn(signed(peer, ver=5)) is None
    assert reason_of(book, signed(peer, ver=4)) == "stale"
    assert reason_of(book, signed(peer, ver=5, name="other")) == "equivocation"
    assert book.learn(signed(peer, ver=6)) is not None
    assert book.envelopes() == (signed(peer, ver=6),)


def test_addresses_come_from_the_operator_first(me: Identity, peer: Identity) -> None:
    entry: dict[str, object] = {"node": peer.node, "trust": "partner", "addresses": ["198.51.100.4:8804"]}
    book = PeerBook(me, listing(entry))
    assert book.join_targets(peer.node) == (("198.51.100.4", 8804),)
    assert (book.link_targets(peer.node), book.serve_of(peer.node)) == ((), "")
    book.learn(signed(peer))
    assert book.link_targets(peer.node) == (("203.0.113.7", 1),)
    assert book.serve_of(peer.node) == "203.0.113.7:2"
    assert book.join_targets(peer.node) == (("198.51.100.4", 8804), ("203.0.113.7", 3))
    book.load(listing({**entry, "link": "[2001:db8::7]:9", "serve": "198.51.100.4:10"}))
    assert book.link_targets(peer.node) == (("2001:db8::7", 9),)
    assert book.serve_of(peer.node) == "198.51.100.4:10"


def test_a_record_without_a_host_means_where_it_was_reached(me: Identity, peer: Identity) -> None:
    book = PeerBook(me, listing({"node": peer.node, "trust": "partner", "addresses": ["198.51.100.4:8804"]}))
    book.learn(signed(peer, ip=""))
    book.met(peer.node, ip="198.51.100.9")
    assert book.link_targets(peer.node) == (("198.51.100.4", 1), ("198.51.100.9", 1))


def test_a_view_joins_the_report_with_the_models_and_keeps_the_unknown_unknown(me: Identity, peer: Identity) -> None:
    book = PeerBook(me, listing({"node": peer.node, "trust": "partner", "quota": {"concurrent": 3}}))
    book.learn(signed(peer))
    rows = (LoadRow(0, kv_free_256th=128, running=2), LoadRow(1, kv_free_256th=9))
    book.heard_load(peer.node, LoadReport(Stamp(1, 2), rows, Accept.GUESTS), NOW)
    book.measured(peer.node, 0.1)
    book.measured(peer.node, 0.2)
    view = book.view(peer.node, ALIVE, NOW)
    assert (view.state, view.trust, view.quota.concurrent, view.heard_at) == (PeerState.ALIVE, Trust.PARTNER, 3, NOW)
    assert [(row.kv_total_tokens, row.kv_free_tokens, row.running, row.waiting) for row in view.rows] == [
        (25_600, 12_800, 2, None),
        (None, None, None, None),
    ]
    assert view.rows[0].models == (MODEL,)
    assert view.rtt_s == pytest.approx(0.13)
    assert (view.name, view.collective, view.reason) == ("entry 0", "co-op", "")
    with pytest.raises(WireError):
        book.heard_load(peer.node, LoadReport(Stamp(1, 2), (), Accept.GUESTS), NOW)


@pytest.mark.parametrize(
    "trust, standing, report, reason",
    [
        ("banned", ALIVE, None, "banned in peers.toml"),
        ("known", ALIVE, None, "trusted as known only: no requests either way"),
        ("partner", None, None, "not reached yet"),
        ("partner", dataclasses.replace(ALIVE, state=PeerState.AVOID, reason="silent"), None, "silent"),
        ("partner", ALIVE, None, "linked, but no load report yet: it may trust this node less"),
        (
            "partner",
            ALIVE,
            LoadReport(Stamp(1, 2), (), Accept.NOBODY, draining=True),
            "draining: it takes no new work",
        ),
        ("partner", ALIVE, LoadReport(Stamp(1, 2), (), Accept.NOBODY), "it takes no requests now"),
        ("partner", ALIVE, LoadReport(Stamp(1, 2), (), Accept.GUESTS), ""),
    ],
)
def test_a_peer_that_is_not_used_has_a_reason(
    me: Identity, peer: Identity, trust: str, standing: Standing | None, report: LoadReport | None, reason: str
) -> None:
    book = PeerBook(me, listing({"node": peer.node, "trust": "partner"}))
    book.learn(signed(peer))
    book.load(listing({"node": peer.node, "trust": trust}))
    if report is not None:
        book.heard_load(peer.node, report, NOW)
    assert book.view(peer.node, standing, NOW).reason == reason
