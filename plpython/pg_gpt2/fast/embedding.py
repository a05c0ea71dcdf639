"""embedding: rows of a table, picked by integer ids. Its gradient touches only the rows that were picked."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import limits
from ..core.op import Sink, misfit, register
from ..errors import InvalidParameter
from . import buffers, threads
from .elementwise import block_rows
from .panels import Table
from .products import gradient_buffer

Grads = tuple[np.ndarray | None, ...]


def checked_ids(op: str, ids: Any, limit: int) -> np.ndarray:
    """`ids` as integers; 22023 when one is not in 0 .. limit - 1."""
    array = np.asarray(ids)
    if array.ndim >= limits.MOST_DIMENSIONS:
        raise InvalidParameter(
            f"{op}: ids of {array.ndim} dimensions; the most is {limits.MOST_DIMENSIONS - 1}",
            hint="ids are a list of token numbers, or a list of such lists.",
        )
    if array.size and not np.issubdtype(array.dtype, np.integer):
        raise InvalidParameter(f"{op}: ids must be integers, not {array.dtype}", hint="ids are token numbers from 0.")
    array = array.astype(np.int64, copy=False)
    if array.size and not (array.min() >= 0 and array.max() < limit):
        bad = array[(array < 0) | (array >= limit)][0]
        raise InvalidParameter(f"{op}: id {bad} is out of range", hint=f"Valid ids are 0 to {limit - 1}.")
    return array


def embedding(table: np.ndarray | Table, *, ids: Any) -> np.ndarray:  # [V, D] -> [*ids.shape, D]
    """table[ids]. For inference, the table may come in panels."""
    if table.ndim != 2:
        raise misfit("embedding", "the table is [V, D]", table=table.shape)
    index = checked_ids("embedding", ids, table.shape[0])
    if isinstance(table, Table):
        return table.take(index)
    y = buffers.empty((*index.shape, table.shape[1]), table.dtype)
    flat, out = index.reshape(-1), y.reshape(-1, table.shape[1])

    def take(r: slice) -> None:
        np.take(table, flat[r], axis=0, out=out[r], mode="clip")

    threads.for_rows(len(flat), block_rows(len(flat), table.shape[1]), take)
    return y


def embedding_backward(
    dy: np.ndarray, y: Any, table: np.ndarray, *, ids: Any, saved: Any = None, sinks: Sequence[Sink | None] = (None,)
) -> Grads:
    """Each row of dy, added to its row of the table."""
    index = checked_ids("embedding", ids, table.shape[0]).reshape(-1)
    dtable, add = gradient_buffer(sinks[0] if sinks else None, table.shape, dy.dtype)
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


register("embedding", embedding, embedding_backward, "table")
