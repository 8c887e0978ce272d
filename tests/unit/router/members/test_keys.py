import hashlib
import re

import pytest

from fednode.model.peer import Trust
from router.members.keys import BadKeyNameError, KeyRecord, KeyRing, NewKey, anyone, new_key
from router.model.errors import RequestError
from router.model.request import Privacy

SECRET = bytes(range(32))


def make(name: str = "ana", privacy: Privacy = Privacy.PARTNERS, secret: bytes = SECRET) -> NewKey:
    return new_key(name, privacy, secret=secret, created_at=1000.0)


def revoked(new: NewKey) -> KeyRecord:
    record = new.record
    return KeyRecord(record.id, record.name, record.hash, record.privacy, record.created_at, revoked_at=2000.0)


def test_a_key_is_fk_and_the_secret_in_base64url() -> None:
    assert make().key == "fk_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8"
    assert re.fullmatch(r"fk_[A-Za-z0-9_-]{43}", make(secret=b"\xff" * 32).key)


def test_only_the_hash_of_a_key_is_kept_and_no_repr_shows_key_or_hash() -> None:
    new = make()
    assert new.record.hash == hashlib.sha256(new.key.encode()).hexdigest()
    for text in (repr(new), repr(new.record), repr(KeyRing([new.record]))):
        assert new.key not in text
        assert new.record.hash not in text


@pytest.mark.parametrize("length", [0, 16, 31, 33])
def test_a_secret_of_another_length_is_refused(length: int) -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        make(secret=b"x" * length)


@pytest.mark.parametrize("name", ["", "   ", "x" * 65, "two\nlines", "bell\a"])
def test_a_name_that_would_break_a_table_is_refused(name: str) -> None:
    with pytest.raises(BadKeyNameError):
        make(name)


def test_a_name_loses_its_outer_blanks() -> None:
    assert make("  ana  ").record.name == "ana"


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": "Bearer {}"},
        {"authorization": "bearer   {} "},
        {"authorization": "BEARER {}"},
        {"x-api-key": "{}"},
        {"x-api-key": " {} "},
        {"authorization": "Bearer dummy", "x-api-key": "{}"},
        {"authorization": "Bearer {}", "x-api-key": "dummy"},
        {"authorization": "Basic dXNlcjpwYXNz", "x-api-key": "{}"},
    ],
)
def test_a_key_is_found_in_either_header(headers: dict[str, str]) -> None:
    new = make(privacy=Privacy.COLLECTIVE)
    ring = KeyRing([make("bo", secret=b"b" * 32).record, new.record])
    member = ring.member({name: value.format(new.key) for name, value in headers.items()})
    assert (member.name, member.key_id, member.privacy) == ("ana", new.record.id, Privacy.COLLECTIVE)


@pytest.mark.parametrize(
    ("headers", "says"),
    [
        ({}, "a key is needed"),
        ({"authorization": "Bearer"}, "a key is needed"),
        ({"authorization": "Basic dXNlcjpwYXNz"}, "a key is needed"),
        ({"authorization": "Bearer fk_wrong"}, "not known here"),
        ({"x-api-key": "fk_" + "x" * 10_000}, "not known here"),
        ({"x-api-key": "\udcff\u2603"}, "not known here"),
    ],
)
def test_a_request_without_a_known_key_gets_401_and_a_line_that_helps(headers: dict[str, str], says: str) -> None:
    with pytest.raises(RequestError, match=says) as caught:
        KeyRing([make().record]).member(headers)
    assert caught.value.status == 401
    assert caught.value.code == "invalid_api_key"


def test_a_revoked_key_is_refused_and_said_to_be_revoked() -> None:
    new = make()
    with pytest.raises(RequestError, match="revoked"):
        KeyRing([revoked(new)]).member({"x-api-key": new.key})


def test_an_error_about_a_key_does_not_repeat_it() -> None:
    with pytest.raises(RequestError) as caught:
        KeyRing([]).member({"x-api-key": "fk_mistyped"})
    assert "mistyped" not in str(caught.value)


def test_on_an_open_node_a_dummy_key_is_anyone_and_a_known_key_its_owner() -> None:
    new = make()
    ring = KeyRing([new.record], open_to=anyone(Privacy.COMMERCIAL))
    assert ring.member({"x-api-key": "sk-none"}) == ring.member({}) == anyone(Privacy.COMMERCIAL)
    assert ring.member({"x-api-key": new.key}).name == "ana"
    assert anyone(Privacy.COMMERCIAL).key_id == ""


@pytest.mark.parametrize("privacy", list(Privacy))
def test_guests_serve_only_keys_that_allow_peers_or_farther(privacy: Privacy) -> None:
    expected = Trust.GUEST if privacy in {Privacy.PEERS, Privacy.COMMERCIAL} else Trust.PARTNER
    assert make(privacy=privacy).record.member().min_trust is expected


def test_two_keys_of_one_member_have_different_ids() -> None:
    assert make().record.id != make(secret=b"o" * 32).record.id
