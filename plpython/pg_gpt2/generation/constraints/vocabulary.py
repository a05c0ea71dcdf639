"""The tokens of a vocabulary as a tree of their bytes, which is walked together with an automaton."""

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from ... import host
from ...errors import InconsistentData
from .automaton import Automaton

MOST_TOKEN = 1024  # bytes: longer tokens are never taken
BYTES_A_BYTE = 100  # of memory, for each byte of a token
ROOT = -1  # place of the node that is none
FEW = 1000  # nodes below those where a walk is: so many are looked at one by one, more a level at a time
_NEEDED = {*range(1, 0xF5)} - {0xC0, 0xC1}  # bytes of UTF-8


class _Level(NamedTuple):
    """Nodes of the same depth; those that have the same parent follow each other."""

    parents: np.ndarray  # [n], places in the level above
    bytes: np.ndarray  # [n]
    ends: np.ndarray  # [t], places of nodes where a token ends
    tokens: np.ndarray  # [t], their ids


class Vocabulary:
    """The tree. Of tokens with the same bytes each has a node of its own.

    For a walk level by level there are arrays of each level, for one node by node lists of all nodes.
    """

    def __init__(self, tokens: Mapping[int, bytes]) -> None:
        """22000 where the token of a byte is missing, so that some text could not be said."""
        self.tokens = tokens
        lacking = _NEEDED - {data[0] for data in tokens.values() if len(data) == 1}
        if lacking:
            raise InconsistentData(
                f"the vocabulary has no token of the byte {min(lacking)}, which a constrained text may need",
                hint="Take a vocabulary with a token for each byte, as GPT-2's has, and another token for the end of text.",
            )
        ids = sorted((i for i, data in tokens.items() if 0 < len(data) <= MOST_TOKEN), key=lambda i: (tokens[i], i))
        host.require_memory(BYTES_A_BYTE * sum(len(tokens[i]) for i in ids), f"{len(ids)} tokens as a tree")
        self.longest = max(len(tokens[i]) for i in ids)
        self._ids = max(ids) + 1
        self._levels = list(_levels(ids, [tokens[i] for i in ids]))
        self._under = self._count_under()
        self._make_lists()

    def _count_under(self) -> list[np.ndarray]:
        """How many nodes are below each, by level."""
        found = [np.zeros(len(level.bytes), np.int64) for level in self._levels]
        for level, above, under in zip(self._levels[:0:-1], found[-2::-1], found[:0:-1]):
            np.add.at(above, level.parents, under + 1)
        return found

    def _make_lists(self) -> None:
        sizes = [len(level.bytes) for level in self._levels]
        self._starts = np.cumsum([0, *sizes]).tolist()  # the number of each level's first node
        counts = [np.bincount(level.parents, minlength=size) for level, size in zip(self._levels[1:], sizes)]
        ends = sizes[0] + np.cumsum(np.concatenate([*counts, np.zeros(sizes[-1], np.int64)]))
        self._children = list(map(range, [sizes[0], *ends.tolist()], ends.tolist()))
        self._bytes = np.concatenate([level.bytes for level in self._levels]).tolist()
        tokens = np.full(self._starts[-1], -1, np.int64)
        for start, level in zip(self._starts, self._levels):
            tokens[start + level.ends] = level.tokens
        self._tokens = tokens.tolist()

    def child(self, place: int, byte: int) -> int | None:
        """The place of the node below one, or below ROOT, that has a byte."""
        children = self._children[place] if place != ROOT else range(self._starts[1])
        found = bisect_right(self._bytes, byte, children.start, children.stop) - 1
        return found if found >= children.start and self._bytes[found] == byte else None

    def is_token(self, place: int) -> bool:
        """Whether a token ends at a node."""
        return self._tokens[place] >= 0

    def walk(self, automaton: Automaton, state: int) -> tuple[np.ndarray, np.ndarray, int]:
        """Tokens that may come in a state, ascending, the state after each, and how many nodes were looked at."""
        after = np.zeros(self._ids, np.int32)  # [id] -> state, 0 = none
        states = np.array([state], np.int32)
        looked_at = 0
        for start, level, under in zip(self._starts, self._levels, self._under):
            automaton.fill_all(states)
            states = automaton.table[states[level.parents], level.bytes]
            after[level.tokens] = states[level.ends]
            alive = np.flatnonzero(states)
            looked_at += len(states)
            host.check_interrupts()
            if (few := int(under[alive].sum())) <= FEW:
                self._walk_few(automaton, (start + alive).tolist(), states[alive].tolist(), after)
                looked_at += few
                break
        ids = np.flatnonzero(after)
        return ids.astype(np.int32), after[ids], looked_at

    def _walk_few(self, automaton: Automaton, nodes: list[int], states: list[int], after: np.ndarray) -> None:
        """The same below some nodes, one by one."""
        tokens, data, children, step = self._tokens, self._bytes, self._children, automaton.step
        open_nodes = list(zip(nodes, states))
        while open_nodes:
            parent, before = open_nodes.pop()
            for node in children[parent]:
                state = step(before, data[node])
                if state:
                    if tokens[node] >= 0:
                        after[tokens[node]] = state
                    if children[node]:
                        open_nodes.append((node, state))


def _levels(ids: Sequence[int], texts: Sequence[bytes]) -> Iterator[_Level]:
    """Level by level, of tokens sorted by their bytes, so that those below a node stand together."""
    tokens, lengths = np.array(ids), np.array(list(map(len, texts)))
    starts = np.cumsum(lengths) - lengths
    parents = np.zeros(len(ids), np.int64)
    text = np.frombuffer(b"".join(texts), np.uint8)
    for depth in range(1, int(lengths.max()) + 1):
        host.check_interrupts()
        going_on = lengths >= depth
        tokens, lengths, starts, parents = (part[going_on] for part in (tokens, lengths, starts, parents))
        data, ends = text[starts + depth - 1], lengths == depth
        new = np.ones(len(tokens), bool)  # whether a token begins another node than the one before it
        new[1:] = (parents[1:] != parents[:-1]) | (data[1:] != data[:-1]) | (ends[1:] & ends[:-1])
        places = np.cumsum(new) - 1
        yield _Level(parents[new], data[new], places[ends], tokens[ends])
        parents = places
