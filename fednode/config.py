"""The fleet's part of the configuration: sections of `node.toml`, and the whole of `peers.toml`.

Parsed once, frozen, and every problem is reported at once (`ConfigError.problems`, one line each).
"""

import ipaddress
import re
import tomllib
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path as FilePath
from typing import Annotated, Any, Final, Literal
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    ValidationError,
    model_validator,
)

from fednode.model.engine import EngineKind, Path
from fednode.model.errors import ConfigError
from fednode.model.ids import BadNodeIdError, parse_node_id
from fednode.model.peer import Quota, Trust

FILE_BYTES_MAX: Final = 1 << 20  # a configuration file is written by hand; a megabyte is a mistake
NAME_CHARS_MAX: Final = 64
PEERS_MAX: Final = 1_000  # the size the federation is designed for


def plain_name(text: str) -> str:
    """Return `text` if it is a printable name. Raises ValueError for control characters, so no screen is spoofed."""
    if not text.strip():
        raise ValueError("must not be empty")
    if len(text) > NAME_CHARS_MAX:
        raise ValueError(f"must be at most {NAME_CHARS_MAX} characters, has {len(text)}")
    if not text.isprintable() or unicodedata.normalize("NFC", text) != text:
        raise ValueError("must be printable text (NFC, no control characters)")
    return text


def split_hostport(text: str) -> tuple[str, int]:
    """Return (host, port) of ``host:port`` or ``[v6]:port``. Raises ValueError naming what is wrong."""
    match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+)\]|([^\s:\[\]/]+)):(\d{1,5})", text)
    if not match:
        raise ValueError('must be "host:port", with IPv6 in brackets')
    port = int(match[3])
    if port > 65_535:
        raise ValueError("port must be at most 65535")
    return match[1] or match[2], port


def is_loopback(host: str) -> bool:
    """Return whether `host` is a loopback literal or ``localhost``."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _hostport(text: str) -> str:
    split_hostport(text)
    return text


def _dialled(text: str) -> str:
    if split_hostport(text)[1] == 0:
        raise ValueError("port must be from 1 to 65535")
    return text


def _engine_url(text: str) -> str:
    parts = urlsplit(text)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError('must be an address such as "http://127.0.0.1:8000"')
    try:
        _ = parts.port
    except ValueError as error:
        raise ValueError("has a port that is no number from 1 to 65535") from error
    if parts.username or parts.password:
        raise ValueError("must not carry a password; name a variable in api_key_env instead")
    root = text.rstrip("/")
    return root.removesuffix("/v1").rstrip("/")  # the root without /v1: a common slip that means one thing only


def _node_id(text: str) -> str:
    try:
        return parse_node_id(text)
    except BadNodeIdError as error:
        raise ValueError(str(error)) from error


def _kind(value: object) -> object:
    kinds = [kind.value for kind in EngineKind]
    if value == "auto" or value in kinds:
        return value if value == "auto" else EngineKind(str(value))
    raise ValueError(f"must be one of auto, {', '.join(kinds)}")


def _trust(value: object) -> object:
    if isinstance(value, str):
        try:
            return Trust[value.upper()]
        except KeyError:
            raise ValueError("must be one of own, partner, guest, known, banned") from None
    return value


Name = Annotated[str, AfterValidator(plain_name)]
HostPort = Annotated[str, AfterValidator(_hostport)]
DialAddress = Annotated[str, AfterValidator(_dialled)]
Url = Annotated[str, AfterValidator(_engine_url)]
Port = Annotated[int, Field(ge=1, le=65_535)]


class Section(BaseModel):
    """A table of a configuration file: frozen, and a key nobody knows is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=False, arbitrary_types_allowed=True)


class NodeSection(Section):
    """`[node]`: who this node is."""

    name: Name = "node-1"
    collective: Name = "my-collective"
    city: Name = "somewhere"
    data_dir: FilePath = FilePath("data")  # relative to the file


class AdvertisedPorts(Section):
    """Ports as the world sees them, where a port forward changes them."""

    link: Port
    serve: Port
    join: Port


class FederationSection(Section):
    """`[federation]`: listeners for peers, and how they find us."""

    enabled: bool = True
    listen: HostPort = "0.0.0.0:8802"  # mTLS with pinned peers only
    serve: HostPort = "0.0.0.0:8803"  # likewise
    join: HostPort = "0.0.0.0:8804"  # strangers get one fixed refusal
    advertise: tuple[str, ...] = Field(default=(), max_length=4)
    advertise_ports: AdvertisedPorts | None = None
    network: Name = "fednode"
    mdns: bool = True
    allow_private: bool = False
    relay: bool = False


class EngineSection(Section):
    """`[[engine]]`: one inference engine beside this node."""

    name: Name
    url: Url
    kind: Annotated[Literal["auto"] | EngineKind, PlainValidator(_kind)] = "auto"
    path: Path = Path.SLOW
    api_key_env: str = ""
    digest: str = Field(default="", max_length=128)
    model_dir: str = ""


class PeerQuota(Section):
    """What a peer may use here."""

    concurrent: int | None = Field(default=None, ge=0, le=10_000)
    tokens_per_min: int | None = Field(default=None, ge=0)
    tokens_per_day: int | None = Field(default=None, ge=0)

    def words(self) -> Quota:
        """Return the quota as the plain word."""
        return Quota(self.concurrent, self.tokens_per_min, self.tokens_per_day)


class PeerEntry(Section):
    """`[[peer]]`: one node, or one collective, and how far we trust it."""

    name: Name
    node: Annotated[str, AfterValidator(_node_id)] | None = None
    root: Annotated[str, AfterValidator(_node_id)] | None = None
    trust: Annotated[Trust, BeforeValidator(_trust)]
    addresses: tuple[DialAddress, ...] = Field(default=(), max_length=4)
    link: DialAddress | None = None
    serve: DialAddress | None = None
    introducer: bool = False
    quota: PeerQuota = PeerQuota()
    note: str = Field(default="", max_length=500)

    @model_validator(mode="after")
    def _names_somebody(self) -> "PeerEntry":
        if self.node is None and self.root is None:
            raise ValueError('needs node = "ed25519:..." (one box) or root = "ed25519:..." (a whole collective)')
        return self


class PeersPolicy(Section):
    """`policy` of peers.toml."""

    accept_vouches_from: Literal["own", "partner", "guest", "none"] = "partner"


class PeersFile(Section):
    """The whole of peers.toml."""

    policy: PeersPolicy = PeersPolicy()
    peer: tuple[PeerEntry, ...] = Field(default=(), max_length=PEERS_MAX)


def doubles(rows: object, kind: str, *keys: str) -> Iterator[str]:
    """Yield a problem for each row that repeats the value of one of `keys`. Looks at raw data, so that this is told
    beside whatever else is wrong.
    """
    for key in keys:
        first: dict[str, int] = {}
        for number, row in enumerate(rows if isinstance(rows, list) else (), start=1):
            value = row.get(key) if isinstance(row, Mapping) else None
            if isinstance(value, str) and (earlier := first.setdefault(value, number)) != number:
                yield f"{kind}[{number}].{key} = {_shown(value)}: {kind}[{earlier}] has the same {key}"


def problems_of(error: ValidationError, file: str) -> tuple[str, ...]:
    """Return one line per problem: file, path in it, value, and what is wrong. Values of secrets never occur here."""
    return tuple(_problem(file, item) for item in error.errors(include_url=False))


def _problem(file: str, item: Any) -> str:  # noqa: ANN401  # pydantic's ErrorDetails
    path = _dotted(item["loc"])
    if item["type"] == "extra_forbidden":
        return f"{file}: {path} = {_shown(item['input'])}: unknown key"
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] == "missing":
        return f"{file}: {path}: is required"
    if isinstance(item["input"], Mapping | list | tuple | BaseModel):
        return f"{file}: {path or 'the file'}: {message}"
    return f"{file}: {path} = {_shown(item['input'])}: {message}"


def _dotted(loc: Iterable[int | str]) -> str:
    text = ""
    for part in loc:
        if isinstance(part, int):
            text += f"[{part + 1}]"
        elif part and not re.fullmatch(r"(function-|literal|enum|constrained|str$|int$|nullable).*", part):
            text += f".{part}" if text else part
    return text


def _shown(value: object) -> str:
    text = re.sub(r"//[^/@\s]*@", "//***@", repr(value))  # a password in an address is not repeated
    return text if len(text) <= 80 else text[:77] + "..."  # one line of a terminal


def read_toml(path: FilePath) -> dict[str, Any]:
    """Return the parsed file. Raises `ConfigError` with one line when it is missing, unreadable or not TOML."""
    try:
        with path.open("rb") as file:
            raw = file.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise ConfigError((f"{path}: cannot be read: {error.strerror}",)) from error
    if len(raw) > FILE_BYTES_MAX:
        raise ConfigError((f"{path}: larger than {FILE_BYTES_MAX} bytes, which no configuration is",))
    try:
        return tomllib.loads(raw.decode("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError((f"{path}: not valid TOML: {error}",)) from error


def load_peers(path: FilePath) -> PeersFile:
    """Return peers.toml. A file that does not exist is a node without peers. Raises `ConfigError`, all problems."""
    if not path.exists():
        return PeersFile()
    data = read_toml(path)
    problems = tuple(f"{path.name}: {problem}" for problem in doubles(data.get("peer"), "peer", "name", "node"))
    try:
        peers = PeersFile.model_validate(data)
    except ValidationError as error:
        raise ConfigError(problems_of(error, path.name) + problems) from error
    if problems:
        raise ConfigError(problems)
    return peers
