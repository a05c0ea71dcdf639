"""Where ops get their memory: results from a pool that one pass after another uses, temporaries from one scratch per thread.

Fresh large arrays cost a page fault every 4 kB, a tenth of a training step or of a prompt's pass. A pooled buffer is free
again when nothing but the pool refers to it, so nobody has to hand it back and a view keeps it alive.
"""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod

import numpy as np

SMALLEST_POOLED = 1 << 16  # bytes; below this malloc is as good
LARGEST_SCRATCH = 32 << 20  # bytes: a larger temporary is not kept, and work on it takes longer than to get it anew


class BufferPool:
    """Buffers by size in bytes. Only the thread that reuses them may ask."""

    def __init__(self) -> None:
        self._buffers: dict[int, list[np.ndarray]] = {}

    def empty(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """An uninitialised array that nothing else refers to."""
        n_bytes = prod(shape) * dtype.itemsize
        buffers = self._buffers.setdefault(n_bytes, [])
        for i in range(len(buffers)):
            if sys.getrefcount(buffers[i]) == _UNUSED:
                return buffers[i].view(dtype).reshape(shape)
        buffers.append(np.empty(n_bytes, np.uint8))
        return buffers[-1].view(dtype).reshape(shape)

    def clear(self) -> None:
        """Forget all buffers; those in use live on with whoever uses them."""
        self._buffers.clear()


class LooseBufferPool:
    """Buffers for shapes that vary: one serves whatever is smaller, and makes room for a larger one. For one thread.

    There are never more than were in use at once; each may become as large as the largest that was asked for.
    """

    def __init__(self) -> None:
        self._buffers: list[np.ndarray] = []

    def empty(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """An uninitialised array that nothing else refers to."""
        buffers, n_bytes = self._buffers, prod(shape) * dtype.itemsize
        unused = [i for i in range(len(buffers)) if sys.getrefcount(buffers[i]) == _UNUSED]
        place = min((i for i in unused if buffers[i].size >= n_bytes), key=lambda i: buffers[i].size, default=None)
        if place is None:
            if unused:
                del buffers[max(unused, key=lambda i: buffers[i].size)]
            place = len(buffers)
            buffers.append(np.empty(n_bytes, np.uint8))
        return buffers[place][:n_bytes].view(dtype).reshape(shape)

    def clear(self) -> None:
        """Forget all buffers; those in use live on with whoever uses them."""
        self._buffers.clear()


def _count_of_unused() -> int:
    """What getrefcount says of an array that only a list holds (Python versions differ)."""
    buffers = [np.empty(1)]
    for i in range(len(buffers)):
        count = sys.getrefcount(buffers[i])
    return count


class _Current(threading.local):
    """The pool from which the thread's results come."""

    pool: BufferPool | LooseBufferPool | None = None


_UNUSED = _count_of_unused()
_current = _Current()
_lent: np.ndarray | None = None
_scratch = threading.local()


def kept() -> LooseBufferPool:
    """Buffers of the calling thread for passes over texts, kept from one call to the next, until `forget`."""
    pool = getattr(_scratch, "of_passes", None)
    if pool is None:
        pool = _scratch.of_passes = LooseBufferPool()
    return pool


@contextmanager
def reusing(pool: BufferPool | LooseBufferPool | None) -> Iterator[None]:
    """Within this block `empty` serves this thread from `pool`."""
    outer, _current.pool = _current.pool, pool
    try:
        yield
    finally:
        _current.pool = outer


def empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An uninitialised array for the result of an op."""
    dtype = np.dtype(dtype)
    if _current.pool is None or prod(shape) * dtype.itemsize < SMALLEST_POOLED:
        return np.empty(shape, dtype)
    return _current.pool.empty(tuple(shape), dtype)


@contextmanager
def lending(memory: np.ndarray | None) -> Iterator[None]:
    """Within this block `passing` serves from contiguous `memory`, which its owner does not use yet."""
    global _lent
    outer, _lent = _lent, memory
    try:
        yield
    finally:
        _lent = outer


def passing(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """As `empty`, for what is gone when the op returns: two of them may be the same memory."""
    n_bytes = prod(shape) * np.dtype(dtype).itemsize
    if _lent is None or _lent.nbytes < n_bytes:
        return empty(shape, dtype)
    return _lent.reshape(-1).view(np.uint8)[:n_bytes].view(dtype).reshape(shape)


def forget() -> None:
    """Let go of all that is kept for later calls, by every thread."""
    global _scratch
    _scratch = threading.local()


def scratch(slot: str, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """A temporary of the calling thread, valid until it asks for the same slot again."""
    dtype = np.dtype(dtype)
    n_bytes = prod(shape) * dtype.itemsize
    if n_bytes > LARGEST_SCRATCH:
        return np.empty(shape, dtype)
    held = getattr(_scratch, slot, None)
    if held is None or held.size < n_bytes:
        held = np.empty(n_bytes, np.uint8)
        setattr(_scratch, slot, held)
    return held[:n_bytes].view(dtype).reshape(shape)
