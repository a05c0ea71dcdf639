"""dropout (Srivastava et al. 2014), inverted: survivors are scaled by 1 / (1 - p), so that inference needs nothing.

The mask is addressed by (seed, step, site): a backward pass that was not given it draws it again.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from ..core import rng
from ..core.op import Grads, replace
from . import buffers, threads
from .elementwise import block_rows, contiguous, for_blocks


def dropout(
    x: np.ndarray, *, p: float, seed: int = 0, step: int = 0, site: int = 0
) -> tuple[np.ndarray, np.ndarray]:  # [..] -> [..]
    """x * mask / (1 - p); saves the mask."""
    mask = buffers.empty(x.shape, np.dtype(bool))
    flat = mask.reshape(-1)

    def draw(b: slice) -> None:
        rng.keep_mask(p, b.stop - b.start, seed=seed, step=step, site=site, start=b.start, out=flat[b])

    return _masked(x, mask, p, draw), mask


def dropout_backward(
    dy: np.ndarray,
    y: Any,
    x: np.ndarray,
    *,
    p: float,
    seed: int = 0,
    step: int = 0,
    site: int = 0,
    saved: np.ndarray | None = None,
) -> Grads:
    """dy * mask / (1 - p)."""
    if saved is None:
        return (dropout(dy, p=p, seed=seed, step=step, site=site)[0],)
    return (_masked(dy, saved, p),)


def _masked(x: np.ndarray, mask: np.ndarray, p: float, draw: Callable[[slice], object] | None = None) -> np.ndarray:
    """x * mask / (1 - p); `draw` fills a part of the mask first."""
    source, flat, y = contiguous(x).reshape(-1), mask.reshape(-1), buffers.empty(x.shape, x.dtype)
    out = y.reshape(-1)

    def block(b: slice) -> None:
        if draw is not None:
            draw(b)
        np.multiply(source[b], flat[b], out=out[b])
        out[b] *= 1.0 / (1.0 - p)

    ticks = block_rows(-(-source.size // rng.VALUES_PER_TICK), rng.VALUES_PER_TICK)
    threads.for_rows(source.size, ticks * rng.VALUES_PER_TICK, block)
    return y


def backward_from_output(dy: np.ndarray, y: np.ndarray, x: np.ndarray, *, p: float) -> np.ndarray:  # [..] -> [..]
    """dx without the mask's address: y is not 0 where x survived. Where x is 0 the mask left no trace; dy passes."""
    dx, scale = buffers.empty(dy.shape, dy.dtype), dy.dtype.type(1.0 / (1.0 - p))

    def block(dy: np.ndarray, y: np.ndarray, x: np.ndarray, dx: np.ndarray) -> None:
        dx[...] = np.where((y != 0) | (x == 0), dy * scale, dy.dtype.type(0))

    for_blocks(block, dy, y, x, dx)
    return dx


replace("dropout", dropout, dropout_backward, saves=True)
