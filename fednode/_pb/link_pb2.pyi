from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Stamp(_message.Message):
    __slots__ = ("inc", "ver")
    INC_FIELD_NUMBER: _ClassVar[int]
    VER_FIELD_NUMBER: _ClassVar[int]
    inc: int
    ver: int
    def __init__(self, inc: _Optional[int] = ..., ver: _Optional[int] = ...) -> None: ...

class Envelope(_message.Message):
    __slots__ = ("kind", "payload", "signer", "sig")
    KIND_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    SIGNER_FIELD_NUMBER: _ClassVar[int]
    SIG_FIELD_NUMBER: _ClassVar[int]
    kind: int
    payload: bytes
    signer: bytes
    sig: bytes
    def __init__(self, kind: _Optional[int] = ..., payload: _Optional[bytes] = ..., signer: _Optional[bytes] = ..., sig: _Optional[bytes] = ...) -> None: ...

class EngineLoad(_message.Message):
    __slots__ = ("engine", "kv_free_256th", "queued_prefill_tokens", "running", "waiting", "prefill_tok_s", "arrival_centi_s", "decode_step_us", "age_ms")
    ENGINE_FIELD_NUMBER: _ClassVar[int]
    KV_FREE_256TH_FIELD_NUMBER: _ClassVar[int]
    QUEUED_PREFILL_TOKENS_FIELD_NUMBER: _ClassVar[int]
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    PREFILL_TOK_S_FIELD_NUMBER: _ClassVar[int]
    ARRIVAL_CENTI_S_FIELD_NUMBER: _ClassVar[int]
    DECODE_STEP_US_FIELD_NUMBER: _ClassVar[int]
    AGE_MS_FIELD_NUMBER: _ClassVar[int]
    engine: int
    kv_free_256th: int
    queued_prefill_tokens: int
    running: int
    waiting: int
    prefill_tok_s: int
    arrival_centi_s: int
    decode_step_us: int
    age_ms: int
    def __init__(self, engine: _Optional[int] = ..., kv_free_256th: _Optional[int] = ..., queued_prefill_tokens: _Optional[int] = ..., running: _Optional[int] = ..., waiting: _Optional[int] = ..., prefill_tok_s: _Optional[int] = ..., arrival_centi_s: _Optional[int] = ..., decode_step_us: _Optional[int] = ..., age_ms: _Optional[int] = ...) -> None: ...

class Load(_message.Message):
    __slots__ = ("at", "flags", "accept", "engines", "echo", "echo_bits")
    AT_FIELD_NUMBER: _ClassVar[int]
    FLAGS_FIELD_NUMBER: _ClassVar[int]
    ACCEPT_FIELD_NUMBER: _ClassVar[int]
    ENGINES_FIELD_NUMBER: _ClassVar[int]
    ECHO_FIELD_NUMBER: _ClassVar[int]
    ECHO_BITS_FIELD_NUMBER: _ClassVar[int]
    at: Stamp
    flags: int
    accept: int
    engines: _containers.RepeatedCompositeFieldContainer[EngineLoad]
    echo: int
    echo_bits: int
    def __init__(self, at: _Optional[_Union[Stamp, _Mapping]] = ..., flags: _Optional[int] = ..., accept: _Optional[int] = ..., engines: _Optional[_Iterable[_Union[EngineLoad, _Mapping]]] = ..., echo: _Optional[int] = ..., echo_bits: _Optional[int] = ...) -> None: ...

class Addr(_message.Message):
    __slots__ = ("ip", "link_port", "data_port", "join_port", "relay_port", "name")
    IP_FIELD_NUMBER: _ClassVar[int]
    LINK_PORT_FIELD_NUMBER: _ClassVar[int]
    DATA_PORT_FIELD_NUMBER: _ClassVar[int]
    JOIN_PORT_FIELD_NUMBER: _ClassVar[int]
    RELAY_PORT_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    ip: bytes
    link_port: int
    data_port: int
    join_port: int
    relay_port: int
    name: str
    def __init__(self, ip: _Optional[bytes] = ..., link_port: _Optional[int] = ..., data_port: _Optional[int] = ..., join_port: _Optional[int] = ..., relay_port: _Optional[int] = ..., name: _Optional[str] = ...) -> None: ...

class Model(_message.Message):
    __slots__ = ("engine", "id", "weights_hash", "tokenizer_hash", "quant", "ctx_tokens", "max_output_tokens", "kv_pool_tokens", "features", "digest", "path")
    ENGINE_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_HASH_FIELD_NUMBER: _ClassVar[int]
    TOKENIZER_HASH_FIELD_NUMBER: _ClassVar[int]
    QUANT_FIELD_NUMBER: _ClassVar[int]
    CTX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MAX_OUTPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    KV_POOL_TOKENS_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    engine: int
    id: str
    weights_hash: bytes
    tokenizer_hash: bytes
    quant: str
    ctx_tokens: int
    max_output_tokens: int
    kv_pool_tokens: int
    features: int
    digest: bytes
    path: int
    def __init__(self, engine: _Optional[int] = ..., id: _Optional[str] = ..., weights_hash: _Optional[bytes] = ..., tokenizer_hash: _Optional[bytes] = ..., quant: _Optional[str] = ..., ctx_tokens: _Optional[int] = ..., max_output_tokens: _Optional[int] = ..., kv_pool_tokens: _Optional[int] = ..., features: _Optional[int] = ..., digest: _Optional[bytes] = ..., path: _Optional[int] = ...) -> None: ...

class NodeRecord(_message.Message):
    __slots__ = ("at", "collective", "node_cert", "tls_cert", "addrs", "models", "name", "city", "proto_min", "proto_max", "flags", "ttl_s", "collective_name")
    AT_FIELD_NUMBER: _ClassVar[int]
    COLLECTIVE_FIELD_NUMBER: _ClassVar[int]
    NODE_CERT_FIELD_NUMBER: _ClassVar[int]
    TLS_CERT_FIELD_NUMBER: _ClassVar[int]
    ADDRS_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    CITY_FIELD_NUMBER: _ClassVar[int]
    PROTO_MIN_FIELD_NUMBER: _ClassVar[int]
    PROTO_MAX_FIELD_NUMBER: _ClassVar[int]
    FLAGS_FIELD_NUMBER: _ClassVar[int]
    TTL_S_FIELD_NUMBER: _ClassVar[int]
    COLLECTIVE_NAME_FIELD_NUMBER: _ClassVar[int]
    at: Stamp
    collective: bytes
    node_cert: Envelope
    tls_cert: _containers.RepeatedScalarFieldContainer[bytes]
    addrs: _containers.RepeatedCompositeFieldContainer[Addr]
    models: _containers.RepeatedCompositeFieldContainer[Model]
    name: str
    city: str
    proto_min: int
    proto_max: int
    flags: int
    ttl_s: int
    collective_name: str
    def __init__(self, at: _Optional[_Union[Stamp, _Mapping]] = ..., collective: _Optional[bytes] = ..., node_cert: _Optional[_Union[Envelope, _Mapping]] = ..., tls_cert: _Optional[_Iterable[bytes]] = ..., addrs: _Optional[_Iterable[_Union[Addr, _Mapping]]] = ..., models: _Optional[_Iterable[_Union[Model, _Mapping]]] = ..., name: _Optional[str] = ..., city: _Optional[str] = ..., proto_min: _Optional[int] = ..., proto_max: _Optional[int] = ..., flags: _Optional[int] = ..., ttl_s: _Optional[int] = ..., collective_name: _Optional[str] = ...) -> None: ...

class NodeCert(_message.Message):
    __slots__ = ("serial", "node", "min_inc", "caps", "next_root")
    SERIAL_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    MIN_INC_FIELD_NUMBER: _ClassVar[int]
    CAPS_FIELD_NUMBER: _ClassVar[int]
    NEXT_ROOT_FIELD_NUMBER: _ClassVar[int]
    serial: int
    node: bytes
    min_inc: int
    caps: int
    next_root: bytes
    def __init__(self, serial: _Optional[int] = ..., node: _Optional[bytes] = ..., min_inc: _Optional[int] = ..., caps: _Optional[int] = ..., next_root: _Optional[bytes] = ...) -> None: ...

class Suspicion(_message.Message):
    __slots__ = ("at", "subject", "seen")
    AT_FIELD_NUMBER: _ClassVar[int]
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    SEEN_FIELD_NUMBER: _ClassVar[int]
    at: Stamp
    subject: bytes
    seen: Stamp
    def __init__(self, at: _Optional[_Union[Stamp, _Mapping]] = ..., subject: _Optional[bytes] = ..., seen: _Optional[_Union[Stamp, _Mapping]] = ...) -> None: ...

class Vouch(_message.Message):
    __slots__ = ("serial", "subject", "level", "ttl_s")
    SERIAL_FIELD_NUMBER: _ClassVar[int]
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    LEVEL_FIELD_NUMBER: _ClassVar[int]
    TTL_S_FIELD_NUMBER: _ClassVar[int]
    serial: int
    subject: bytes
    level: int
    ttl_s: int
    def __init__(self, serial: _Optional[int] = ..., subject: _Optional[bytes] = ..., level: _Optional[int] = ..., ttl_s: _Optional[int] = ...) -> None: ...

class Revoke(_message.Message):
    __slots__ = ("serial", "what", "key", "reason")
    SERIAL_FIELD_NUMBER: _ClassVar[int]
    WHAT_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    serial: int
    what: int
    key: bytes
    reason: int
    def __init__(self, serial: _Optional[int] = ..., what: _Optional[int] = ..., key: _Optional[bytes] = ..., reason: _Optional[int] = ...) -> None: ...

class Proof(_message.Message):
    __slots__ = ("a", "b")
    A_FIELD_NUMBER: _ClassVar[int]
    B_FIELD_NUMBER: _ClassVar[int]
    a: Envelope
    b: Envelope
    def __init__(self, a: _Optional[_Union[Envelope, _Mapping]] = ..., b: _Optional[_Union[Envelope, _Mapping]] = ...) -> None: ...

class BanNotice(_message.Message):
    __slots__ = ("at", "subject", "reason", "evidence_hash")
    AT_FIELD_NUMBER: _ClassVar[int]
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    EVIDENCE_HASH_FIELD_NUMBER: _ClassVar[int]
    at: Stamp
    subject: bytes
    reason: int
    evidence_hash: bytes
    def __init__(self, at: _Optional[_Union[Stamp, _Mapping]] = ..., subject: _Optional[bytes] = ..., reason: _Optional[int] = ..., evidence_hash: _Optional[bytes] = ...) -> None: ...

class Receipt(_message.Message):
    __slots__ = ("pair", "seq", "req", "prompt", "cached", "output", "cum")
    PAIR_FIELD_NUMBER: _ClassVar[int]
    SEQ_FIELD_NUMBER: _ClassVar[int]
    REQ_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    CACHED_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_FIELD_NUMBER: _ClassVar[int]
    CUM_FIELD_NUMBER: _ClassVar[int]
    pair: bytes
    seq: int
    req: bytes
    prompt: int
    cached: int
    output: int
    cum: int
    def __init__(self, pair: _Optional[bytes] = ..., seq: _Optional[int] = ..., req: _Optional[bytes] = ..., prompt: _Optional[int] = ..., cached: _Optional[int] = ..., output: _Optional[int] = ..., cum: _Optional[int] = ...) -> None: ...

class Balance(_message.Message):
    __slots__ = ("a", "b", "seq", "cum_a", "cum_b", "sig_a", "sig_b")
    A_FIELD_NUMBER: _ClassVar[int]
    B_FIELD_NUMBER: _ClassVar[int]
    SEQ_FIELD_NUMBER: _ClassVar[int]
    CUM_A_FIELD_NUMBER: _ClassVar[int]
    CUM_B_FIELD_NUMBER: _ClassVar[int]
    SIG_A_FIELD_NUMBER: _ClassVar[int]
    SIG_B_FIELD_NUMBER: _ClassVar[int]
    a: bytes
    b: bytes
    seq: int
    cum_a: int
    cum_b: int
    sig_a: bytes
    sig_b: bytes
    def __init__(self, a: _Optional[bytes] = ..., b: _Optional[bytes] = ..., seq: _Optional[int] = ..., cum_a: _Optional[int] = ..., cum_b: _Optional[int] = ..., sig_a: _Optional[bytes] = ..., sig_b: _Optional[bytes] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("network", "node", "proto_min", "proto_max", "nonce", "at", "caps", "proof")
    NETWORK_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    PROTO_MIN_FIELD_NUMBER: _ClassVar[int]
    PROTO_MAX_FIELD_NUMBER: _ClassVar[int]
    NONCE_FIELD_NUMBER: _ClassVar[int]
    AT_FIELD_NUMBER: _ClassVar[int]
    CAPS_FIELD_NUMBER: _ClassVar[int]
    PROOF_FIELD_NUMBER: _ClassVar[int]
    network: bytes
    node: bytes
    proto_min: int
    proto_max: int
    nonce: bytes
    at: Stamp
    caps: int
    proof: bytes
    def __init__(self, network: _Optional[bytes] = ..., node: _Optional[bytes] = ..., proto_min: _Optional[int] = ..., proto_max: _Optional[int] = ..., nonce: _Optional[bytes] = ..., at: _Optional[_Union[Stamp, _Mapping]] = ..., caps: _Optional[int] = ..., proof: _Optional[bytes] = ...) -> None: ...

class Digest(_message.Message):
    __slots__ = ("durable", "first_bucket", "buckets", "rows", "suspicions")
    DURABLE_FIELD_NUMBER: _ClassVar[int]
    FIRST_BUCKET_FIELD_NUMBER: _ClassVar[int]
    BUCKETS_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    SUSPICIONS_FIELD_NUMBER: _ClassVar[int]
    durable: bytes
    first_bucket: int
    buckets: int
    rows: bytes
    suspicions: bytes
    def __init__(self, durable: _Optional[bytes] = ..., first_bucket: _Optional[int] = ..., buckets: _Optional[int] = ..., rows: _Optional[bytes] = ..., suspicions: _Optional[bytes] = ...) -> None: ...

class Delta(_message.Message):
    __slots__ = ("records", "want", "rows", "more")
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    WANT_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    MORE_FIELD_NUMBER: _ClassVar[int]
    records: _containers.RepeatedCompositeFieldContainer[Envelope]
    want: bytes
    rows: bytes
    more: bool
    def __init__(self, records: _Optional[_Iterable[_Union[Envelope, _Mapping]]] = ..., want: _Optional[bytes] = ..., rows: _Optional[bytes] = ..., more: _Optional[bool] = ...) -> None: ...

class ProbeReq(_message.Message):
    __slots__ = ("subject", "nonce")
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    NONCE_FIELD_NUMBER: _ClassVar[int]
    subject: bytes
    nonce: int
    def __init__(self, subject: _Optional[bytes] = ..., nonce: _Optional[int] = ...) -> None: ...

class ProbeAck(_message.Message):
    __slots__ = ("subject", "nonce", "newest")
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    NONCE_FIELD_NUMBER: _ClassVar[int]
    NEWEST_FIELD_NUMBER: _ClassVar[int]
    subject: bytes
    nonce: int
    newest: Envelope
    def __init__(self, subject: _Optional[bytes] = ..., nonce: _Optional[int] = ..., newest: _Optional[_Union[Envelope, _Mapping]] = ...) -> None: ...

class RelayOpen(_message.Message):
    __slots__ = ("to", "token")
    TO_FIELD_NUMBER: _ClassVar[int]
    FROM_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    to: bytes
    token: bytes
    def __init__(self, to: _Optional[bytes] = ..., token: _Optional[bytes] = ..., **kwargs) -> None: ...

class Bye(_message.Message):
    __slots__ = ("reason",)
    REASON_FIELD_NUMBER: _ClassVar[int]
    reason: int
    def __init__(self, reason: _Optional[int] = ...) -> None: ...

class Error(_message.Message):
    __slots__ = ("code", "text")
    CODE_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    code: int
    text: str
    def __init__(self, code: _Optional[int] = ..., text: _Optional[str] = ...) -> None: ...

class Frame(_message.Message):
    __slots__ = ("hello", "load", "digest", "delta", "urgent", "probe", "probe_ack", "relay", "balance", "bye", "error")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    LOAD_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    DELTA_FIELD_NUMBER: _ClassVar[int]
    URGENT_FIELD_NUMBER: _ClassVar[int]
    PROBE_FIELD_NUMBER: _ClassVar[int]
    PROBE_ACK_FIELD_NUMBER: _ClassVar[int]
    RELAY_FIELD_NUMBER: _ClassVar[int]
    BALANCE_FIELD_NUMBER: _ClassVar[int]
    BYE_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    load: Load
    digest: Digest
    delta: Delta
    urgent: Envelope
    probe: ProbeReq
    probe_ack: ProbeAck
    relay: RelayOpen
    balance: Balance
    bye: Bye
    error: Error
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ..., load: _Optional[_Union[Load, _Mapping]] = ..., digest: _Optional[_Union[Digest, _Mapping]] = ..., delta: _Optional[_Union[Delta, _Mapping]] = ..., urgent: _Optional[_Union[Envelope, _Mapping]] = ..., probe: _Optional[_Union[ProbeReq, _Mapping]] = ..., probe_ack: _Optional[_Union[ProbeAck, _Mapping]] = ..., relay: _Optional[_Union[RelayOpen, _Mapping]] = ..., balance: _Optional[_Union[Balance, _Mapping]] = ..., bye: _Optional[_Union[Bye, _Mapping]] = ..., error: _Optional[_Union[Error, _Mapping]] = ...) -> None: ...
