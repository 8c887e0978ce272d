import dataclasses
import hashlib
import json
from pathlib import Path

import pytest

from fednode.identity import envelope
from fednode.identity.envelope import Kind
from fednode.identity.keys import SigningKey
from fednode.model.errors import WireError
from fednode.model.load import Stamp

VECTORS = json.loads((Path(__file__).parents[3] / "vectors/identity/signed_bytes.json").read_text())
KEY = SigningKey.from_seed(hashlib.sha256(b"node").digest())
NETWORK = envelope.network_id("fednode")


@pytest.mark.parametrize("vector", VECTORS, ids=[vector["name"] for vector in VECTORS])
def test_the_signed_bytes_are_those_of_the_vectors(vector: dict[str, str]) -> None:
    network = envelope.network_id(vector["network"])
    assert envelope.signed_bytes(network, int(vector["kind"]), bytes.fromhex(vector["payload"])).hex() == vector["hex"]


def test_a_signature_holds_for_one_network_kind_and_payload() -> None:
    sealed = envelope.seal(Kind.NODE_RECORD, b"payload", network=NETWORK, signer=KEY.public, sign=KEY.sign)
    envelope.check_signature(sealed, NETWORK)
    for other, network in (
        (sealed, envelope.network_id("elsewhere")),
        (dataclasses.replace(sealed, kind=Kind.NODE_CERT), NETWORK),
        (dataclasses.replace(sealed, payload=b"payloae"), NETWORK),
    ):
        with pytest.raises(WireError) as caught:
            envelope.check_signature(other, network)
        assert caught.value.reason == "signature"


@pytest.mark.parametrize(
    "at, held, reason",
    [
        (Stamp(1, 1), None, None),
        (Stamp(0, 1), None, "stamp"),
        (Stamp(1, 0), None, "stamp"),
        (Stamp(2, 1), Stamp(1, 9), None),
        (Stamp(1, 9), Stamp(1, 9), "stale"),
        (Stamp(1, 8), Stamp(1, 9), "stale"),
        (Stamp(1, 99), Stamp(2, 1), "stale"),
        (Stamp(65_537, 1), Stamp(1, 1), None),
        (Stamp(65_538, 1), Stamp(1, 1), "stamp"),
        (Stamp(1, 2**40 + 1), Stamp(1, 1), None),
        (Stamp(1, 2**40 + 2), Stamp(1, 1), "stamp"),
    ],
)
def test_only_a_newer_stamp_that_does_not_jump_may_follow(at: Stamp, held: Stamp | None, reason: str | None) -> None:
    if reason is None:
        envelope.check_stamp(at, held)
    else:
        with pytest.raises(WireError) as caught:
            envelope.check_stamp(at, held)
        assert caught.value.reason == reason
