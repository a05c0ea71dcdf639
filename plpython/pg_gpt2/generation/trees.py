"""Texts that begin alike as a tree of tokens, each of which is read once; and such a tree in parts that fit a pass.

A tree is read after what a stream has read, and changes nothing there: see `Decoder.feed_tree`.
"""

from array import array
from collections.abc import Iterator, Sequence
from functools import cached_property
from heapq import merge

import numpy as np

from .. import host
from ..fast import slices
from ..tensor import FLOAT32

CHECKED, SORTED = 1000, 1 << 15  # texts that are gone through, and that are sorted, between two looks for an interrupt


class Tree:
    """n tokens; the parent of each is an earlier one by its number, or -1, the end of what was read before."""

    def __init__(self, tokens: Sequence[int] | np.ndarray, parents: Sequence[int] | np.ndarray) -> None:
        self.tokens, self.parents = np.asarray(tokens, np.int64), np.asarray(parents, np.int64)

    def __len__(self) -> int:
        return len(self.tokens)

    @cached_property
    def mask(self) -> np.ndarray:
        """[n, n]: 0 where a token follows another or is it, else -inf."""
        mask = np.full((len(self), len(self)), -np.inf, FLOAT32)
        for token, parent in enumerate(self.parents.tolist()):
            if parent >= 0:
                mask[token, :token] = mask[parent, :token]
            mask[token, token] = 0
        return mask

    @cached_property
    def depths(self) -> np.ndarray:
        """[n]: how many tokens lead to each, itself not counted."""
        depths = np.zeros(len(self), np.int64)
        for token, parent in enumerate(self.parents.tolist()):
            if parent >= 0:
                depths[token] = depths[parent] + 1
        return depths


NO_TREE = Tree([], [])


class Trie:
    """Texts as a tree of tokens, and where the log-probability of each token of each text is to be found.

    A text's last token needs no pass, unless another text goes on from it. Row 0 is what was read before the texts, row 1 + i the
    i-th token of the tree: what stands there says what may follow.
    """

    def __init__(self, texts: Sequence[list[int]]) -> None:
        self.n_texts = len(texts)
        tokens, parents = array("q"), array("q")
        rows, follow, numbers = array("q"), array("q"), array("q")
        path = [0]  # rows that lead through the text
        before: list[int] = []
        for number in _sorted(texts):
            text = texts[number]
            del path[1 + common(before[: len(path) - 1], text[:-1]) :]
            for token in text[len(path) - 1 : -1]:
                parents.append(path[-1] - 1)
                tokens.append(token)
                path.append(len(tokens))
            rows.extend(path[: len(text)])
            follow.extend(text)
            numbers.extend([number] * len(text))
            before = text
        self.tree = Tree(tokens, parents)
        order = np.argsort(rows, kind="stable")
        self.rows, self.tokens, self._texts = (np.asarray(each, np.int64)[order] for each in (rows, follow, numbers))

    def __len__(self) -> int:
        return 1 + len(self.tree)

    def add_up(self, logprobs: np.ndarray) -> np.ndarray:
        """The log-probability of each text, of those that are wanted for `rows` and `tokens`."""
        return np.bincount(self._texts, logprobs, self.n_texts)

    def parts(self, size: int) -> Iterator[tuple[Tree, int]]:
        """The tree in parts of `size` tokens, to each of which what leads to it is added: so many tokens come before its own."""
        if len(self.tree) <= size:
            yield self.tree, 0
            return
        tokens, parents = self.tree.tokens, self.tree.parents
        for first in range(0, len(tokens), size):
            last = min(first + size, len(tokens))
            leading = _ancestors(parents, first)
            chosen = np.concatenate([leading, np.arange(first, last)])
            place = {number: place for place, number in enumerate(chosen.tolist())} | {-1: -1}
            yield Tree(tokens[chosen], [place[parent] for parent in parents[chosen].tolist()]), len(leading)


def _ancestors(parents: np.ndarray, number: int) -> np.ndarray:
    """Those of a token, which come first in the tree; of what follows it, too, all that come before it."""
    found = []
    while (number := int(parents[number])) >= 0:
        found.append(number)
    return np.array(found[::-1], np.int64)


def _sorted(texts: Sequence[list[int]]) -> Iterator[int]:
    """Numbers of the texts in the order of their tokens, with looks for an interrupt."""
    runs = []
    for some in slices.pieces(len(texts), SORTED):
        runs.append(sorted(range(some.start, some.stop), key=texts.__getitem__))
        host.check_interrupts()
    for count, number in enumerate(merge(*runs, key=texts.__getitem__) if len(runs) > 1 else runs[0]):
        if count % CHECKED == 0:
            host.check_interrupts()
        yield number


def common(a: list[int], b: list[int]) -> int:
    """How many tokens both begin with."""
    most = min(len(a), len(b))
    if a[:most] == b[:most]:
        return most
    return next(place for place in range(most) if a[place] != b[place])
