"""Strings of JSON as grammars: any string, those of a length, of a pattern, of a format.

A string has one spelling, that of json.dumps(ensure_ascii=False): what need not be escaped stands as it is. Lengths count code
points. There is no U+0000, which jsonb cannot hold, and there are no surrogates.
"""

import json
from collections.abc import Iterable

from ...errors import FeatureNotSupported
from . import regex
from .grammar import EMPTY, Chars, Either, Node, Repeat, Seq, Words, chars, choices, either, repeat, seq, text
from .lengths import inside_out, texts
from .utf8 import LAST, Range

_ESCAPED = ((0, 0x1F), (ord('"'), ord('"')), (ord("\\"), ord("\\")))
ANYTHING = repeat(chars([(1, LAST)]))
_ANCHORS = ("^", "$", *(f"\\{letter}" for letter in "AZzbBmMyY"))


def quoted(content: Node) -> Node:
    """A string of JSON with this content, which is spelled already."""
    return seq(text('"'), content, text('"'))


def written(value: str) -> str:
    """A string of JSON."""
    return json.dumps(value, ensure_ascii=False)


def spelled(node: Node) -> Node:
    """What a text may be, as what it may be between the quotation marks of JSON."""
    found: dict[Node, Node] = {}
    for each in inside_out(node):
        found[each] = _spelled(each, found)
    return found[node]


def _spelled(node: Node, found: dict[Node, Node]) -> Node:
    if isinstance(node, Chars):
        return _character(node.ranges)
    if isinstance(node, Words):
        return choices(written(one)[1:-1] for one in texts(node))
    if isinstance(node, Seq):
        return seq(found[node.first], found[node.rest])
    if isinstance(node, Either):
        return either(*(found[part] for part in node.parts))
    if isinstance(node, Repeat):
        return repeat(found[node.part], node.least, node.most)
    return node


def _character(ranges: Iterable[Range]) -> Node:
    """One character of `ranges`: itself, or its escape."""
    plain, escaped, after = [], [], 0
    for low, high in _ESCAPED:
        plain += [(max(after, first), min(low - 1, last)) for first, last in ranges]
        after = high + 1
        escaped += [chr(c) for first, last in ranges for c in range(max(low, first), min(high, last) + 1)]
    plain += [(max(after, first), last) for first, last in ranges]
    escapes = choices(written(character)[1:-1] for character in escaped if character != "\0")
    return either(chars(one for one in plain if one[0] <= one[1]), escapes)


# --- patterns ---------------------------------------------------------------------------------------------------------------


def of_pattern(pattern: str) -> Node:
    """Texts in which a regular expression is found, as JSON schema has it: anywhere, unless ^ and $ say where.

    These two may stand at the beginning and the end of the pattern or of one of its alternatives; 0A000 elsewhere.
    """
    found, place = [], 0
    for one in _alternatives(pattern):
        begins, ends = one[:1] == ["^"], one[-1:] == ["$"]
        inner = one[begins : len(one) - ends]
        if anchor := next((piece for piece in inner if piece in _ANCHORS), ""):
            raise FeatureNotSupported(
                f"{anchor} inside of the pattern {pattern[:60]} is not supported",
                hint="^ and $ may stand at its beginning and end, and at those of its alternatives.",
            )
        middle = regex.parse("".join(inner), place + begins)
        place += sum(map(len, one)) + 1
        found.append(seq(EMPTY if begins else ANYTHING, middle, EMPTY if ends else ANYTHING))
    return either(*found)


def _alternatives(pattern: str) -> list[list[str]]:
    """The parts of a pattern between its outermost |, each as characters, escapes and sets."""
    found: list[list[str]] = [[]]
    depth = place = 0
    while place < len(pattern):
        piece = _piece(pattern, place)
        place += len(piece)
        depth += (piece == "(") - (piece == ")")
        if piece == "|" and not depth:
            found.append([])
        else:
            found[-1].append(piece)
    return found


def _piece(pattern: str, place: int) -> str:
    """A character, an escape or a set. What is not closed is left to the parser to refuse."""
    if pattern[place] == "\\":
        return pattern[place : place + 2]
    if pattern[place] != "[":
        return pattern[place]
    end = place + 1
    end += pattern.startswith("^", end)
    end += pattern.startswith("]", end)  # the first one is a member
    while end < len(pattern) and pattern[end] != "]":
        end += 2 if pattern[end] == "\\" else 1
    return pattern[place : end + 1]
