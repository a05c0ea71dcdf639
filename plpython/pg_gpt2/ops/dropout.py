"""dropout (Srivastava et al. 2014), inverted: survivors are scaled by 1 / (1 - p), so that inference needs nothing.

The mask is addressed by (seed, step, site) and never stored: backward draws it again.
"""

from typing import Any

import numpy as np

from .. import rng, threads
from ..errors import InvalidParameter
from . import buffers
from .elementwise import contiguous
from .op import register

BLOCK = 6400 * rng.VALUES_PER_TICK
Grads = tuple[np.ndarray | None, ...]


def check_p(p: float) -> None:
    """22023 unless 0 <= p < 1."""
    if not 0.0 <= p < 1.0:
        raise InvalidParameter(
            f"dropout probability must be at least 0 and below 1, not {p}",
            hint="0 switches dropout off; GPT-2 was trained with 0.1.",
        )


def dropout(x: np.ndarray, *, p: float, seed: int = 0, step: int = 0, site: int = 0) -> np.ndarray:  # [..] -> [..]
    """x * mask / (1 - p)."""
    check_p(p)
    source, y = contiguous(x).reshape(-1), buffers.empty(x.shape, x.dtype)
    out = y.reshape(-1)

    def block(b: slice) -> None:
        mask = rng.keep_mask(p, b.stop - b.start, seed=seed, step=step, site=site, start=b.start)
        np.multiply(source[b], mask, out=out[b])
        out[b] *= 1.0 / (1.0 - p)

    threads.for_rows(source.size, BLOCK, block)
    return y


def dropout_backward(
    dy: np.ndarray,
    y: Any,
    x: np.ndarray,
    *,
    p: float,
    seed: int = 0,
    step: int = 0,
    site: int = 0,
    saved: Any = None,
    sinks: Any = (),
) -> Grads:
    """dy * mask / (1 - p): the same mask, drawn again."""
    return (dropout(dy, p=p, seed=seed, step=step, site=site),)


def backward_from_output(dy: np.ndarray, y: np.ndarray, x: np.ndarray, *, p: float) -> np.ndarray:  # [..] -> [..]
    """dx without the mask's address: y is not 0 where x survived. Where x is 0 the mask left no trace; dy passes."""
    return np.where((y != 0) | (x == 0), dy * dy.dtype.type(1.0 / (1.0 - p)), dy.dtype.type(0))


register("dropout", dropout, dropout_backward, "x")
