from pathlib import Path

import pytest

from router.upstreams.posting import ProviderKey
from router.upstreams.provider_key import ProviderKeyError, read_key


def key_file(tmp_path: Path, text: str, mode: int = 0o600) -> Path:
    file = tmp_path / "key"
    file.write_text(text)
    file.chmod(mode)
    return file


def test_a_key_comes_from_the_environment_first(tmp_path: Path) -> None:
    key = read_key(env="ACME_KEY", file=key_file(tmp_path, "from-file\n"), environ={"ACME_KEY": " from-env "})
    assert key is not None
    assert key.reveal() == "from-env"


def test_a_key_comes_from_a_private_file(tmp_path: Path) -> None:
    key = read_key(env="ACME_KEY", file=key_file(tmp_path, "from-file\n"), environ={})
    assert key is not None
    assert key.reveal() == "from-file"


def test_no_key_configured_is_no_key() -> None:
    assert read_key(env="", file=None, environ={}) is None


def test_a_key_file_that_others_may_read_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ProviderKeyError, match=r"key can be read by others \(mode 0644\); chmod 600"):
        read_key(env="", file=key_file(tmp_path, "canary", 0o644), environ={})


@pytest.mark.parametrize(
    "text", ["", "  \n", "two words", "x" * 5000, "naïve"], ids=["empty", "blank", "two", "long", "non-ascii"]
)
def test_what_is_no_key_is_refused_without_showing_it(tmp_path: Path, text: str) -> None:
    with pytest.raises(ProviderKeyError) as caught:
        read_key(env="", file=key_file(tmp_path, text), environ={})
    assert "two words" not in str(caught.value)


def test_a_missing_variable_or_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ProviderKeyError, match="ACME_KEY is not set"):
        read_key(env="ACME_KEY", file=None, environ={})
    with pytest.raises(ProviderKeyError, match="absent cannot be read"):
        read_key(env="", file=tmp_path / "absent", environ={})
    with pytest.raises(ProviderKeyError, match="not a regular file"):
        read_key(env="", file=tmp_path, environ={})


def test_a_key_has_no_readable_repr() -> None:
    assert "canary" not in f"{ProviderKey('canary')!r} {ProviderKey('canary')}"
