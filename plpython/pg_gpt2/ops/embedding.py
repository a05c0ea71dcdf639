"""embedding: rows of a table, picked by integer ids. Its gradient touches only the rows that were picked."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import InvalidParameter
from . import buffers
from .op import Sink, misfit, register
from .products import gradient_buffer

Grads = tuple[np.ndarray | None, ...]


def checked_ids(op: str, ids: Any, limit: int) -> np.ndarray:
    """`ids` as integers; 22023 when one is not in 0 .. limit - 1."""
    array = np.asarray(ids)
    if array.size and not np.issubdtype(array.dtype, np.integer):
        raise InvalidParameter(f"{op}: ids must be integers, not {array.dtype}", hint="ids are token numbers from 0.")
    array = array.astype(np.int64, copy=False)
    if array.size and not (array.min() >= 0 and array.max() < limit):
        bad = array[(array < 0) | (array >= limit)][0]
        raise InvalidParameter(f"{op}: id {bad} is out of range", hint=f"Valid ids are 0 to {limit - 1}.")
    return array


def embedding(table: np.ndarray, *, ids: Any) -> np.ndarray:  # [V, D] -> [*ids.shape, D]
    """table[ids]."""
    if table.ndim != 2:
        raise misfit("embedding", "the table is [V, D]", table=table.shape)
    index = checked_ids("embedding", ids, table.shape[0])
    y = buffers.empty((*index.shape, table.shape[1]), table.dtype)
    np.take(table, index, axis=0, out=y, mode="clip")
    return y


def embedding_backward(
    dy: np.ndarray, y: Any, table: np.ndarray, *, ids: Any, saved: Any = None, sinks: Sequence[Sink | None] = (None,)
) -> Grads:
    """Each row of dy, added to its row of the table.

    Repeated ids are added up first: the bits of a sum with other gradients of the table are then the same whether
    it is made here, in a sink, or later.
    """
    index = checked_ids("embedding", ids, table.shape[0]).reshape(-1)
    dtable, add = gradient_buffer(sinks[0] if sinks else None, table.shape, dy.dtype)
    if not add:
        dtable[...] = 0
    rows = dy.reshape(-1, table.shape[1])
    picked, places = np.unique(index, return_inverse=True)
    if len(picked) < len(index):
        sums = np.zeros((len(picked), rows.shape[1]), rows.dtype)
        np.add.at(sums, places.reshape(-1), rows)
        dtable[picked] += sums
    else:
        dtable[index] += rows
    return (dtable,)


register("embedding", embedding, embedding_backward, "table")
