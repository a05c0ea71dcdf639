"""Weights for inference in panels, [ceil(N/64)][K][64], and products with them in which a row's bits do not depend on the others.

OpenBLAS packs all weights anew for a product of two or more rows, except in its kernels for small matrices (AVX-512, m n k up to
a million). Here every product is a stack of such small ones: up to four rows cost what one does, and many rows no more than one
large product. Elsewhere panels are slow and their rows depend on each other; `serve` finds out by trying.
"""

import time
from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np

from .. import threads
from . import buffers

WIDTH = 64
ROWS = 16  # at a time
SMALL = 1_000_000  # m n k of OpenBLAS's kernels for small matrices
DEPTH = SMALL // (WIDTH * ROWS)  # of a panel; a deeper one is cut and the parts are added
PARALLEL_FLOPS = 2e6
PIECE_FLOPS = 400e6
TRIAL_SCALARS = 1 << 20  # of weights that are timed


class Panels:
    """Weights [K, N] of a linear layer, laid out in panels."""

    __slots__ = ("data", "dtype", "shape")

    def __init__(self, data: np.ndarray, shape: tuple[int, ...]) -> None:
        self.data, self.shape, self.dtype = data, shape, data.dtype

    @classmethod
    def of(cls, w: np.ndarray) -> "Panels":
        """The panels of w [K, N]."""
        data = np.zeros(stored_shape(w.shape), w.dtype)
        for rows, panel in zip(threads.pieces(w.shape[1], WIDTH), data):
            panel[:, : rows.stop - rows.start] = w[:, rows]
        return cls(data, w.shape)

    @property
    def ndim(self) -> int:
        """2, as of the weights."""
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        """Memory held."""
        return self.data.nbytes

    def plain(self) -> np.ndarray:
        """The weights [K, N] in rows, a copy."""
        k, n = self.shape
        return np.ascontiguousarray(self.data.transpose(1, 0, 2).reshape(k, -1)[:, :n])


def stored_shape(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Shape of the panels of weights [K, N]."""
    k, n = shape
    return -(-n // WIDTH), k, WIDTH


def product(x: np.ndarray, w: Panels, bias: np.ndarray | None = None) -> np.ndarray:  # [m, K], [K, N], [N] -> [m, N]
    """x @ w (+ bias)."""
    m, n, count = len(x), w.shape[1], len(w.data)
    x = _paired(x)
    padded = buffers.empty((len(x), count * WIDTH), x.dtype)

    def piece(c: slice) -> None:
        columns = slice(c.start * WIDTH, min(c.stop * WIDTH, n))
        _multiply(x, w.data[c], padded[:, c.start * WIDTH : c.stop * WIDTH])
        if bias is not None:
            padded[:m, columns] += bias[columns]

    _for_panels(count, 2.0 * m * w.shape[0] * n, piece)
    return padded[:m] if n == count * WIDTH else np.ascontiguousarray(padded[:m, :n])


def product_with_rows(x: np.ndarray, table: np.ndarray) -> np.ndarray:  # [m, D], [V, D] -> [m, V]
    """x @ table', where each 64 rows of the table are a panel as they lie. The last panel overlaps the one before it."""
    m, (v, d), count = len(x), table.shape, len(table) // WIDTH
    x = _paired(x)
    out = np.empty((len(x), v), x.dtype)

    def piece(c: slice) -> None:
        panels = table[c.start * WIDTH : c.stop * WIDTH].reshape(-1, WIDTH, d).swapaxes(1, 2)
        _multiply(x, panels, out[:, c.start * WIDTH : c.stop * WIDTH])

    if count:
        _for_panels(count, 2.0 * m * d * v, piece)
    if v % WIDTH:
        last = min(v, WIDTH)
        _multiply(x, table[None, v - last :].swapaxes(1, 2), out[:, v - last :])
    return out[:m]


def _paired(x: np.ndarray) -> np.ndarray:
    """x, or a row alone with a second one of zeros, since BLAS treats a single row otherwise."""
    if len(x) > 1:
        return x
    pair = np.zeros((2, x.shape[1]), x.dtype)
    pair[:1] = x
    return pair


def _for_panels(count: int, flops: float, piece: Callable[[slice], object]) -> None:
    """Call `piece` for ranges of `count` panels on all cores, cut by the size of the problem."""
    if flops < PARALLEL_FLOPS:
        piece(slice(0, count))
    else:
        threads.for_rows(count, -(-count // (2 * max(1, round(flops / (2 * PIECE_FLOPS))))), piece)


def _multiply(x: np.ndarray, panels: np.ndarray, out: np.ndarray) -> None:  # [m, K], [P, K, w], [m, P w], m > 1
    """out = x @ each panel."""
    first, *others = _parts(x.shape[1])
    _multiply_part(x[:, first], panels[:, first], out)
    for part in others:
        term = buffers.scratch("panels", out.shape, out.dtype)
        _multiply_part(x[:, part], panels[:, part], term)
        out += term


@lru_cache(maxsize=64)
def _parts(k: int) -> list[slice]:
    """Equal parts of the depth, so that ROWS rows make small products; one where there are none."""
    count = next((n for n in range(-(-k // DEPTH), k // 16 + 1) if k % n == 0), 1)
    return threads.pieces(k, k // count)


def _multiply_part(x: np.ndarray, panels: np.ndarray, out: np.ndarray) -> None:
    m, (count, k, width) = len(x), panels.shape
    whole = m - m % ROWS
    if whole:
        results = out[:whole].reshape(-1, ROWS, count, width).transpose(2, 0, 1, 3)
        np.matmul(x[:whole].reshape(-1, ROWS, k), panels[:, None], out=results)
    if m - whole == 1:
        pair = buffers.scratch("pair", (2, count * width), x.dtype)
        _multiply_part(_paired(x[whole:]), panels, pair)
        out[whole] = pair[0]
    elif m > whole:
        np.matmul(x[whole:], panels, out=out[whole:m].reshape(-1, count, width).swapaxes(0, 1))


def serve(depths: Sequence[int]) -> bool:
    """Whether panels of weights of these depths give each row the same bits in any company, and are no slower than rows."""
    parts = {part.stop - part.start for depth in depths for part in _parts(depth)[:1]}
    return all(_serves(k) for k in sorted(parts))


@lru_cache(maxsize=64)
def _serves(k: int) -> bool:
    random = np.random.Generator(np.random.Philox(1))
    x = random.standard_normal((2 * ROWS, k), np.float32)
    w = random.standard_normal((k, 8 * WIDTH + 1), np.float32)
    panels, table = Panels.of(w), np.ascontiguousarray(w.T)
    if not (
        _rows_are_alone(lambda x: product(x, panels), x) and _rows_are_alone(lambda x: product_with_rows(x, table), x)
    ):
        return False
    w = np.tile(w, (1, TRIAL_SCALARS // w.size + 1))
    panels = Panels.of(w)
    out = np.empty((4, panels.data.shape[0] * WIDTH), np.float32)
    return _seconds(lambda: _multiply(x[:4], panels.data, out)) < _seconds(lambda: x[:4] @ w)


def _rows_are_alone(times: Callable[[np.ndarray], np.ndarray], x: np.ndarray) -> bool:
    whole = times(x)
    return all(
        np.array_equal(times(x[:m]), whole[:m]) and np.array_equal(times(x[-m:]), whole[-m:])
        for m in range(1, ROWS + 1)
    )


def _seconds(work: Callable[[], object]) -> float:
    """The least of several tries."""
    times = []
    for _ in range(10):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return min(times)
