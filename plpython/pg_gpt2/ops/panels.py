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
PARALLEL_FLOPS = 2e6  # below it a product costs less than handing over half of it
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
    """out = x @ each panel, the depth in equal parts whose products are added in order."""
    (m, k), (count, _, width) = x.shape, panels.shape
    parts = _parts(k)
    x = x.reshape(m, parts, -1)
    panels = panels.reshape(count, parts, -1, width)
    terms = out[None] if parts == 1 else buffers.scratch("panels", (parts, *out.shape), out.dtype)
    whole = m - m % ROWS
    if whole:
        results = terms[:, :whole].reshape(parts, -1, ROWS, count, width).transpose(0, 3, 1, 2, 4)
        groups = x[:whole].reshape(-1, ROWS, *x.shape[1:]).transpose(2, 0, 1, 3)
        np.matmul(groups[:, None], panels.swapaxes(0, 1)[:, :, None], out=results)
    if m > whole:
        rest = x[whole:].swapaxes(0, 1)
        if m - whole == 1:
            pair = np.zeros((parts, 2, x.shape[2]), x.dtype)
            pair[:, :1] = rest
            terms[:, whole] = np.matmul(pair[:, None], panels.swapaxes(0, 1))[:, :, 0].reshape(parts, -1)
        else:
            results = terms[:, whole:].reshape(parts, m - whole, count, width).swapaxes(1, 2)
            np.matmul(rest[:, None], panels.swapaxes(0, 1), out=results)
    if parts > 1:
        np.add.reduce(terms, axis=0, out=out)


@lru_cache(maxsize=64)
def _parts(k: int) -> int:
    """Into how many equal parts the depth is cut, so that ROWS rows make small products; 1 where there are none."""
    return next((n for n in range(-(-k // DEPTH), k // 16 + 1) if k % n == 0), 1)


def serve(depths: Sequence[int]) -> bool:
    """Whether panels of weights of these depths give each row the same bits in any company, and are not slow."""
    return all(_serves(k) for k in sorted({depth // _parts(depth) for depth in depths}))


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
    # Where the bits are equal, panels take 0.2 to 0.45 of the time; only a BLAS nobody has met is excluded here. So busy cores,
    # which stretch either time by chance, cannot make two sessions choose differently.
    return _seconds(lambda: _multiply(x[:4], panels.data, out)) < 2 * _seconds(lambda: x[:4] @ w)


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
