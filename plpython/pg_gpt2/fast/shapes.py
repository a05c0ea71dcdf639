"""Ops that move or add up values, in parts: slice's gradient, concat, sum, mean. The others are views and as fast as can be."""

from itertools import accumulate
from typing import Any

import numpy as np

from ..core.op import Grads, replace
from ..core.ops import concat_backward, slice_
from .elementwise import binary, copied, copy_into, sum_over


def slice_backward(dy: np.ndarray, y: Any, x: np.ndarray, *, axis: int, start: int, stop: int) -> Grads:
    """Zero outside the slice."""
    dx = np.zeros(x.shape, dy.dtype)
    copy_into(slice_(dx, axis=axis, start=start, stop=stop), dy)
    return (dx,)


replace("slice", slice_, slice_backward)


def concat(*xs: np.ndarray, axis: int = 0) -> np.ndarray:
    """The inputs one after the other along `axis`."""
    place = axis % xs[0].ndim
    lead = (slice(None),) * place
    ends = list(accumulate(x.shape[place] for x in xs))
    y = np.empty((*xs[0].shape[:place], ends[-1], *xs[0].shape[place + 1 :]), np.result_type(*xs))
    for x, end in zip(xs, ends):
        copy_into(y[(*lead, slice(end - x.shape[place], end))], x)
    return y


replace("concat", concat, concat_backward)


def sum_(x: np.ndarray, *, axis: int | None = None) -> np.ndarray:
    """Sum over `axis`, which disappears; over everything without one."""
    if axis is None:
        return np.asarray(x.sum())
    place = axis % x.ndim
    return sum_over(x, (place,)).reshape((*x.shape[:place], *x.shape[place + 1 :]))


def sum_backward(dy: np.ndarray, y: Any, x: np.ndarray, *, axis: int | None = None) -> Grads:
    """dy for every value that was added."""
    return (copied(np.broadcast_to(dy if axis is None else np.expand_dims(dy, axis), x.shape)),)


replace("sum", sum_, sum_backward)


def mean(x: np.ndarray, *, axis: int | None = None) -> np.ndarray:
    """Mean over `axis`, which disappears; over everything without one."""
    return np.asarray(sum_(x, axis=axis) / x.dtype.type(_count(x, axis)))


def mean_backward(dy: np.ndarray, y: Any, x: np.ndarray, *, axis: int | None = None) -> Grads:
    """dy / n for every value."""
    return sum_backward(binary(np.divide, dy, np.asarray(_count(x, axis), dy.dtype)), None, x, axis=axis)


def _count(x: np.ndarray, axis: int | None) -> int:
    return x.size if axis is None else x.shape[axis]


replace("mean", mean, mean_backward)
