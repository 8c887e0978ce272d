import pytest

from router.stream.provider_faults import provider_loss, retry_after_s


@pytest.mark.parametrize(
    ("headers", "wait_s"),
    [
        ({}, None),
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after-ms": "1500", "retry-after": "2"}, 1.5),
        ({"retry-after": "Wed, 21 Oct 2026 07:28:00 GMT"}, None),
        ({"retry-after": "-1"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "."}, None),
        ({"retry-after": "999999"}, 3600.0),
    ],
)
def test_the_wait_a_provider_asks_for_is_read_in_seconds(headers: dict[str, str], wait_s: float | None) -> None:
    assert retry_after_s(headers) == wait_s


@pytest.mark.parametrize(
    "body", [b"", b"<html>", b'{"error":"x"}', b"[" * 100_000], ids=["none", "html", "text", "deep"]
)
def test_an_error_without_its_usual_shape_still_reads_as_one(body: bytes) -> None:
    loss = provider_loss(body, status=400, headers={})
    assert b'"message":"the provider refused the request"' in loss.body


@pytest.mark.parametrize("status", [401, 402, 403, 404, 429, 500, 503, 529, 301])
def test_a_providers_own_words_stay_with_us_unless_the_member_is_at_fault(status: int) -> None:
    loss = provider_loss(b'{"error":{"message":"canary sk-1 billing"}}', status=status, headers={})
    assert "canary" not in repr(loss)
