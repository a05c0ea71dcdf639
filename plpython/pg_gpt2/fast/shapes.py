"""Ops that move or add up values: transpose, reshape, slice, concat, sum, mean. Forward results may be views."""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np

from .. import limits
from ..core.op import misfit, normal_axis, register
from ..errors import InvalidParameter
from .elementwise import binary, copied, copy_into, sum_over

Grads = tuple[np.ndarray | None, ...]


def transpose(x: np.ndarray, *, axes: Sequence[int] | None = None) -> np.ndarray:  # [.., m, n] -> [.., n, m]
    """Swap the last two axes, or reorder all by `axes`."""
    if axes is None:
        if x.ndim < 2:
            raise misfit("transpose", "x has at least two dimensions", x=x.shape)
        return x.swapaxes(-1, -2)
    order = [normal_axis("transpose", axis, x.ndim) for axis in axes]
    if sorted(order) != list(range(x.ndim)):
        raise InvalidParameter(
            f"transpose: axes {list(axes)} are not a permutation of the {x.ndim} dimensions",
            hint="Name every axis once, or leave axes out to swap the last two.",
        )
    return x.transpose(order)


def transpose_backward(
    dy: np.ndarray, y: Any, x: np.ndarray, *, axes: Sequence[int] | None = None, saved: Any = None, sinks: Any = ()
) -> Grads:
    """The inverse permutation."""
    if axes is None:
        return (dy.swapaxes(-1, -2),)
    return (dy.transpose(np.argsort([axis % x.ndim for axis in axes])),)


register("transpose", transpose, transpose_backward, "x")


def reshape(x: np.ndarray, *, shape: Sequence[int]) -> np.ndarray:
    """The values of x in row-major order under another shape; one dimension may be -1."""
    if len(shape) > limits.MOST_DIMENSIONS:
        raise misfit("reshape", f"there are at most {limits.MOST_DIMENSIONS} dimensions", shape=tuple(shape))
    try:
        return x.reshape(tuple(shape))
    except ValueError:
        raise misfit("reshape", "the number of values stays the same", x=x.shape, shape=tuple(shape)) from None


def reshape_backward(
    dy: np.ndarray, y: Any, x: np.ndarray, *, shape: Sequence[int], saved: Any = None, sinks: Any = ()
) -> Grads:
    """The old shape."""
    return (dy.reshape(x.shape),)


register("reshape", reshape, reshape_backward, "x")


def slice_(x: np.ndarray, *, axis: int, start: int, stop: int) -> np.ndarray:
    """start .. stop - 1 along `axis`, 0-based."""
    return x[_part(x, axis, start, stop)]


def slice_backward(
    dy: np.ndarray, y: Any, x: np.ndarray, *, axis: int, start: int, stop: int, saved: Any = None, sinks: Any = ()
) -> Grads:
    """Zero outside the slice."""
    dx = np.zeros(x.shape, dy.dtype)
    copy_into(dx[_part(x, axis, start, stop)], dy)
    return (dx,)


def _part(x: np.ndarray, axis: int, start: int, stop: int) -> tuple[slice, ...]:
    axis = normal_axis("slice", axis, x.ndim)
    if not 0 <= start < stop <= x.shape[axis]:
        raise InvalidParameter(
            f"slice: {start} to {stop} does not fit axis {axis} of shape {list(x.shape)}",
            hint="Rule: 0 <= start < stop <= length of the axis.",
        )
    return (slice(None),) * axis + (slice(start, stop),)


register("slice", slice_, slice_backward, "x")


def concat(*xs: np.ndarray, axis: int = 0) -> np.ndarray:
    """The inputs one after the other along `axis`."""
    lead = (slice(None),) * normal_axis("concat", axis, xs[0].ndim)
    place = len(lead)
    if len({(x.ndim, x.shape[:place], x.shape[place + 1 :]) for x in xs}) > 1:
        shapes = {f"x{i}": x.shape for i, x in enumerate(xs)}
        raise misfit("concat", f"shapes are equal but for axis {axis}", **shapes)
    ends = list(accumulate(x.shape[place] for x in xs))
    y = np.empty((*xs[0].shape[:place], ends[-1], *xs[0].shape[place + 1 :]), np.result_type(*xs))
    for x, end in zip(xs, ends):
        copy_into(y[(*lead, slice(end - x.shape[place], end))], x)
    return y


def concat_backward(
    dy: np.ndarray, y: Any, *xs: np.ndarray, axis: int = 0, saved: Any = None, sinks: Any = ()
) -> Grads:
    """The part of each input."""
    axis = normal_axis("concat", axis, dy.ndim)
    return tuple(np.split(dy, np.cumsum([x.shape[axis] for x in xs])[:-1], axis=axis))


register("concat", concat, concat_backward, "x", variadic=True)


def sum_(x: np.ndarray, *, axis: int | None = None) -> np.ndarray:
    """Sum over `axis`, which disappears; over everything without one."""
    if axis is None:
        return np.asarray(x.sum())
    place = normal_axis("sum", axis, x.ndim)
    return sum_over(x, (place,)).reshape((*x.shape[:place], *x.shape[place + 1 :]))


def sum_backward(
    dy: np.ndarray, y: Any, x: np.ndarray, *, axis: int | None = None, saved: Any = None, sinks: Any = ()
) -> Grads:
    """dy for every value that was added."""
    kept = dy if axis is None else np.expand_dims(dy, normal_axis("sum", axis, x.ndim))
    return (copied(np.broadcast_to(kept, x.shape)),)


register("sum", sum_, sum_backward, "x")


def mean(x: np.ndarray, *, axis: int | None = None) -> np.ndarray:
    """Mean over `axis`, which disappears; over everything without one."""
    return np.asarray(sum_(x, axis=axis) / x.dtype.type(_count(x, axis)))


def mean_backward(
    dy: np.ndarray, y: Any, x: np.ndarray, *, axis: int | None = None, saved: Any = None, sinks: Any = ()
) -> Grads:
    """dy / n for every value."""
    share = binary("mean", np.divide, dy, np.asarray(_count(x, axis), dy.dtype))
    return sum_backward(share, None, x, axis=axis)


def _count(x: np.ndarray, axis: int | None) -> int:
    return x.size if axis is None else x.shape[normal_axis("mean", axis, x.ndim)]


register("mean", mean, mean_backward, "x")
