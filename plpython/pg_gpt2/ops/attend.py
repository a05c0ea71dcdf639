"""The core of causal attention, in chunks of query rows: scores of a chunk against the keys it may see, never T x T.

`attend` serves training and KV-cached decoding alike; q, k and v may be strided views. The backward pass recomputes
probabilities from what normalised them (as Dao et al. 2022) and stores none. All of it runs on the calling thread.
"""

from collections.abc import Callable, Iterator
from functools import lru_cache

import numpy as np

from .. import threads
from . import buffers
from .activations import exponentials_in_place

CHUNK = 64  # query rows at a time (setting pg_gpt2.attention_chunk)
Factors = Callable[[slice, int], np.ndarray]  # (query rows, n_keys) -> what to multiply their probabilities with


@lru_cache(maxsize=8)
def _future(rows: int, dtype: np.dtype) -> np.ndarray:
    """[rows, rows]: -inf where the key comes after the query, else 0."""
    return np.triu(np.full((rows, rows), -np.inf, dtype), 1)


def _chunks(t: int, offset: int, chunk: int) -> Iterator[tuple[slice, int]]:
    """(query rows, number of keys the last of them sees)."""
    for rows in threads.pieces(t, chunk):
        yield rows, offset + rows.stop


def _scores(q: np.ndarray, k: np.ndarray, scale: float) -> np.ndarray:
    """[.., c, d], [.., end, d] -> [.., c, end]: q k' scale, -inf for keys after the query (the last query sees all)."""
    c, end = q.shape[-2], k.shape[-2]
    z = buffers.scratch("scores", (*q.shape[:-1], end), q.dtype)
    np.matmul(q * scale, k.swapaxes(-1, -2), out=z)
    z[..., end - c :] += _future(c, q.dtype)
    return z


def attend(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    out: np.ndarray,
    offset: int = 0,
    chunk: int = CHUNK,
    *,
    norms: np.ndarray | None = None,
    dropped: Factors | None = None,
) -> None:  # [.., t, d], [.., n, d], [.., n, d], [.., t, d]
    """out = softmax(q k' / sqrt(d)) v, where query i sees the keys 0 .. offset + i.

    norms [2, .., t, 1] receives each row's maximum and sum of exponentials: together they give exactly the same
    probabilities again, which a log-sum-exp does not. `dropped(rows, n_keys)` gives factors for the probabilities.
    """
    scale = q.shape[-1] ** -0.5
    for rows, end in _chunks(q.shape[-2], offset, chunk):
        z = _scores(q[..., rows, :], k[..., :end, :], scale)
        top, total = exponentials_in_place(z)
        if norms is not None:
            norms[0, ..., rows, :], norms[1, ..., rows, :] = top, total
        if dropped is not None:
            z *= dropped(rows, end)
        np.matmul(z, v[..., :end, :], out=out[..., rows, :])
        out[..., rows, :] /= total


def attend_backward(
    d_out: np.ndarray,
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    norms: np.ndarray,
    grads: tuple[np.ndarray, np.ndarray, np.ndarray],
    chunk: int,
    dropped: Factors | None,
) -> None:
    """Gradients of `attend` (offset 0) into dq, dk, dv: dS = P (dP - rowsum(P dP)), P recomputed.

    rowsum(P dP) is also dout . out, which is cheaper; but where P is near 1 it loses a digit to cancellation.
    """
    scale = q.shape[-1] ** -0.5
    dq, dk, dv = grads
    for rows, end in reversed(list(_chunks(q.shape[-2], 0, chunk))):
        q_rows, keys = q[..., rows, :], k[..., :end, :]
        p = _scores(q_rows, keys, scale)
        p -= norms[0, ..., rows, :]
        np.exp(p, out=p)
        p /= norms[1, ..., rows, :]
        d_rows = d_out[..., rows, :]
        dz = buffers.scratch("d_scores", p.shape, p.dtype)
        np.matmul(d_rows, v[..., :end, :].swapaxes(-1, -2), out=dz)
        if dropped is None:
            _collect(p.swapaxes(-1, -2), d_rows, dv, end)
        else:
            factors = dropped(rows, end)
            dz *= factors
            factors *= p
            _collect(factors.swapaxes(-1, -2), d_rows, dv, end)
        dz -= np.einsum("...i,...i->...", p, dz)[..., None]
        dz *= p
        dq_rows = dq[..., rows, :]
        np.matmul(dz, keys, out=dq_rows)
        dq_rows *= scale
        _collect(dz.swapaxes(-1, -2), q_rows * scale, dk, end)


def _collect(a: np.ndarray, b: np.ndarray, total: np.ndarray, end: int) -> None:
    """total[.., :end, :] += a @ b; the longest chunk comes first and sets."""
    if end == total.shape[-2]:
        np.matmul(a, b, out=total)
    else:
        total[..., :end, :] += np.matmul(a, b)
