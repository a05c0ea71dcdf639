"""Weights out of their panels, a piece at a time: what a backward pass computes with weights that it leaves as they are.

For a product with the transpose, panels are too narrow: BLAS would add up 64 terms at a time. The copy costs 5 % of a product
with 256 rows.
"""

from collections.abc import Callable
from functools import partial

import numpy as np

from . import buffers, slices
from .panels import PARALLEL_FLOPS, WIDTH, Panels, Table
from .products import least_pieces

MOST_COPIED = 8 << 20  # bytes at a time


def rows(w: np.ndarray | Panels, part: slice) -> np.ndarray:  # [K, N] -> [part, N]
    """Some rows of a matrix in either layout: perhaps in memory of the thread, valid until it asks for others."""
    if isinstance(w, Table):
        first = part.start // WIDTH
        whole = _rows(w.data[first : -(-part.stop // WIDTH)], slice(0, w.shape[1]))
        return whole[:, part.start - first * WIDTH : part.stop - first * WIDTH].T
    return _rows(w.data, part)[:, : w.shape[1]] if isinstance(w, Panels) else w[part]


def _rows(data: np.ndarray, part: slice) -> np.ndarray:  # [P, K, w] -> [part, P w]
    found = buffers.scratch("rows", (part.stop - part.start, len(data), data.shape[2]), data.dtype)
    np.copyto(found, data[:, part].swapaxes(0, 1))
    return found.reshape(len(found), -1)


def tasks_with_transpose(
    x: np.ndarray, w: Panels, out: np.ndarray
) -> list[Callable[[], object]]:  # [m, N], [K, N] -> [m, K]
    """Tasks that together set out = x @ w'."""
    k, n = w.shape
    least = 1 if 2.0 * len(x) * k * n < PARALLEL_FLOPS else 2
    count = max(least, least_pieces(len(x), n, k), -(-4 * k * n // MOST_COPIED))

    def work(part: slice) -> None:
        np.matmul(x, rows(w, part).T, out=out[:, part])

    return [partial(work, part) for part in slices.pieces(k, -(-k // (16 * count)) * 16)]
