"""The core of causal attention, in chunks of query rows: scores of a chunk against the keys it may see, never T x T.

`attend` serves training and KV-cached decoding alike; q, k and v may be strided views. The backward pass recomputes
the exponentials (as Dao et al. 2022) and stores none. All of it runs on the calling thread.
"""

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
from numpy.lib.stride_tricks import as_strided

from ..core.ops import CHUNK
from . import buffers, panels, slices, threads

BLOCK = 64  # keys that are multiplied at a time
GROUP_ROWS = (16, 8)  # of a large product, which make it small ones
FEW_ROWS = 128  # of queries: their products are not worth a copy of the keys
LEAST, MOST = 2.0**-80, 2.0**80  # sums of exponentials that need no shift


@lru_cache(maxsize=8)
def _future(rows: int, dtype: np.dtype) -> np.ndarray:
    """[rows, rows]: -inf where the key comes after the query, else 0."""
    return np.triu(np.full((rows, rows), -np.inf, dtype), 1)


@lru_cache(maxsize=64)
def _ones(n: int, dtype: np.dtype) -> np.ndarray:
    """[n, 1]: a product with it adds up rows, faster than `sum` does over so few values."""
    return np.ones((n, 1), dtype)


def _chunks(t: int, offset: int, chunk: int) -> Iterator[tuple[slice, int]]:
    """(query rows, number of keys the last of them sees)."""
    for rows in slices.pieces(t, chunk):
        yield rows, offset + rows.stop


def factor_of(d: int, factor: float | None) -> float:
    """What scores are multiplied with, where heads are d wide: `factor`, or 1 / sqrt(d)."""
    return d**-0.5 if factor is None else factor


def _scaled(q: np.ndarray, factor: float | None) -> np.ndarray:
    """q times the factor of scores, in scratch."""
    return np.multiply(q, factor_of(q.shape[-1], factor), out=buffers.scratch("queries", q.shape, q.dtype))


class _Columns:
    """x' for products y x' with the first rows of x [.., n, d]: in blocks [d, BLOCK], unless only few rows are to be multiplied.

    OpenBLAS has fast kernels for small matrices, but not for a transposed second one: a block is copied once and then used by
    all chunks.
    """

    def __init__(self, slot: str, x: np.ndarray, rows: int) -> None:
        self._x = x
        self._blocks = None
        if rows >= FEW_ROWS:
            *lead, n, d = x.shape
            self._blocks = buffers.scratch(slot, (*lead, -(-n // BLOCK), d, BLOCK), x.dtype)
            whole = n - n % BLOCK
            if whole:
                np.copyto(self._blocks[..., : whole // BLOCK, :, :], _in_blocks(x[..., :whole, :]).swapaxes(-1, -2))
            if whole < n:
                np.copyto(self._blocks[..., -1, :, : n - whole], x[..., whole:, :].swapaxes(-1, -2))

    def times(self, y: np.ndarray, end: int, out: np.ndarray) -> None:  # [.., c, d] -> [.., c, end]
        """out = y x[:end]'."""
        if self._blocks is None:
            np.matmul(y, self._x[..., :end, :].swapaxes(-1, -2), out=out)
            return
        whole = end - end % BLOCK
        if whole:
            blocks = out[..., :whole].reshape(*out.shape[:-1], -1, BLOCK).swapaxes(-2, -3)
            np.matmul(y[..., None, :, :], self._blocks[..., : whole // BLOCK, :, :], out=blocks)
        if whole < end:
            np.matmul(y, self._blocks[..., whole // BLOCK, :, : end - whole], out=out[..., whole:])


def _small() -> int:
    """m n k of the largest product that BLAS has kernels for small matrices for; 0 where it has none."""
    return panels.SMALL if panels.small_kernels() else 0


def _in_rows(x: np.ndarray, rows: int) -> np.ndarray:
    """x [.., n, d], or a copy, so that products of that many rows with it are fast: one matrix without gaps between its rows."""
    if rows < FEW_ROWS or x.strides[-2] == x.shape[-1] * x.itemsize:
        return x
    copy = buffers.scratch("rows", x.shape, x.dtype)
    np.copyto(copy, x)
    return copy


def _times(y: np.ndarray, x: np.ndarray, out: np.ndarray) -> np.ndarray:  # [.., c, n], [.., n, d] -> [.., c, d]
    """out = y x; in groups of rows where that makes small products of a large one. y and out have no gaps."""
    *lead, c, n = y.shape
    d = x.shape[-1]
    if c * n * d > _small():
        for rows in GROUP_ROWS:
            if c % rows == 0 and rows * n * d <= _small():
                groups = (*lead, c // rows, rows)
                np.matmul(y.reshape(*groups, n), x[..., None, :, :], out=out.reshape(*groups, d))
                return out
    return np.matmul(y, x, out=out)


def _in_blocks(x: np.ndarray) -> np.ndarray:  # [.., n, d] -> [.., n / BLOCK, BLOCK, d]
    """A view of the rows of x in blocks."""
    down = x.strides[-2]
    return as_strided(
        x, (*x.shape[:-2], x.shape[-2] // BLOCK, BLOCK, x.shape[-1]), (*x.strides[:-2], BLOCK * down, *x.strides[-2:])
    )


def _scores(q: np.ndarray, keys: _Columns, end: int) -> np.ndarray:
    """[.., c, d] -> [.., c, end]: q k', -inf for keys after the query (the last query sees all)."""
    z = buffers.scratch("scores", (*q.shape[:-1], end), q.dtype)
    keys.times(q, end, z)
    z[..., end - q.shape[-2] :] += _future(q.shape[-2], q.dtype)
    return z


def _exponentials(q: np.ndarray, keys: _Columns, end: int) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """exp(scores - top) [.., c, end], their sums and top [.., c, 1].

    The maximum of so few values is slow to find, and nearly always needless: a row is shifted by its maximum only
    where its sum would leave the range of numbers. None for top: no row is.
    """
    z = _scores(q, keys, end)
    ones = _ones(end, q.dtype)
    with np.errstate(over="ignore", invalid="ignore"):
        total = np.exp(z, out=z) @ ones
        if total.min() > LEAST and total.max() < MOST:
            return z, total, None
        usable = (total > LEAST) & (total < MOST)
        z = _scores(q, keys, end)
        top = np.where(usable, 0, z.max(axis=-1, keepdims=True)).astype(z.dtype)
        z -= top
        return z, np.exp(z, out=z) @ ones, top


def attend(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    out: np.ndarray,
    offset: int = 0,
    chunk: int = CHUNK,
    *,
    factor: float | None = None,
    norms: np.ndarray | None = None,
    p: float = 0.0,
    masks: np.ndarray | None = None,
) -> None:  # [.., t, d], [.., n, d], [.., n, d], [.., t, d]
    """out = softmax(factor q k') v, where query i sees the keys 0 .. offset + i; no factor = 1 / sqrt(d).

    norms [2, .., t, 1] receives each row's shift and sum of exponentials: together they give exactly the same
    probabilities again, which a log-sum-exp does not. Probabilities are dropped with `p` where masks [.., t, n] is 0.
    """
    keys, v = _Columns("keys", k, q.shape[-2]), _in_rows(v, q.shape[-2])
    for rows, end in _chunks(q.shape[-2], offset, chunk):
        threads.look()
        z, total, top = _exponentials(_scaled(q[..., rows, :], factor), keys, end)
        if norms is not None:
            norms[0, ..., rows, :], norms[1, ..., rows, :] = 0 if top is None else top, total
        if masks is not None:
            z *= masks[..., rows, :end]
            total *= 1.0 - p
        mixed = buffers.scratch("mixed", (*z.shape[:-1], v.shape[-1]), z.dtype)
        np.divide(_times(z, v[..., :end, :], mixed), total, out=out[..., rows, :])


def attend_backward(
    d_out: np.ndarray,
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    norms: np.ndarray,
    grads: tuple[np.ndarray, np.ndarray, np.ndarray],
    chunk: int,
    p: float = 0.0,
    masks: np.ndarray | None = None,
    factor: float | None = None,
) -> None:
    """Gradients of `attend` (offset 0) into dq, dk, dv: dS = P (dP - rowsum(P dP)), P recomputed.

    P is never formed: what the exponentials E lack of it is a factor a row, which goes into dout. rowsum(P dP) is also
    dout . out, which is cheaper; but where P is near 1 it loses a digit to cancellation.
    """
    t, dtype = q.shape[-2], q.dtype
    dq, dk, dv = grads
    dk_total, dv_total = (_total(name, grad, t > chunk) for name, grad in (("dk", dk), ("dv", dv)))
    keys, values, k = _Columns("keys", k, t), _Columns("values", v, t), _in_rows(k, t)
    for rows, end in reversed(list(_chunks(t, 0, chunk))):
        threads.look()
        q_rows = _scaled(q[..., rows, :], factor)
        e = _scores(q_rows, keys, end)
        if norms[0, ..., rows, :].any():
            e -= norms[0, ..., rows, :]
        np.exp(e, out=e)
        share = 1.0 / norms[1, ..., rows, :]
        d_rows = buffers.scratch("d_rows", (*q.shape[:-2], rows.stop - rows.start, q.shape[-1]), dtype)
        np.multiply(d_out[..., rows, :], share / (1.0 - p), out=d_rows)
        kept = e
        if masks is not None:
            kept = np.multiply(e, masks[..., rows, :end], out=buffers.scratch("kept", e.shape, dtype))
        dz = buffers.scratch("d_scores", e.shape, dtype)
        values.times(d_rows, end, dz)
        _collect(kept, d_rows, dv_total)
        if masks is not None:
            dz *= masks[..., rows, :end]
        dz -= np.matmul(e[..., None, :], dz[..., None])[..., 0] * share
        dz *= e
        if rows.start == 0:
            dz[..., 0, :] = 0  # of one key the probability is 1: what rounding leaves would be steps, to Adam
        _collect(dz, q_rows, dk_total)
        _times(dz, k[..., :end, :], d_rows)
        np.multiply(d_rows, factor_of(q.shape[-1], factor), out=dq[..., rows, :])
    if dk_total is not dk:
        dk[...], dv[...] = dk_total, dv_total


def _total(name: str, grad: np.ndarray, several: bool) -> np.ndarray:
    """Where to add up `grad`: adding to contiguous memory is faster."""
    return buffers.scratch(name, grad.shape, grad.dtype) if several else grad


def _collect(a: np.ndarray, b: np.ndarray, total: np.ndarray) -> None:  # [.., c, end], [.., c, d], [.., n, d]
    """total[.., :end, :] += a' b; the longest chunk comes first and sets."""
    *lead, c, end = a.shape
    d, first = total.shape[-1], end == total.shape[-2]
    term = total if first else buffers.scratch("term", (*lead, end, d), total.dtype)
    if BLOCK * c * d <= _small() < end * c * d and end % BLOCK == 0 and term.flags.c_contiguous:
        blocks = a.reshape(*lead, c, -1, BLOCK)
        np.matmul(np.moveaxis(blocks, -3, -1), b[..., None, :, :], out=term.reshape(*lead, -1, BLOCK, d))
    else:
        np.matmul(a.swapaxes(-1, -2), b, out=term)
    if not first:
        total[..., :end, :] += term
