"""What shares a pass: pieces of texts that streams read, and trees of tokens that follow them."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from ..fast.cache import Cache
from .trees import Tree

Ids = Sequence[int] | np.ndarray


class Piece(NamedTuple):
    """Rows of a pass: tokens that a stream reads from a position on, or a tree of them, which it does not keep."""

    number: int  # of the stream
    cache: Cache
    start: int
    tokens: np.ndarray
    tree: Tree | None

    @property
    def positions(self) -> np.ndarray:
        """[rows]."""
        return self.start + (np.arange(len(self.tokens)) if self.tree is None else self.tree.depths)

    @property
    def wanted(self) -> np.ndarray:
        """The rows that somebody reads: of a text only the last."""
        return np.arange(len(self.tokens))[-1 if self.tree is None else 0 :]

    def attend(
        self, layer: int, qkv: np.ndarray, out: np.ndarray, factor: float | None
    ) -> None:  # [rows, 3D], [rows or those wanted, D]
        """Attention of these rows; keys and values of a text are kept."""
        if self.tree is None:
            self.cache.attend(layer, qkv, out, self.start, factor)
        else:
            self.cache.attend_tree(layer, qkv, out, self.start, self.tree.mask, factor)


def packed(
    caches: Sequence[Cache], starts: Sequence[int], texts: Sequence[Ids], trees: Sequence[Tree], rows: int
) -> Iterator[list[Piece]]:
    """Pieces of each text, which is read from `start` on, and its tree after it: those that share a pass of so many rows.

    A tree is in one piece, be it larger.
    """
    pieces: list[Piece] = []
    room = rows
    for number, (cache, start, text, tree) in enumerate(zip(caches, starts, texts, trees)):
        ids = np.asarray(text, np.int64)
        while len(ids):
            some, ids = ids[:room], ids[room:]
            pieces.append(Piece(number, cache, start, some, None))
            start, room = start + len(some), room - len(some)
            if not room:
                yield pieces
                pieces, room = [], rows
        if len(tree) > room and pieces:
            yield pieces
            pieces, room = [], rows
        if len(tree):
            pieces.append(Piece(number, cache, start, tree.tokens, tree))
            room = max(1, room - len(tree))
    if pieces:
        yield pieces
