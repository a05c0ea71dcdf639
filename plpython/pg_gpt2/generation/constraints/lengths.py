"""How many characters a text of a grammar has, and what of a grammar has a length that is wanted."""

from collections.abc import Iterator

from ... import host
from ...errors import FeatureNotSupported
from .grammar import EMPTY, NOTHING, Chars, Either, Node, Repeat, Seq, Words, choices, either, repeat, seq

MOST_CUTS = 50_000  # looks at parts: most become a node
MOST_LEVELS = 120  # of recursion

Lengths = tuple[int, int | None]  # least and most characters, None = any number


def inside_out(node: Node) -> Iterator[Node]:
    """`node` and all within it, parts before wholes, each once; in a loop, since a pattern may be nested deeply."""
    seen: set[Node] = set()
    waiting: list[tuple[Node, bool]] = [(node, False)]
    while waiting:
        each, is_ready = waiting.pop()
        if is_ready:
            if not len(seen) % 1000:
                host.check_interrupts()
            yield each
        elif each not in seen:
            seen.add(each)
            waiting.append((each, True))
            waiting += [(part, False) for part in _parts(each)]


def _parts(node: Node) -> tuple[Node, ...]:
    if isinstance(node, Seq):
        return (node.first, node.rest)
    if isinstance(node, Either):
        return node.parts
    return (node.part,) if isinstance(node, Repeat) else ()


def texts(node: Words) -> Iterator[str]:
    """What the node stands for."""
    return (word[node.at :].decode() for word in node.words[node.low : node.high])


def of_length(node: Node, least: int, most: int | None) -> Node:
    """What of `node` has `least` to `most` characters.

    Where several parts one after the other vary in length, every way to share the length among them is a part of the result;
    0A000 where these are too many.
    """
    return _Cutter().cut(node, max(0, least), most, 0)


class _Cutter:
    def __init__(self) -> None:
        self.lengths: dict[Node, Lengths] = {}
        self.found: dict[tuple[Node, int, int | None], Node] = {}
        self.cuts = 0

    def length(self, node: Node) -> Lengths:
        """How long a text of `node` is."""
        if node not in self.lengths:
            for each in inside_out(node):
                self.lengths[each] = self._length(each)
        return self.lengths[node]

    def _length(self, node: Node) -> Lengths:
        """The same from the lengths of its parts."""
        if isinstance(node, Chars):
            return 1, 1
        if isinstance(node, Words):
            each = [len(one) for one in texts(node)]
            return min(each), max(each)
        if isinstance(node, Seq):
            (low, high), (more_low, more_high) = self.lengths[node.first], self.lengths[node.rest]
            return low + more_low, None if high is None or more_high is None else high + more_high
        if isinstance(node, Either) and node.parts:
            ends = [self.lengths[part] for part in node.parts]
            known = [most for _, most in ends if most is not None]
            return min(least for least, _ in ends), max(known) if len(known) == len(ends) else None
        if isinstance(node, Repeat):
            low, high = self.lengths[node.part]
            return node.least * low, None if node.most is None or high is None else node.most * high
        return 0, 0

    def cut(self, node: Node, least: int, most: int | None, level: int) -> Node:
        """The texts of `node` with `least` to `most` characters."""
        self.cuts += 1
        if self.cuts > MOST_CUTS or level > MOST_LEVELS:
            raise FeatureNotSupported(
                "minLength or maxLength together with this pattern is too much: several parts of it vary in length",
                hint="Say the lengths in the pattern, such as ^[a-z]{1,20}$.",
            )
        low, high = self.length(node)
        if least <= low and (most is None or (high is not None and high <= most)):
            return node
        if (most is not None and low > most) or (high is not None and high < least):
            return NOTHING
        key = node, least, most
        if key not in self.found:
            self.found[key] = self._cut(node, least, most, level + 1)
        return self.found[key]

    def _cut(self, node: Node, least: int, most: int | None, level: int) -> Node:
        if isinstance(node, Words):
            return choices(one for one in texts(node) if least <= len(one) and (most is None or len(one) <= most))
        if isinstance(node, Either):
            return either(*(self.cut(part, least, most, level) for part in node.parts))
        if isinstance(node, Repeat):
            return self._cut_repeat(node, least, most, level)
        assert isinstance(node, Seq)  # all others have one length
        fixed = []
        rest: Node = node
        while isinstance(rest, Seq) and self.length(rest.first)[0] == self.length(rest.first)[1]:
            fixed.append(rest.first)
            least, most = max(0, least - self.length(rest.first)[0]), self._less(most, self.length(rest.first)[0])
            rest = rest.rest
        if isinstance(rest, Seq):
            return seq(*fixed, self._shared(rest.first, rest.rest, least, most, level))
        return seq(*fixed, self.cut(rest, least, most, level))

    @staticmethod
    def _less(most: int | None, length: int) -> int | None:
        return None if most is None else most - length

    def _shared(self, first: Node, rest: Node, least: int, most: int | None, level: int) -> Node:
        """`first` and `rest`, which have `least` to `most` characters together."""
        (low, high), (rest_low, rest_high) = self.length(first), self.length(rest)
        if rest_low == rest_high:
            return seq(self.cut(first, max(0, least - rest_low), self._less(most, rest_low), level), rest)
        # From so many characters of `first` on, `rest` may have any length.
        free = max(least - rest_low, low)
        last = free - 1 if most is None else most - rest_low
        last = last if high is None else min(last, high)
        if last - low > MOST_CUTS:
            last = low + MOST_CUTS + 1  # this many are refused
        parts = [
            seq(self.cut(first, n, n, level), self.cut(rest, max(0, least - n), self._less(most, n), level))
            for n in range(low, last + 1)
        ]
        if most is None:
            parts.append(seq(self.cut(first, free, None, level), rest))
        return either(*parts)

    def _cut_repeat(self, node: Repeat, least: int, most: int | None, level: int) -> Node:
        size, largest = self.length(node.part)
        if size == largest:
            ends = [end for end in (node.most, None if most is None else most // size) if end is not None]
            return repeat(node.part, max(node.least, -(-least // size)), min(ends, default=None))
        more = repeat(node.part, max(0, node.least - 1), None if node.most is None else node.most - 1)
        nothing = EMPTY if not node.least and not least else NOTHING
        first = node.part if size else self.cut(node.part, 1, None, level)  # one that is empty changes nothing
        return either(nothing, self._shared(first, more, least, most, level))
