"""The small status page, and the policy under which a browser may show it."""

import base64
import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files


@dataclass(frozen=True, slots=True)
class Page:
    """A page without any external asset, and its Content-Security-Policy."""

    body: bytes
    policy: str


def status_page() -> Page:
    """Read the page from the package. Only its own script and style may run, by their hashes."""
    text = files("router.listeners").joinpath("status.html").read_text(encoding="utf-8")
    scripts, styles = " ".join(_hashes(text, "script")), " ".join(_hashes(text, "style"))
    policy = (
        f"default-src 'none'; script-src {scripts}; style-src {styles}; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return Page(body=text.encode(), policy=policy)


def _hashes(text: str, tag: str) -> Iterator[str]:
    for content in re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL):
        digest = hashlib.sha256(content.encode()).digest()
        yield f"'sha256-{base64.b64encode(digest).decode('ascii')}'"
