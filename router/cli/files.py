"""The text of a new node's `node.toml` and `peers.toml`: every key an operator may want, with default and reason.

Lines that begin with ``#`` and no blank are settings that may be switched on by removing the ``#``.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

REMARK_COLUMN: Final = 35
_REMARK: Final = re.compile(r"^(#?\S.*?)[ ]{2,}# (.*)$", re.MULTILINE)
_OFF: Final = re.compile(r"^#(?=[^\s#])", re.MULTILINE)
ENGINE_URL: Final = "http://127.0.0.1:8000"  # vLLM's usual port


@dataclass(frozen=True, slots=True)
class EngineChoice:
    """One `[[engine]]` to write."""

    name: str
    url: str
    path: str = "slow"


@dataclass(frozen=True, slots=True)
class NodeChoices:
    """What differs from one new node to the next."""

    name: str = "node-1"
    collective: str = "my-collective"
    city: str = "somewhere"
    data_dir: str = "data"
    api_listen: str = "127.0.0.1:8800"
    open: bool = True
    admin_listen: str = "127.0.0.1:8801"
    listen: str = "0.0.0.0:8802"  # mTLS with pinned peers only
    serve: str = "0.0.0.0:8803"  # likewise
    join: str = "0.0.0.0:8804"  # strangers get one fixed refusal
    advertise: tuple[str, ...] = ()
    mdns: bool = True
    allow_private: bool = False
    engines: tuple[EngineChoice, ...] = (EngineChoice("big", ENGINE_URL),)


def text_of(value: str) -> str:
    """Return a TOML string."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _list(values: Sequence[str]) -> str:
    return f"[{', '.join(map(text_of, values))}]"


def _flag(value: bool) -> str:
    return "true" if value else "false"


def node_toml(choices: NodeChoices) -> str:
    """Return the text of node.toml."""
    head = _HEAD.format(
        name=text_of(choices.name),
        collective=text_of(choices.collective),
        city=text_of(choices.city),
        data_dir=text_of(choices.data_dir),
        api_listen=text_of(choices.api_listen),
        open=_flag(choices.open),
        admin_listen=text_of(choices.admin_listen),
        listen=text_of(choices.listen),
        serve=text_of(choices.serve),
        join=text_of(choices.join),
        advertise=_list(choices.advertise),
        mdns=_flag(choices.mdns),
        allow_private=_flag(choices.allow_private),
    )
    return _aligned("\n".join((head, _engines(choices.engines), _TAIL)))


def switched_on(text: str) -> str:
    """Return the text with every setting behind a ``#`` in force, as in the examples at the top of the repository."""
    return _aligned(_OFF.sub("", text))


def _aligned(text: str) -> str:
    """Return the text with the remarks behind settings in one column, however long the values are."""
    return _REMARK.sub(lambda found: f"{found[1]:<{REMARK_COLUMN - 2}}  # {found[2]}", text)


def _engines(engines: Sequence[EngineChoice]) -> str:
    first = engines[0] if engines else EngineChoice("big", ENGINE_URL)
    mark = "" if engines else "#"
    tables = [
        _ENGINE.format(mark=mark, name=text_of(first.name), url=text_of(first.url), path=text_of(first.path)),
        *(
            f"[[engine]]\nname = {text_of(one.name)}\nurl = {text_of(one.url)}\npath = {text_of(one.path)}\n"
            for one in engines[1:]
        ),
    ]
    return "\n".join(tables)


_HEAD: Final = """\
# node.toml: one fednode. Every key may be left out; what stands behind a "#" is off, or an example.
# `fednode config check` reads it and names every mistake; `fednode config show` prints what is in force.
# Keys and passwords never stand here: it names the variables or files that hold them.

[node]
name = {name}                      # what others call this box: printable, at most 64 characters
collective = {collective}          # the people behind it; all their boxes say the same
city = {city}                      # where it stands
data_dir = {data_dir}              # identity, database, caches; relative to this file

# For members: OpenAI's HTTP API.
[api]
listen = {api_listen}
open = {open}                      # true: no key needed, only on loopback; false: fednode key create NAME
workers = 1                        # processes that share the port; this version has one
body_bytes_max = 33554432          # of one request
log_requests = false               # true: a log line for every request, not only for those that went wrong

# For the operator: status page, /metrics, the commands; loopback, or unix:/path.
[admin]
listen = {admin_listen}

# For peers; who they are stands in peers.toml.
[federation]
enabled = true                     # false: a node by itself
listen = {listen}                  # control links, mTLS
serve = {serve}                    # requests of peers, mTLS
join = {join}                      # where two nodes that list each other meet first
advertise = {advertise}            # where peers reach it, at most 4, IP literals first: ["203.0.113.7"]
#advertise_ports = {{ link = 8802, serve = 8803, join = 8804 }}   # only behind a port forward
network = "fednode"                # its hash separates networks in every signature; fixed once the identity is made
mdns = {mdns}                      # reserved: finding peers on the local network is yet to come
allow_private = {allow_private}    # true: peers on loopback and private ranges may be dialled (one LAN, a VPN, tests)
"""

_ENGINE: Final = """\
# An inference engine beside this node; one table for each.
{mark}[[engine]]
{mark}name = {name}
{mark}url = {url}                  # its root, without /v1
{mark}kind = "auto"                # auto | vllm | sglang | nim | llamacpp | ollama | lmstudio | openai
{mark}path = {path}                # fast (small, quick model) | slow (big model)
#api_key_env = "ENGINE_KEY"        # the variable that holds its key, if it wants one
#model_dir = "/srv/models/Qwen3"   # the folder of its weights, where the node cannot see it by itself
#digest = ""                       # the model digest as another node computed it, where the folder cannot be read
"""

_TAIL: Final = """\
# A commercial fallback: used last, and never for a request whose privacy class does not allow it.
#[[provider]]
#name = "anthropic"
#kind = "anthropic"                # anthropic | openai
#base_url = "https://provider.example"   # the root, without /v1
#api_key_env = "ANTHROPIC_API_KEY"  # the variable that holds the key; or api_key_file, a file of mode 0600
#monthly_budget_usd = 50.0
#[[provider.model]]
#id = "claude-sonnet"
#input_usd_per_mtok = 3.0
#output_usd_per_mtok = 15.0
#context_tokens = 200000

[routing]
privacy_default = "partners"       # how far a request may travel: home | collective | partners | peers | commercial
offline = false                    # true: only boxes in this city, and no provider
default_path = "fast"              # for the model name `auto`, where both are served and no rule below speaks
#price_cap_usd = 0.50              # the most that one request may cost at a provider

# When `auto` means the big model.
[routing.auto]
slow_above_tokens = 8000           # a longer prompt
slow_above_tool_rounds = 8         # a deeper tool loop
side_request_max_tokens = 64       # a request for at most so many tokens is a title or a summary: fast

[routing.cost]
beta = 0.1                         # weight of the delay that a request imposes on others
sigma = 0.1                        # weight of the doubt that grows with a report's age
leave_factor = 1.1                 # a peer must be this much cheaper than home ...
leave_margin_s = 0.05              # ... and by so many seconds more

# Names that members may ask for, each with models in order of preference.
#[routing.alias]
#coder = ["Qwen3-235B-A22B", "Qwen3.5-35B-A3B"]

# Seconds; each request can narrow its deadline by x-fednode-deadline-s.
[timeouts]
connect_s = 3.0
first_event_s = 30.0               # at least; longer where a long prefill is predicted
stall_s = 15.0                     # silence between content events
queue_s = 120.0
keepalive_s = 15.0
deadline_s = 3600.0
hangup_grace_s = 0.0               # how long a stream that nobody reads goes on
resumable_grace_s = 30.0           # the same for x-fednode-resumable: 1
drain_s = 30.0                     # how long running answers may take after SIGTERM
"""

_PEERS: Final = """\
# peers.toml: whom this node trusts, and how far. A saved change takes effect by itself; a mistake keeps the old table.
# Two operators who list each other's node id and one address are peered: send them the stanza of `fednode id`.

policy = { accept_vouches_from = "partner" }   # whose word for strangers counts: own | partner | guest | none

#[[peer]]
#name = "fitzroy-1"                # your name for it
#node = "ed25519:5jfgyy7ctrjavpxvkb5rglwf7gkuo5vox27hxescd3vgsfcg2iwa"   # from its `fednode id`
#trust = "partner"                 # own | partner | guest | known | banned
#addresses = ["198.51.100.4:8804"]  # its join port; a hint: the identity is what is checked
#link = "198.51.100.4:8802"        # dial here instead of where its record says: port forwards, tunnels
#serve = "198.51.100.4:8803"       # likewise
#introducer = false                # true: newcomers may be introduced by it
#quota = { concurrent = 8, tokens_per_min = 60_000, tokens_per_day = 5_000_000 }   # what it may use here
#note = "met at the co-op meeting"

# Every box of a whole collective, by its root key.
#[[peer]]
#name = "northcote"
#root = "ed25519:compmldndjcxyun2njfv6pn5f5u7zkjscyqy3sezpzawxul5spfa"
#trust = "guest"
"""

EXAMPLE: Final = NodeChoices(name="brunswick-1", collective="brunswick", city="melbourne", advertise=("203.0.113.7",))


def peers_toml() -> str:
    """Return the text of peers.toml: nobody yet, and how to write somebody."""
    return _aligned(_PEERS)
