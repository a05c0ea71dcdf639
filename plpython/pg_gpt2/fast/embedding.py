"""embedding: rows of a table, picked by integer ids. Its gradient touches only the rows that were picked."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..core.op import Grads, Sink, replace
from . import buffers, threads
from .elementwise import block_rows
from .panels import Table
from .products import gradient_buffer


def embedding(table: np.ndarray | Table, *, ids: Any) -> np.ndarray:  # [V, D] -> [*ids.shape, D]
    """table[ids]. For inference, the table may come in panels."""
    index = np.asarray(ids, np.int64)
    if isinstance(table, Table):
        return table.take(index)
    y = buffers.empty((*index.shape, table.shape[1]), table.dtype)
    flat, out = index.reshape(-1), y.reshape(-1, table.shape[1])

    def take(r: slice) -> None:
        np.take(table, flat[r], axis=0, out=out[r], mode="clip")

    threads.for_rows(len(flat), block_rows(len(flat), table.shape[1]), take)
    return y


def embedding_backward(
    dy: np.ndarray, y: Any, table: np.ndarray, *, ids: Any, sinks: Sequence[Sink | None] = (None,)
) -> Grads:
    """Each row of dy, added to its row of the table."""
    index = np.asarray(ids, np.int64).reshape(-1)
    dtable, add = gradient_buffer(sinks[0], table.shape, dy.dtype)
    if not add:
        dtable[...] = 0
    add_rows(dtable, index, dy.reshape(-1, table.shape[1]))
    return (dtable,)


def add_rows(table: np.ndarray, index: np.ndarray, rows: np.ndarray) -> None:  # [V, D], [n], [n, D]
    """table[index] += rows, columns in parallel.

    Repeated ids are added up first: the bits of a sum with other gradients of the table are then the same whether
    it is made here, in a sink, or later.
    """
    if not len(index):
        return
    order = np.argsort(index, kind="stable")
    ordered = index[order]
    starts = np.flatnonzero(np.concatenate(([True], ordered[1:] != ordered[:-1])))
    picked = ordered[starts]

    def work(c: slice) -> None:
        sums = rows[order, c]
        if len(starts) < len(order):
            sums = np.add.reduceat(sums, starts, axis=0)
        table[picked, c] += sums

    threads.for_rows(table.shape[1], block_rows(table.shape[1], len(index)), work)


replace("embedding", embedding, embedding_backward, sinks=True)
