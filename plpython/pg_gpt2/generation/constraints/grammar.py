"""Grammars of what a text may be, as regular expressions: nodes, made by `text`, `chars`, `seq`, `either`, `repeat`.

A node also says what can follow: which bytes may come first, and the grammar of what remains after each (Antimirov's partial
derivatives). So a state of the automaton is a grammar, and a count is a number, however large. Made twice is the same object:
nodes are compared by identity. Every node has a text that fits it, but NOTHING.
"""

from collections.abc import Iterable
from typing import Any, TypeVar
from weakref import WeakValueDictionary

from ... import host
from ...errors import LimitExceeded
from .utf8 import Range, byte_ranges, normalised

MOST_FIRSTS = 10_000  # alternatives of a state: more take too long

First = tuple[int, int, "Node"]  # lowest and highest byte, and what remains after one of them
_Kind = TypeVar("_Kind", bound="Node")

_nodes: WeakValueDictionary[tuple[Any, ...], "Node"] = WeakValueDictionary()


class Node:
    """What a text, or a part of one, may be. Made by the functions below only, which simplify."""

    __slots__ = ("__weakref__", "depth", "nullable", "shortest")
    nullable: bool  # whether nothing at all fits
    shortest: int  # bytes of the shortest text that fits
    depth: int  # how deeply nodes are nested, one after the other does not count

    def firsts(self) -> list[First]:
        """What may come first, and what remains then; ranges may overlap."""
        raise NotImplementedError


def _made(kind: type[_Kind], key: tuple[Any, ...], *values: Any) -> _Kind:
    """The node of a kind with these values, the same object where there is one."""
    found: Any = _nodes.get((kind, *key))
    if found is None:
        found = _nodes[(kind, *key)] = kind(*values)
    return found


class Empty(Node):
    """No text but ''. There is one, EMPTY."""

    __slots__ = ()

    def __init__(self) -> None:
        self.nullable, self.shortest, self.depth = True, 0, 1

    def firsts(self) -> list[First]:
        return []


class Words(Node):
    """What remains after `at` bytes that they share of some texts: words[low:high] of sorted bytes, all distinct."""

    __slots__ = ("at", "high", "low", "words")

    def __init__(self, words: tuple[bytes, ...], low: int, high: int, at: int) -> None:
        self.words, self.low, self.high, self.at = words, low, high, at
        self.nullable = len(words[low]) == at
        self.shortest = min(map(len, words[low:high])) - at
        self.depth = 1

    def firsts(self) -> list[First]:
        found: list[First] = []
        words, at = self.words, self.at
        low = self.low + self.nullable
        while low < self.high:
            byte, high = words[low][at], low + 1
            while high < self.high and words[high][at] == byte:
                high += 1
            found.append((byte, byte, _words(words, low, high, at + 1)))
            low = high
        return found


class Bytes(Node):
    """One byte from `low` to `high`: a later one of a character."""

    __slots__ = ("high", "low")

    def __init__(self, low: int, high: int) -> None:
        self.low, self.high = low, high
        self.nullable, self.shortest, self.depth = False, 1, 1

    def firsts(self) -> list[First]:
        return [(self.low, self.high, EMPTY)]


class Chars(Node):
    """One character of `ranges`: code points (low, high), ascending and apart, neither U+0000 nor surrogates."""

    __slots__ = ("_firsts", "ranges")

    def __init__(self, ranges: tuple[Range, ...]) -> None:
        self.ranges = ranges
        self.nullable, self.shortest, self.depth = False, len(chr(ranges[0][0]).encode()), 2
        self._firsts: list[First] = []

    def firsts(self) -> list[First]:
        if not self._firsts:
            for low, high in self.ranges:
                for (first, last), *later in byte_ranges(low, high):
                    rest = seq(*(_made(Bytes, byte, *byte) for byte in later))
                    self._firsts.append((first, last, rest))
        return self._firsts


class Seq(Node):
    """`first`, and `rest` after it."""

    __slots__ = ("first", "rest")

    def __init__(self, first: Node, rest: Node) -> None:
        self.first, self.rest = first, rest
        self.nullable = first.nullable and rest.nullable
        self.shortest = first.shortest + rest.shortest
        self.depth = max(first.depth + 1, rest.depth)

    def firsts(self) -> list[First]:
        found: list[First] = []
        node: Node = self
        while isinstance(node, Seq):  # in a loop: a sequence may be long
            found += [(low, high, _then(after, node.rest)) for low, high, after in node.first.firsts()]
            if not node.first.nullable or len(found) > MOST_FIRSTS:
                return _bounded(found)
            node = node.rest
        return _bounded(found + node.firsts())


class Either(Node):
    """One of `parts`, two or more, none of them an Either."""

    __slots__ = ("parts",)

    def __init__(self, parts: tuple[Node, ...]) -> None:
        self.parts = parts
        self.nullable = any(part.nullable for part in parts)
        self.shortest = min((part.shortest for part in parts), default=0)
        self.depth = 1 + max((part.depth for part in parts), default=0)

    def firsts(self) -> list[First]:
        found: list[First] = []
        for part in self.parts:
            found += part.firsts()
            if len(found) > MOST_FIRSTS:
                break
        return _bounded(found)


class Repeat(Node):
    """`part`, at least `least` times and at most `most`, None = any number. `least` is 0 where `part` is nullable."""

    __slots__ = ("least", "most", "part")

    def __init__(self, part: Node, least: int, most: int | None) -> None:
        self.part, self.least, self.most = part, least, most
        self.nullable = least == 0
        self.shortest = least * part.shortest
        self.depth = 1 + part.depth

    def firsts(self) -> list[First]:
        more = repeat(self.part, max(0, self.least - 1), None if self.most is None else self.most - 1)
        return [(low, high, _then(after, more)) for low, high, after in self.part.firsts()]


EMPTY: Node = Empty()  # the text ''
NOTHING: Node = Either(())  # no text


def chars(ranges: Iterable[Range]) -> Node:
    """One character of some ranges of code points, in any order. U+0000, which no text of PostgreSQL has, and surrogates are left
    out."""
    found = normalised(ranges)
    return _made(Chars, found, found) if found else NOTHING


def text(said: str) -> Node:
    """A text, letter for letter."""
    return choices([said])


def choices(texts: Iterable[str]) -> Node:
    """One of some texts, many of them if need be. What has U+0000 or surrogates is left out."""
    words = tuple(
        sorted({one.encode() for one in texts if not any(c == "\0" or "\ud800" <= c <= "\udfff" for c in one)})
    )
    return _words(words, 0, len(words), 0) if words else NOTHING


def seq(*parts: Node) -> Node:
    """One after the other; EMPTY without any."""
    rest = EMPTY
    for part in reversed(parts):
        rest = _then(part, rest)
        host.check_interrupts()
    return rest


def either(*parts: Node) -> Node:
    """One of some; NOTHING without any."""
    flat: dict[Node, None] = {}
    for part in parts:
        flat.update(dict.fromkeys(part.parts if isinstance(part, Either) else (part,)))
    if len(flat) == 1:
        return next(iter(flat))
    return _made(Either, (frozenset(flat),), tuple(flat)) if flat else NOTHING


def repeat(part: Node, least: int = 0, most: int | None = None) -> Node:
    """Again and again: at least `least` times and at most `most`, None = any number. NOTHING where most is less than least."""
    if most is not None and most < least:
        return NOTHING
    if part.nullable:
        least = 0
    if most == 0 or part is EMPTY or (part is NOTHING and not least):
        return EMPTY
    if part is NOTHING or least == most == 1:
        return part
    if isinstance(part, Repeat) and _no_gap(part, least, most):
        most = None if most is None or part.most is None else most * part.most
        return repeat(part.part, least * part.least, most)
    return _made(Repeat, (part, least, most), part, least, most)


def optional(part: Node) -> Node:
    """Once, or not at all."""
    return repeat(part, 0, 1)


def without_far_bounds(node: Node, far: int) -> Node:
    """The same where repetition that is under way, and may go on more than `far` times, may do so for ever: the same texts of
    up to `far` bytes, and the same beginnings of longer ones. So states of a long repetition are alike."""
    if isinstance(node, Repeat) and node.most is not None and node.most > far:
        return repeat(node.part, node.least)
    if isinstance(node, Seq):
        first, rest = without_far_bounds(node.first, far), node.rest
        if isinstance(rest, Repeat):
            rest = without_far_bounds(rest, far)
        elif isinstance(rest, Seq) and isinstance(rest.first, Repeat):
            rest = _then(without_far_bounds(rest.first, far), rest.rest)
        return _then(first, rest)
    if isinstance(node, Either) and node.parts:
        return either(*(without_far_bounds(part, far) for part in node.parts))
    return node


def _no_gap(inner: Repeat, least: int, most: int | None) -> bool:
    """Whether (x{a,b}){c,d} is x{ac,bd}: all numbers between can be had. There is a gap after c times b if at all."""
    if least == most:
        return True
    return inner.least <= 1 or bool(
        least and (inner.most is None or inner.least - 1 <= least * (inner.most - inner.least))
    )


def _then(first: Node, rest: Node) -> Node:
    if first is NOTHING or rest is NOTHING:
        return NOTHING
    if first is EMPTY or rest is EMPTY:
        return rest if first is EMPTY else first
    return _made(Seq, (first, rest), first, rest)


def _words(words: tuple[bytes, ...], low: int, high: int, at: int) -> Node:
    """What remains of words[low:high] after `at` bytes. The node keeps the words, so that their id stays theirs."""
    if high == low + 1 and len(words[low]) == at:
        return EMPTY
    return _made(Words, (id(words), low, high, at), words, low, high, at)


def _bounded(found: list[First]) -> list[First]:
    if len(found) > MOST_FIRSTS:
        raise LimitExceeded(
            f"the constraint has more than {MOST_FIRSTS} ways to go on at some place",
            hint="Avoid optional parts in long rows, and counted repetition within counted repetition.",
        )
    return found
