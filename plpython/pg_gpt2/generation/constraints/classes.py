"""Classes of characters in patterns: what surely belongs to one, and what may.

PostgreSQL asks the database's locale, Python's `re` its own tables, and neither is ours. So only ASCII characters are generated
for a class, and for its opposite only what is in it nowhere.
"""

from collections.abc import Iterable
from typing import NamedTuple

from ...tokenizer import pretokenize
from ...tokenizer.unicode_classes import NUMBER, WHITE_SPACE
from .utf8 import LAST, Range, complement, normalised

_NOT_ASCII = (0x80, LAST)


class Class(NamedTuple):
    """Characters that are in a class wherever it is matched, and those that are in it somewhere."""

    surely: tuple[Range, ...]
    maybe: tuple[Range, ...]

    def opposite(self) -> "Class":
        """What is not in it."""
        return Class(complement(self.maybe), complement(self.surely))


def of(ranges: Iterable[Range]) -> Class:
    """Characters that are named, without doubt."""
    found = normalised(ranges)
    return Class(found, found)


def union(parts: Iterable[Class]) -> Class:
    """What is in one of some."""
    parts = list(parts)
    return Class(
        normalised(r for part in parts for r in part.surely), normalised(r for part in parts for r in part.maybe)
    )


def _ascii(characters: str, *maybe: Range) -> Class:
    """A class of ASCII characters, given as in brackets, and what beyond them may belong to it."""
    ranges: list[Range] = []
    at = 0
    while at < len(characters):
        end = at + 2 if characters[at + 1 : at + 2] == "-" and at + 2 < len(characters) else at
        ranges.append((ord(characters[at]), ord(characters[end])))
        at = end + 1
    return Class(normalised(ranges), normalised([*ranges, *maybe]))


_SPACES = [
    (0x1C, 0x1F),
    (0x180E, 0x180E),
    (0x200B, 0x200D),
    (0x2060, 0x2060),
    (0xFEFF, 0xFEFF),
    *pretokenize.ranges(WHITE_SPACE),
]

DIGIT = _ascii("0-9", *pretokenize.ranges(NUMBER))
SPACE = _ascii(" \t-\r", *_SPACES)
WORD = _ascii("0-9A-Za-z_", _NOT_ASCII)
ANY = of([(1, ord("\n") - 1), (ord("\n") + 1, LAST)])  # what `.` is: Python's has no new line

ESCAPES = {"d": DIGIT, "s": SPACE, "w": WORD}
ESCAPES |= {letter.upper(): found.opposite() for letter, found in ESCAPES.items()}

POSIX = {
    "alnum": _ascii("0-9A-Za-z", _NOT_ASCII),
    "alpha": _ascii("A-Za-z", _NOT_ASCII),
    "blank": _ascii(" \t", *_SPACES),
    "cntrl": _ascii("\1-\x1f\x7f", _NOT_ASCII),
    "digit": DIGIT,
    "graph": _ascii("!-~", _NOT_ASCII),
    "lower": _ascii("a-z", _NOT_ASCII),
    "print": _ascii(" -~", _NOT_ASCII),
    "punct": _ascii("!-/:-@[-`{-~", _NOT_ASCII),
    "space": SPACE,
    "upper": _ascii("A-Z", _NOT_ASCII),
    "xdigit": _ascii("0-9A-Fa-f", _NOT_ASCII),
}
