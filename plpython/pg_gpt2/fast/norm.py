"""layernorm over the last axis (Ba, Kiros & Hinton 2016), with the biased variance, as GPT-2 and torch have it."""

from functools import lru_cache
from typing import Any

import numpy as np

from ..core.op import Grads, replace
from . import buffers, threads
from .elementwise import block_rows, contiguous

KEPT = 1 << 16  # the longest vector that is kept for the next call


def _mean_of(n: int, dtype: np.dtype) -> np.ndarray:
    """[n, 1]: 1 / n."""
    return _kept_mean_of(n, dtype) if n <= KEPT else _kept_mean_of.__wrapped__(n, dtype)


@lru_cache(maxsize=16)
def _kept_mean_of(n: int, dtype: np.dtype) -> np.ndarray:
    return np.full((n, 1), 1.0 / n, dtype)


def layernorm(
    x: np.ndarray, gamma: np.ndarray, beta: np.ndarray, *, eps: float = 1e-5
) -> tuple[np.ndarray, np.ndarray]:  # [.., n], [n], [n] -> [.., n]
    """(x - mean) / sqrt(var + eps) * gamma + beta; saves mean and 1 / sqrt(var + eps) of each row."""
    n = x.shape[-1]
    rows = contiguous(x).reshape(-1, n)
    y = buffers.empty(x.shape, x.dtype)
    out = y.reshape(-1, n)
    stats = np.empty((2, len(rows), 1), x.dtype)

    def block(r: slice) -> None:
        normalize(rows[r], gamma, beta, out[r], stats[:, r], eps)

    threads.for_rows(len(rows), block_rows(len(rows), n), block)
    return y, stats


def normalize(
    x: np.ndarray, gamma: np.ndarray, beta: np.ndarray, y: np.ndarray, stats: np.ndarray, eps: float
) -> None:  # [m, n], [n], [n], [m, n], [2, m, 1]
    """y = layernorm(x), and mean and 1 / sqrt(var + eps) of each row into stats.

    Each row is a product of its own: BLAS treats rows in groups, and a row's bits would depend on how many there are.
    """
    mean, rstd = stats
    np.matmul(x[:, None], _mean_of(x.shape[1], x.dtype), out=mean[..., None])
    np.subtract(x, mean, out=y)
    np.matmul(y[:, None], y[..., None], out=rstd[..., None])
    rstd /= x.shape[1]
    rstd += eps
    np.sqrt(rstd, out=rstd)
    np.reciprocal(rstd, out=rstd)
    y *= rstd
    y *= gamma
    y += beta


def layernorm_backward(
    dy: np.ndarray,
    y: Any,
    x: np.ndarray,
    gamma: np.ndarray,
    beta: np.ndarray,
    *,
    eps: float = 1e-5,
    saved: np.ndarray | None = None,
) -> Grads:
    """dx = rstd (g - mean(g) - h mean(g h)), h = (x - mean) rstd, g = dy gamma; dgamma = sum(dy h), dbeta = sum(dy).

    h is never formed: its factor rstd goes into the sums, and gamma into what they are taken with.
    """
    stats = layernorm(x, gamma, beta, eps=eps)[1] if saved is None else saved
    n = x.shape[-1]
    rows, d_rows = contiguous(x).reshape(-1, n), contiguous(dy).reshape(-1, n)
    dx = buffers.empty(x.shape, x.dtype)
    out = dx.reshape(-1, n)
    weighted = (gamma / n)[:, None]
    step = block_rows(len(rows), n)
    parts = np.empty((2, -(-len(rows) // step), n), x.dtype)

    def block(r: slice) -> None:
        dy, dx, rstd = d_rows[r], out[r], stats[1, r]
        centred = np.subtract(rows[r], stats[0, r], out=buffers.scratch("norm_c", dy.shape, dy.dtype))
        product = np.multiply(dy, centred, out=dx)
        i = r.start // step
        parts[0, i], parts[1, i] = rstd[:, 0] @ product, np.ones(len(dy), dy.dtype) @ dy
        centred *= rstd * rstd * (product @ weighted)
        centred += dy @ weighted
        np.multiply(dy, gamma, out=dx)
        dx -= centred
        dx *= rstd

    threads.for_rows(len(rows), step, block)
    return dx, parts[0].sum(axis=0), parts[1].sum(axis=0)


replace("layernorm", layernorm, layernorm_backward, saves=True)
