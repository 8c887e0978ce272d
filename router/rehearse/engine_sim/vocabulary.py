"""The stand-in's vocabulary: 256 bytes, a few special tokens, every short run of small letters, and common words.

Every id stands for a fixed run of bytes, so decoding is joining and ``decode(encode(text)) == text`` for any text.
"""

from itertools import product
from typing import Final

LETTERS: Final = "abcdefghijklmnopqrstuvwxyz"

PAD: Final = 256
BOS: Final = 257
START: Final = 258
END: Final = 259
"""Ends a message, and with it an answer: the end-of-sequence token."""

SPECIAL_TEXT: Final = {PAD: b"<|pad|>", BOS: b"<|begin|>", START: b"<|start|>", END: b"<|end|>"}

_WORDS: Final = (
    "the a of and to in is that it for on with as are this be by an at from or which can one has have not will all"
    " each when there their its but more other about into over after also only then than between under still where"
    " city river bridge market street garden station window harbour mountain valley evening morning winter summer"
    " light water paper stone glass bread coffee music letter story question answer number measure signal network"
    " node peer engine model token request stream queue block budget record table branch path link clock step"
    " people neighbour friend teacher student driver baker painter reader writer group council member family child"
    " house room door table lamp wall roof floor kitchen cellar shelf book page line word note map plan list order"
    " open close carry bring follow answer build repair share borrow return measure compare choose explain remember"
    " small large quiet bright early late simple careful common local distant steady narrow gentle sudden useful"
    " slowly often always never together again almost perhaps nearly rather quite soon already later"
    " first second third next last same different many several few every half whole"
)
WORDS: Final = tuple(dict.fromkeys(_WORDS.split()))
_ROLES: Final = ("system", "developer", "user", "assistant", "tool")
_SIGNS: Final = ("\n\n", ", ", ". ", "? ", "! ", "  ", "    ", "://", '":', '", "', "()", "==")

CHARACTERS: Final = ("…", "—", "’", "é", "☕", "🙂")
"""What an answer may put behind a word: characters of two to four bytes, written byte by byte."""


def _pieces() -> list[bytes]:
    pieces = [bytes([value]) for value in range(256)] + [SPECIAL_TEXT[token] for token in (PAD, BOS, START, END)]
    known = set(pieces)

    def add(text: str) -> None:
        piece = text.encode()
        if piece not in known:
            known.add(piece)
            pieces.append(piece)

    for text in (*_SIGNS, *_ROLES):
        add(text)
    for word in WORDS:
        add(f" {word}")
        add(f" {word.capitalize()}")
        add(word.capitalize())
        add(word)
    for first, second in product(f" {LETTERS}", LETTERS):
        add(first + second)
    for first, second, third in product(f" {LETTERS}", LETTERS, LETTERS):
        add(first + second + third)
    return pieces


PIECES: Final = tuple(_pieces())
"""Bytes of each id."""
ID_OF: Final = {piece: token for token, piece in enumerate(PIECES) if token not in SPECIAL_TEXT}
"""Id of each run of bytes; special tokens are never made from text."""
