"""Attention of the rows of a tree: each sees all positions that a stream has read, its ancestors in the tree, and itself.

Nothing of a tree is kept, so its keys and values are what the pass just made, and only those before it come from a cache.
"""

from collections.abc import Callable

import numpy as np

from . import buffers, slices, threads
from .attend import factor_of

ROWS = 64  # at a time

Score = Callable[[np.ndarray, np.ndarray], object]  # (q [H, c, d], out [H, c, m]): out = q keys' of what was read


def attend_tree(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    mask: np.ndarray,
    score: Score,
    values: np.ndarray,
    out: np.ndarray,
    factor: float | None = None,
) -> None:  # [H, n, d] each, [n, n], of what was read [H, m, d], [H, n, d]
    """out = softmax([scores of what was read, factor q k' + mask]) [values, v]; no factor = 1 / sqrt(d)."""
    n_head, n, d = q.shape
    m, by = values.shape[1], factor_of(d, factor)
    for rows in slices.pieces(n, ROWS):
        threads.look()
        scaled = np.multiply(q[:, rows], by, out=buffers.scratch("queries", (n_head, *q[0, rows].shape), q.dtype))
        z = buffers.scratch("scores", (n_head, scaled.shape[1], m + n), q.dtype)
        score(scaled, z[..., :m])
        np.matmul(scaled, k.swapaxes(-1, -2), out=z[..., m:])
        z[..., m:] += mask[rows]
        z -= z.max(axis=-1, keepdims=True)
        total = np.exp(z, out=z).sum(axis=-1, keepdims=True)
        mixed = np.matmul(z[..., :m], values)
        mixed += np.matmul(z[..., m:], v)
        np.divide(mixed, total, out=out[:, rows])
