import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from fednode._pb import link_pb2 as pb
from fednode.disk import Identity
from fednode.identity import certs, envelope
from fednode.identity.envelope import Kind
from fednode.identity.keys import SigningKey
from fednode.model.engine import Capability
from fednode.model.engine import Path as ModelPath
from fednode.model.errors import WireError
from fednode.model.ids import node_id
from fednode.model.load import Stamp
from fednode.model.peer import Address, NodeRecord, ServedModel
from fednode.wire import limits, records
from fednode.wire.records import NodeCert

VECTORS = json.loads((Path(__file__).parents[3] / "vectors/wire/records.json").read_text())
NETWORK = envelope.network_id("fednode")
ROOT = SigningKey.from_seed(hashlib.sha256(b"root").digest())
KEY = SigningKey.from_seed(hashlib.sha256(b"node").digest())
NODE = node_id(KEY.public)
TLS_PEM = certs.tls_key_pem(hashlib.sha512(b"tls").digest())
CERT = certs.make_certificate(KEY, TLS_PEM)
NODE_CERT = records.issue_node_cert(NodeCert(1, NODE), network=NETWORK, root=ROOT.public, sign=ROOT.sign)
ME = Identity(NODE, node_id(ROOT.public), NETWORK, NODE_CERT, CERT, Path(), Path(), TLS_PEM, KEY)
MODEL = ServedModel(
    3, "org/model", ModelPath.FAST, 4096, 12_768, frozenset({Capability.CHAT, Capability.TOKEN_IDS}), "ab" * 32
)
RECORD = NodeRecord(
    node=NODE,
    at=Stamp(2, 5),
    root=node_id(ROOT.public),
    name="box-1",
    collective="Köln co-op",
    city="köln",
    tls_certs=(CERT,),
    addresses=(
        Address("203.0.113.7", 1, 2, 3),
        Address("2001:db8::7", 4, 5, 6),
        Address("", 7, 8, 9),
        Address("a.example", 1, 1, 1),
    ),
    models=(
        MODEL,
        dataclasses.replace(MODEL, max_model_len=None, kv_pool_tokens=None, digest=None, path=ModelPath.SLOW),
    ),
    ttl_s=3600,
)


def sealed(record: NodeRecord = RECORD) -> envelope.Envelope:
    return records.seal_record(record, network=NETWORK, by=ME)


@pytest.mark.parametrize("vector", VECTORS, ids=[vector["name"] for vector in VECTORS])
def test_a_record_is_accepted_or_refused_as_in_the_vectors(vector: dict[str, str]) -> None:
    verdict = "ok"
    try:
        records.open_record(records.decode_envelope(bytes.fromhex(vector["hex"])), network=NETWORK, held=None)
    except WireError as error:
        verdict = error.reason
    assert verdict == vector["verdict"]


def test_a_record_reads_back_as_it_was_written() -> None:
    again = records.decode_envelope(records.encode_envelope(sealed()))
    assert records.open_record(again, network=NETWORK, held=Stamp(2, 4)) == RECORD


def test_a_stale_record_is_dropped_before_its_signature_is_looked_at() -> None:
    forged = dataclasses.replace(sealed(), signature=bytes(64))
    with pytest.raises(WireError) as caught:
        records.open_record(forged, network=NETWORK, held=Stamp(2, 5))
    assert caught.value.reason == "stale"


def test_a_root_counts_only_with_its_certificate() -> None:
    thief = SigningKey.from_seed(hashlib.sha256(b"thief").digest())
    borrowed = dataclasses.replace(ME, root=node_id(thief.public))
    with pytest.raises(WireError) as caught:
        records.open_record(records.seal_record(RECORD, network=NETWORK, by=borrowed), network=NETWORK, held=None)
    assert caught.value.reason == "node_cert"
    for cert in (
        records.issue_node_cert(NodeCert(1, node_id(thief.public)), network=NETWORK, root=ROOT.public, sign=ROOT.sign),
        records.issue_node_cert(NodeCert(1, NODE, min_inc=3), network=NETWORK, root=ROOT.public, sign=ROOT.sign),
        records.issue_node_cert(NodeCert(1, NODE), network=b"x" * 16, root=ROOT.public, sign=ROOT.sign),
    ):
        wrong = dataclasses.replace(ME, node_cert=cert)
        with pytest.raises(WireError):
            records.open_record(records.seal_record(RECORD, network=NETWORK, by=wrong), network=NETWORK, held=None)


@pytest.mark.parametrize(
    "change, reason",
    [
        ({"tls_certs": ()}, "count"),
        ({"tls_certs": (CERT, CERT, CERT)}, "count"),
        ({"tls_certs": (b"junk",)}, "tls_cert"),
        ({"tls_certs": (certs.make_certificate(ROOT, TLS_PEM),)}, "tls_cert"),
        ({"addresses": (Address("203.0.113.7", 0, 2, 3),)}, "address"),
        ({"addresses": (Address("203.0.113.7", 1, 65_536, 3),)}, "address"),
    ],
)
def test_content_beyond_the_limits_is_refused_by_the_reader(change: dict[str, object], reason: str) -> None:
    record = dataclasses.replace(RECORD, **change)  # type: ignore[arg-type]  # a table of single fields
    with pytest.raises(WireError) as caught:
        records.open_record(sealed(record), network=NETWORK, held=None)
    assert caught.value.reason == reason


def test_a_node_with_too_many_long_model_ids_still_has_a_record() -> None:
    models = tuple(dataclasses.replace(MODEL, id=f"{number:03}" + "模" * 120) for number in range(40))
    record = records.open_record(sealed(dataclasses.replace(RECORD, models=models)), network=NETWORK, held=None)
    assert 0 < len(record.models) < limits.MODELS_MAX
    assert record.models == models[: len(record.models)]


@pytest.mark.parametrize("name", ["x" * 65, "a\x1b[31mred", "new\nline", "e\u0301 decomposed", "\u202eturned", "nul\0"])
def test_a_name_that_could_spoof_a_screen_is_refused(name: str) -> None:
    with pytest.raises(WireError) as caught:
        limits.check_name(name)
    assert caught.value.reason == "name"


def test_a_digest_in_an_operators_own_words_is_not_sent() -> None:
    models = (dataclasses.replace(MODEL, digest="my own build"),)
    record = records.open_record(sealed(dataclasses.replace(RECORD, models=models)), network=NETWORK, held=None)
    assert record.models[0].digest is None


@pytest.mark.parametrize("odd", [{"id": ""}, {"id": "x\x1b[0m"}, {"id": "m" * 129}, {"engine": 4}])
def test_a_model_that_cannot_be_sent_does_not_silence_its_node(odd: dict[str, object]) -> None:
    models = (dataclasses.replace(MODEL, **odd), MODEL)  # type: ignore[arg-type]  # a table of single fields
    record = records.open_record(sealed(dataclasses.replace(RECORD, models=models)), network=NETWORK, held=None)
    assert record.models == (MODEL,)


def crafted(change: Callable[[pb.NodeRecord], object]) -> envelope.Envelope:
    """Our record, changed in a way our encoder would not, and signed again."""
    message = pb.NodeRecord.FromString(sealed().payload)
    change(message)
    payload = message.SerializeToString()
    return envelope.seal(Kind.NODE_RECORD, payload, network=NETWORK, signer=KEY.public, sign=KEY.sign)


@pytest.mark.parametrize(
    "change, reason",
    [
        (lambda message: message.addrs.append(message.addrs[0]), "count"),
        (lambda message: message.models.extend([message.models[0]] * 15), "count"),
        (lambda message: setattr(message, "proto_min", 2), "version"),
        (lambda message: setattr(message, "collective", KEY.public), "node_cert"),
        (lambda message: setattr(message.addrs[0], "ip", b"12345"), "address"),
    ],
)
def test_a_crafted_record_is_refused(change: Callable[[pb.NodeRecord], object], reason: str) -> None:
    with pytest.raises(WireError) as caught:
        records.open_record(crafted(change), network=NETWORK, held=None)
    assert caught.value.reason == reason


def test_a_record_without_a_certificate_of_its_root_has_no_root() -> None:
    record = records.open_record(crafted(lambda message: message.ClearField("node_cert")), network=NETWORK, held=None)
    assert record.root is None


def test_the_stamp_is_read_alone_and_only_where_it_belongs() -> None:
    assert records.peek_stamp(sealed().payload) == Stamp(2, 5)
    for payload in (b"", b"\x0a", b"\x0a\x09\x08", b"\x0a\x7f" + bytes(200), b"\x12\x00"):
        with pytest.raises(WireError) as caught:
            records.peek_stamp(payload)
        assert caught.value.reason == "stamp"


def test_an_envelope_beyond_its_cap_is_not_parsed() -> None:
    with pytest.raises(WireError) as caught:
        records.decode_envelope(bytes(limits.ENVELOPE_BYTES_MAX + 1))
    assert caught.value.reason == "size"


@pytest.mark.parametrize(
    "model, reason",
    [(pb.Model(id="m", engine=4), "range"), (pb.Model(), "name"), (pb.Model(id="m", digest=bytes(65)), "size")],
)
def test_a_model_beyond_the_limits_is_refused_by_the_reader(model: pb.Model, reason: str) -> None:
    with pytest.raises(WireError) as caught:
        records.open_record(crafted(lambda message: message.models.append(model)), network=NETWORK, held=None)
    assert caught.value.reason == reason
