"""Text to token ids and back, and the answer to any sequence of ids: deterministic, pure, constant work per token.

The next id is a function of the seed and of *all* ids before it, folded into a rolling hash. So a continuation from
``prompt_ids + emitted_ids`` goes on with the very bytes of the unbroken answer, and one wrong id changes all of it.
"""

import codecs
import re
from collections.abc import Sequence as Ids
from typing import Final

from router.rehearse.engine_sim.vocabulary import BOS, CHARACTERS, END, ID_OF, PAD, PIECES, SPECIAL_TEXT, WORDS

MASK: Final = (1 << 64) - 1
FOLD: Final = 0x9E3779B97F4A7C15  # odd, from the golden ratio: every bit of an id reaches every later hash

ANSWER_TOKENS_MIN: Final = 64  # an answer shorter than this shows nothing about a stream
_WORD_RUN: Final = re.compile(rb" ?[A-Z]?[a-z]+|\n\n|[,.?!] |    |  |://|\":|\", \"|\(\)|==|.", re.DOTALL)
_SENTENCE_END: Final = frozenset(ID_OF[sign] for sign in (b".", b"?", b"!"))
_LINE_END: Final = frozenset((10, ID_OF[b"\n\n"]))
_OPENING: Final = tuple(ID_OF[word.capitalize().encode()] for word in WORDS)
_CAPITAL: Final = tuple(ID_OF[f" {word.capitalize()}".encode()] for word in WORDS)
_INNER: Final = tuple(ID_OF[f" {word}".encode()] for word in WORDS)
_WORD_IDS: Final = frozenset((*_OPENING, *_CAPITAL, *_INNER))
_PARAGRAPH: Final = ID_OF[b"\n\n"]
_FULL_STOP, _QUESTION, _COMMA = ID_OF[b"."], ID_OF[b"?"], ID_OF[b","]
_SECOND_BYTE: Final = {0xE0: 0xA0, 0xED: 0x80, 0xF0: 0x90, 0xF4: 0x80}  # lead bytes that not every byte may follow


def _next_bytes() -> dict[bytes, tuple[int, ...]]:
    found: dict[bytes, set[int]] = {}
    for character in CHARACTERS:
        spelled = character.encode()
        for at in range(len(spelled)):
            found.setdefault(spelled[:at], set()).add(spelled[at])
    return {begun: tuple(sorted(following)) for begun, following in found.items()}


_NEXT_BYTES: Final = _next_bytes()


def encode(text: str) -> list[int]:
    """Token ids of a text, without special tokens. Lone surrogates, which no byte can carry, become ``?``."""
    ids: list[int] = []
    for match in _WORD_RUN.finditer(text.encode("utf-8", errors="replace")):
        run = match.group()
        known = ID_OF.get(run)
        if known is not None:
            ids.append(known)
            continue
        at = 0
        while at < len(run):
            size = 3
            while (known := ID_OF.get(run[at : at + size])) is None:
                size -= 1
            ids.append(known)
            at += size
    return ids


def decode_bytes(ids: Ids[int]) -> bytes:
    """The bytes of these ids; special tokens are left out, as engines do by default."""
    return b"".join(PIECES[token] for token in ids if token not in SPECIAL_TEXT)


def decode(ids: Ids[int]) -> str:
    """The text of these ids with special tokens spelled out; broken characters become U+FFFD.

    Raises:
        IndexError: an id is outside the vocabulary.

    """
    return b"".join(PIECES[token] for token in ids).decode("utf-8", errors="replace")


def mix(value: int) -> int:
    """Scramble 64 bits (the finaliser of SplitMix64): near values give unrelated results."""
    value = (value + FOLD) & MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & MASK
    return value ^ (value >> 31)


def key_of(model: str, seed: int) -> int:
    """What stands for the weights: equal for equal (model, seed)."""
    key = mix(seed)
    for byte in model.encode():
        key = mix(key ^ byte)
    return key


def pending_bytes(ids: Ids[int]) -> bytes:
    """The bytes of a character that these ids begin and do not finish; empty where they end on a whole one."""
    tail = decode_bytes(ids[-4:])[-4:]
    for back in range(1, min(3, len(tail)) + 1):
        lead = tail[-back]
        if lead >= 0xC2:
            return tail[-back:] if back < _width(lead) else b""
        if lead < 0x80:
            return b""
    return b""


def _width(lead: int) -> int:
    return 2 if lead < 0xE0 else 3 if lead < 0xF0 else 4 if lead < 0xF5 else 1


class Writer:
    """All ids of one sequence so far, folded; writes the next one."""

    __slots__ = ("_begun", "_key", "_last", "_since_special", "block_hashes", "block_size", "count", "folded")

    def __init__(self, prompt_ids: Ids[int], *, key: int, block_size: int) -> None:
        folded = 0
        hashes = []
        for at in range(0, len(prompt_ids), block_size):
            block = prompt_ids[at : at + block_size]
            for token in block:
                folded = (folded * FOLD + token + 1) & MASK
            if len(block) == block_size:
                hashes.append(folded)
        since = 0
        for token in reversed(prompt_ids):
            if PAD <= token <= END:
                break
            since += 1
        self.folded = folded
        self.block_size = block_size
        self.block_hashes = hashes
        """Hash of everything up to the end of each whole block: equal prefixes, equal hashes."""
        self.count = len(prompt_ids)
        self._key = key
        self._since_special = since
        self._last = prompt_ids[-1] if prompt_ids else BOS
        self._begun = pending_bytes(prompt_ids)

    def append(self, token: int) -> None:
        """Take an id as written, whoever chose it."""
        self.folded = (self.folded * FOLD + token + 1) & MASK
        self.count += 1
        if self.count % self.block_size == 0:
            self.block_hashes.append(self.folded)
        self._last = token
        if token >= 256:
            self._begun = b""
            self._since_special = 0 if token <= END else self._since_special + 1
            return
        self._since_special += 1
        if token >= 0xC2:
            self._begun = bytes((token,)) if token < 0xF5 else b""
        elif self._begun:
            begun = self._begun + bytes((token,))
            self._begun = b"" if token < 0x80 or len(begun) >= _width(begun[0]) else begun

    def choose(self, salt: int) -> int:
        """The id that follows. ``salt`` is 0 for the greedy answer; any other value gives another valid one."""
        draw = mix(self.folded ^ self._key ^ salt)
        begun = self._begun
        if begun:
            following = _NEXT_BYTES.get(begun)
            if following is None:
                return _SECOND_BYTE.get(begun[0], 0x80) if len(begun) == 1 else 0x80 + draw % 0x40
            return following[draw % len(following)]
        kind, draw = draw % 1000, draw // 1000
        last = self._last
        if last in SPECIAL_TEXT or last in _LINE_END:
            return _OPENING[draw % len(_OPENING)]
        if last in _SENTENCE_END:
            if self._since_special >= ANSWER_TOKENS_MIN and kind < 100:
                return END
            return _PARAGRAPH if kind < 180 else _CAPITAL[draw % len(_CAPITAL)]
        if last in _WORD_IDS:
            if kind < 75:
                return _FULL_STOP if kind < 68 else _QUESTION
            if kind < 140:
                return _COMMA
            if kind < 160:
                leads = _NEXT_BYTES[b""]
                return leads[draw % len(leads)]
        return _INNER[draw % len(_INNER)]

    def instead_of_end(self) -> int:
        """What is written where the answer would end but must not yet (``min_tokens``, ``ignore_eos``)."""
        return _PARAGRAPH


class Detokenizer:
    """Text of an answer as its ids arrive; a character comes out once it is whole.

    A prompt that ends inside a character makes vLLM repeat the whole prompt in the first text. So does this.
    """

    __slots__ = ("_decoder", "_repeat")

    def __init__(self, prompt_ids: Ids[int]) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._repeat = decode_bytes(prompt_ids) if pending_bytes(prompt_ids) else b""

    def feed(self, token: int) -> str:
        """Text that this id completes, possibly none."""
        if token in SPECIAL_TEXT:
            return ""
        if self._repeat:
            self._repeat += PIECES[token]
            if pending_bytes(self._repeat[-4:]):
                return ""
            data, self._repeat = self._repeat, b""
            return self._decoder.decode(data)
        return self._decoder.decode(PIECES[token])
