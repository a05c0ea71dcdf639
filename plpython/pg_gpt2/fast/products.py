"""Matrix products on all cores: the result is cut into fixed pieces, each one BLAS call on views of the operands.

The cut depends on the shapes alone, so the bits of a product do not depend on the number of threads.
"""

from collections.abc import Callable, Sequence
from math import ceil
from typing import Any

import numpy as np

from ..core.op import Sink
from . import buffers, slices, threads
from .blas import add_product

PIECE_FLOPS = 2.5e9  # about 10 ms of one core: BLAS packs its operands again for each piece, which costs 10 % at 2 ms
LEAST_FLOPS = 5e6  # a smaller piece costs more to hand over than it saves
MOST_PIECES = 32  # unless a piece then takes longer than a session may be deaf:
LONGEST_FLOPS, LONGEST_RESULT, LONGEST_OPERAND = 1e10, 1 << 23, 1 << 25  # of a piece
FEW_ROWS = 32  # below: BLAS has faster ways than sgemm, which np.matmul knows


def product(a: np.ndarray, b: np.ndarray, out: np.ndarray | None = None, **options: Any) -> np.ndarray:
    """[m,k] @ [k,n] -> [m,n]; see `product_tasks`."""
    if out is None:
        out = buffers.empty((a.shape[0], b.shape[1]), np.result_type(a, b))
    run_all(product_tasks(a, b, out, **options))
    return out


def product_tasks(
    a: np.ndarray,
    b: np.ndarray,
    out: np.ndarray,
    *,
    bias: np.ndarray | None = None,
    accumulate: bool = False,
    paired: bool = False,
) -> list[Callable[[], None]]:
    """Tasks that together set out = a @ b (+ bias), or add that to out. Transposed operands are passed as views.

    `paired`: another product of the same size runs beside it, so that two cores have work with each one whole.
    """
    (m, k), n = a.shape, b.shape[1]
    count = max(_n_pieces(2.0 * m * k * n, 1 if paired else 2), least_pieces(m, k, n))
    if m > n:
        rows = slices.pieces(m, _size(m, count))
        return [lambda r=r: _piece(a[r], b, out[r], bias, accumulate) for r in rows]  # type: ignore[misc]
    columns = slices.pieces(n, _size(n, count))
    return [
        lambda c=c: _piece(a, b[:, c], out[:, c], None if bias is None else bias[c], accumulate)  # type: ignore[misc]
        for c in columns
    ]


def _piece(a: np.ndarray, b: np.ndarray, out: np.ndarray, bias: np.ndarray | None, accumulate: bool) -> None:
    if bias is not None and len(a) >= FEW_ROWS:
        out[...] = bias
        accumulate, bias = True, None
    if accumulate:
        add_product(a, b, out)
    else:
        np.matmul(a, b, out=out)
    if bias is not None:
        out += bias


def least_pieces(m: int, k: int, n: int) -> int:
    """Into how many pieces a product is cut at least, so that none takes 100 ms."""
    bounds = (2.0 * m * k * n / LONGEST_FLOPS, m * n / LONGEST_RESULT, max(m, n) * k / LONGEST_OPERAND)
    return ceil(max(bounds))


def _n_pieces(flops: float, least: int) -> int:
    if flops < 2 * LEAST_FLOPS:
        return 1
    return min(MOST_PIECES, least * max(1, round(flops / (least * PIECE_FLOPS))))


def _size(total: int, count: int) -> int:
    """Length of a piece: whole vector registers, `count` pieces or fewer."""
    return -(-total // (count * 16)) * 16


def gradient_buffer(sink: Sink | None, shape: tuple[int, ...], dtype: np.dtype) -> tuple[np.ndarray, bool]:
    """Where to put a gradient, and whether to add to what is there."""
    if sink is None:
        return buffers.empty(shape, dtype), False
    filled, sink.filled = sink.filled, True
    return sink.array.reshape(shape), filled


def run_all(*groups: Sequence[Callable[[], object]]) -> None:
    """Run the tasks of all groups on all cores."""
    threads.run([task for group in groups for task in group])


def column_sums(x: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """[m,n] -> [n], as a product with ones: the fast way down the rows."""
    return np.matmul(np.ones(x.shape[0], x.dtype), x, out=out)


def as_rows(x: np.ndarray) -> np.ndarray:
    """[.., n] -> [m,n], without copying where x is contiguous."""
    return x.reshape(-1, x.shape[-1])
