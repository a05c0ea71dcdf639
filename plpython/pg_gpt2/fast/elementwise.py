"""add and mul with NumPy's broadcasting, scale; and the blocks that others use.

Work goes block by block, in place, on all cores: a block and its temporaries stay in a core's cache.
"""

from collections.abc import Callable
from functools import partial
from math import prod
from typing import Any

import numpy as np

from ..core.op import Grads, replace
from . import buffers, slices, threads

# Elements of the largest block. Smaller ones fit a core's cache better, but the threads then fight over the interpreter
# lock, whose hand-over takes as long as 100,000 elements, the more so where others use the cores.
BLOCK = 300_000
LEAST = 50_000  # elements that are worth a second core
MOST_SUMMED = 1 << 22  # elements in one call, unless all go into one sum


def for_blocks(work: Callable[..., object], *arrays: np.ndarray) -> None:
    """Call `work(*blocks)` on flat blocks of contiguous arrays of one size."""
    flat = [array.reshape(-1) for array in arrays]
    threads.for_rows(flat[0].size, block_rows(flat[0].size), lambda block: work(*(array[block] for array in flat)))


def block_rows(n: int, width: int = 1) -> int:
    """How many of n rows of `width` elements to a block: all of them, or an even number of blocks of one size."""
    count = 1 if n * width < LEAST else 2 * -(-n * width // (2 * BLOCK))
    return max(1, -(-n // count))


def contiguous(x: np.ndarray) -> np.ndarray:
    """x, or a copy of it in C order."""
    return x if x.flags.c_contiguous else copied(x)


def copied(x: np.ndarray) -> np.ndarray:
    """A copy of x in C order."""
    y = np.empty(x.shape, x.dtype)
    copy_into(y, x)
    return y


def copy_into(y: np.ndarray, x: np.ndarray) -> None:
    """y = x, of one shape."""
    threads.run([partial(np.copyto, y[part], x[part]) for part in slices.parts(x.shape, BLOCK)])


def accumulate(total: np.ndarray, term: np.ndarray) -> None:
    """total += term, both contiguous and of one shape."""
    for_blocks(lambda t, x: np.add(t, x, out=t), total, contiguous(term))


def unbroadcast(dy: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Sum `dy` over the axes along which `shape` was broadcast."""
    if dy.shape == shape:
        return dy
    kept = dy.ndim - len(shape)
    if shape == dy.shape[kept:]:  # a bias or a position embedding: leading axes only
        rows = dy.reshape(-1, prod(shape))
        return (np.ones(len(rows), dy.dtype) @ rows).reshape(shape)
    axes = tuple(range(kept)) + tuple(i + kept for i, n in enumerate(shape) if n == 1 and dy.shape[i + kept] != 1)
    return sum_over(dy, axes).reshape(shape)


def sum_over(x: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    """Sum over `axes`, which stay with length 1; in parts along the longest of the others, where that is long."""
    kept = max((i for i in range(x.ndim) if i not in axes), key=lambda i: x.shape[i], default=None)
    if x.size <= MOST_SUMMED or kept is None:
        return x.sum(axis=axes, keepdims=True)
    y = np.empty([1 if i in axes else n for i, n in enumerate(x.shape)], x.dtype)
    lead = (slice(None),) * kept
    for part in slices.pieces(x.shape[kept], max(1, MOST_SUMMED * x.shape[kept] // x.size)):
        threads.look()
        x[(*lead, part)].sum(axis=axes, keepdims=True, out=y[(*lead, part)])
    return y


def binary(function: np.ufunc, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """function(a, b), broadcast, in blocks."""
    shape = a.shape if a.shape == b.shape else np.broadcast_shapes(a.shape, b.shape)
    y = buffers.empty(shape, np.result_type(a, b))
    repeated = shape == a.shape and b.shape == shape[len(shape) - b.ndim :] and (b.size <= BLOCK or b.shape == shape)
    if not (repeated and a.flags.c_contiguous and b.flags.c_contiguous):
        x, z = np.broadcast_to(a, shape), np.broadcast_to(b, shape)
        threads.run([lambda i=i: function(x[i], z[i], out=y[i]) for i in slices.parts(shape, BLOCK)])  # type: ignore[misc]
    elif a.shape == b.shape:
        for_blocks(lambda x, z, out: function(x, z, out=out), a, b, y)
    else:
        rows, out = a.reshape(-1, *b.shape), y.reshape(-1, *b.shape)
        threads.for_rows(len(rows), block_rows(len(rows), b.size), lambda r: function(rows[r], b, out=out[r]))
    return y


def add(a: np.ndarray, b: np.ndarray) -> np.ndarray:  # shapes broadcast
    """a + b."""
    return binary(np.add, a, b)


def add_backward(dy: np.ndarray, y: Any, a: np.ndarray, b: np.ndarray) -> Grads:
    """dy for both, summed over broadcast axes."""
    return unbroadcast(dy, a.shape), unbroadcast(dy, b.shape)


replace("add", add, add_backward)


def mul(a: np.ndarray, b: np.ndarray) -> np.ndarray:  # shapes broadcast
    """a * b."""
    return binary(np.multiply, a, b)


def mul_backward(dy: np.ndarray, y: Any, a: np.ndarray, b: np.ndarray) -> Grads:
    """dy * b, dy * a, summed over broadcast axes."""
    da, db = binary(np.multiply, dy, b), binary(np.multiply, dy, a)
    return unbroadcast(da, a.shape), unbroadcast(db, b.shape)


replace("mul", mul, mul_backward)


def scale(x: np.ndarray, *, factor: float) -> np.ndarray:  # [..] -> [..]
    """x * factor."""
    y = buffers.empty(x.shape, x.dtype)
    for_blocks(lambda a, out: np.multiply(a, x.dtype.type(factor), out=out), contiguous(x), y)
    return y


def scale_backward(dy: np.ndarray, y: Any, x: np.ndarray, *, factor: float) -> Grads:
    """dy * factor."""
    return (scale(dy, factor=factor),)


replace("scale", scale, scale_backward)
