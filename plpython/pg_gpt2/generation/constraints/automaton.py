"""The deterministic automaton of a grammar over the bytes of UTF-8, made as far as it is used.

A state is a grammar node: what may still follow. Rows of a table say which state comes after which byte; they have numbers, which
hold until the next `renew`. A state from which nothing leads to an end is no state: its number is 0.
"""

from itertools import pairwise

import numpy as np

from ... import host
from ...errors import LimitExceeded
from .grammar import NOTHING, First, Node, either

MOST_NESTED = 200  # levels of a grammar: each takes some calls within calls
MANY_STATES = 1 << 14  # 16 MB: with so many the table is begun anew
LONGEST = 2**62  # what a longer shortest text counts as


class Automaton:
    """States by number, and the table of their successors."""

    def __init__(self, node: Node) -> None:
        if node.depth > MOST_NESTED:
            raise LimitExceeded(
                f"the constraint is nested {node.depth} levels deep, and {MOST_NESTED} are the most",
                hint="Nest groups that repeat, or that have alternatives, less deeply.",
            )
        self.node = node
        self._begin()

    def _begin(self) -> None:
        self.nodes: list[Node] = []
        self.table = np.zeros((256, 256), np.int32)  # [state, byte] -> state
        self.shortest = np.zeros(256, np.int64)  # [state] -> bytes to the nearest end
        self._filled = np.zeros(256, bool)  # whether the row of a state is made
        self._numbers: dict[Node, int] = {}
        self.number(NOTHING)
        self._filled[0] = True
        self.shortest[0] = LONGEST

    def renew(self) -> None:
        """Forget all numbers when there are many."""
        if len(self.nodes) > MANY_STATES:
            self._begin()

    def number(self, node: Node) -> int:
        """The number of a state."""
        found = self._numbers.get(node)
        if found is None:
            found = self._numbers[node] = len(self.nodes)
            self.nodes.append(node)
            if found == len(self.table):
                self._grow(2 * found)
            self.shortest[found] = min(node.shortest, LONGEST)
        return found

    def _grow(self, size: int) -> None:
        host.require_memory(2 * 1040 * size, f"a constraint's {size} states")
        for name in ("table", "shortest", "_filled"):
            old = getattr(self, name)
            new = np.zeros((size, *old.shape[1:]), old.dtype)
            new[: len(old)] = old
            setattr(self, name, new)

    def fill_all(self, numbers: np.ndarray) -> None:
        """Make the rows of some states, where that was not done."""
        missing = numbers[~self._filled[numbers]]
        for number in np.unique(missing).tolist():
            self._fill(number)

    def _fill(self, number: int) -> None:
        host.check_interrupts()
        ordered = sorted(self.nodes[number].firsts(), key=_range)
        if any(low <= end for (_, end, _), (low, _, _) in pairwise(ordered)):
            ordered = _apart(ordered)
        for low, high, rest in ordered:
            following = self.number(rest)  # which may make another table
            self.table[number, low : high + 1] = following
        self._filled[number] = True

    def row(self, number: int) -> np.ndarray:  # [256]
        """The states after each byte."""
        if not self._filled[number]:
            self._fill(number)
        return self.table[number]

    def step(self, number: int, byte: int) -> int:
        """The state after a byte."""
        if not self._filled.item(number):
            self._fill(number)
        return self.table.item(number, byte)

    def nearest(self, number: int) -> int:
        """The byte after which the end is nearest, the lowest of some."""
        after = self.row(number)
        return int(np.argmin(self.shortest[after]))

    def after(self, node: Node, data: bytes) -> Node:
        """The state after some bytes; NOTHING where they do not fit."""
        number = self.number(node)
        for byte in data:
            number = self.step(number, byte)
        return self.nodes[number]


def _range(first: First) -> tuple[int, int]:
    return first[:2]


def _apart(firsts: list[First]) -> list[First]:
    """The same with ranges that do not overlap, and all that may remain after each."""
    rests: dict[tuple[int, int], list[Node]] = {}
    for low, high, rest in firsts:
        rests.setdefault((low, high), []).append(rest)
    cuts = sorted({cut for low, high in rests for cut in (low, high + 1)})
    found = []
    for start, end in pairwise(cuts):
        covering = [rest for (low, high), some in rests.items() if low <= start <= high for rest in some]
        if covering:
            found.append((start, end - 1, either(*covering)))
    return found
