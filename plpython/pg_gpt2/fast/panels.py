"""Weights for inference in panels, [ceil(N/64)][K][64], and products with them in which a row's bits do not depend on the others.

OpenBLAS packs all weights anew for a product of two or more rows, except in its kernels for small matrices (AVX-512, m n k up to
a million). Here every product is a stack of such small ones: up to four rows cost what one does, and many rows no more than one
large product. Elsewhere panels are slow and their rows depend on each other; `are_usable` finds out by trying.
"""

import time
from collections.abc import Callable, Sequence
from functools import lru_cache, partial

import numpy as np

from . import buffers, slices, threads

Call = Callable[[], object]

WIDTH = 64
NARROWEST = 4  # columns; kernels for widths that are no multiple of it do not treat all rows alike
ROWS = 16  # at a time
SMALL = 1_000_000  # m n k of OpenBLAS's kernels for small matrices
DEPTH = SMALL // (WIDTH * ROWS)  # of a panel; a deeper one is cut and the parts are added
PARALLEL_FLOPS = 2e6  # below it a product costs less than handing over half of it
PIECE_FLOPS = 400e6
READ_AHEAD = 5 << 18  # bytes that a second thread reads while the caller does what lies between two products
HEAD_START = 24  # panels: of so many, one more does not matter
MOST_TERMS = 8 << 20  # bytes of a product cut in depth; where terms are more, each piece has its own in turn
ADDED_ROWS = 16 * ROWS  # a task, where a product is added to what is there
TRIAL_SCALARS = 1 << 20  # of weights that are timed


class Panels:
    """Weights [K, N] of a linear layer, laid out in panels."""

    __slots__ = ("data", "dtype", "shape")

    def __init__(self, data: np.ndarray, shape: tuple[int, ...]) -> None:
        self.data, self.shape, self.dtype = data, shape, data.dtype

    @classmethod
    def of(cls, w: np.ndarray, width: int = WIDTH) -> "Panels":
        """The panels of w [K, N]."""
        data = np.zeros(stored_shape(w.shape, width), w.dtype)
        for rows, panel in zip(slices.pieces(w.shape[1], width), data):
            panel[:, : rows.stop - rows.start] = w[:, rows]
        return cls(data, w.shape)

    @property
    def width(self) -> int:
        """Columns of all panels, those beyond the weights' included."""
        return self.data.shape[0] * self.data.shape[2]

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


class Table(Panels):
    """A table [V, D] of which rows are picked, and whose transpose multiplies: panels of the transpose."""

    __slots__ = ()

    @classmethod
    def of(cls, table: np.ndarray, width: int = WIDTH) -> "Table":
        """The panels of a table [V, D]."""
        return cls(Panels.of(table.T, width).data, table.shape)

    @property
    def T(self) -> Panels:
        """The transpose [D, V], which a product wants; no copy."""
        return Panels(self.data, self.shape[::-1])

    def take(self, ids: np.ndarray) -> np.ndarray:  # [..] -> [.., D]
        """The rows of these numbers, a copy."""
        return self.data[ids // WIDTH, :, ids % WIDTH]

    def plain(self) -> np.ndarray:
        """The table [V, D], a copy."""
        v, d = self.shape
        return np.ascontiguousarray(self.data.swapaxes(1, 2)).reshape(-1, d)[:v]


def stored_shape(shape: tuple[int, ...], width: int = WIDTH) -> tuple[int, int, int]:
    """Shape of the panels of weights [K, N]."""
    k, n = shape
    return -(-n // width), k, width


def narrow_width(n: int) -> int:
    """Width of the panels of weights that have only n columns: not more than they need."""
    return min(WIDTH, -(-n // NARROWEST) * NARROWEST)


def room(m: int) -> int:
    """How many rows operands of m rows have: BLAS treats a single row otherwise, so a row left alone gets a second one."""
    return m + (m % ROWS == 1)


def product(x: np.ndarray, w: Panels, bias: np.ndarray | None = None) -> np.ndarray:  # [m, K], [K, N], [N] -> [m, N]
    """x @ w (+ bias)."""
    m, n = len(x), w.shape[1]
    x = _with_room(x)
    out = buffers.empty((len(x), w.width), x.dtype)
    bind(x, w, out, bias)()
    return out[:m, :n]


def added(c: np.ndarray, x: np.ndarray, w: Panels) -> np.ndarray:  # [m, N], [m, K], [K, N] -> [m, N]
    """c + x @ w for a w so low that most of the work is adding: each thread has many rows, and few calls to make."""
    m, n = c.shape
    x = _with_room(x)
    out = buffers.empty((len(x), w.width), x.dtype)

    def some(rows: slice) -> None:
        own = slice(rows.start, rows.start + room(rows.stop - rows.start))
        _BoundProduct(x[own], w, out[own], None).alone()
        np.add(out[rows, :n], c[rows], out=out[rows, :n])

    threads.for_rows(m, ADDED_ROWS, some)
    return out[:m, :n]


def _with_room(x: np.ndarray) -> np.ndarray:  # [m, K] -> [room, K]
    return x if len(x) == room(len(x)) else np.concatenate([x, np.zeros((1, x.shape[1]), x.dtype)])


def bind(
    x: np.ndarray, w: Panels, out: np.ndarray, bias: np.ndarray | None = None, following: Panels | None = None
) -> Call:
    """A call that sets out[:, :N] = x @ w (+ bias), for whatever x [room, K] then holds; out is [room, w.width].

    `following` are the weights of the next product, of about as many rows, which another thread begins to read meanwhile.
    """
    return _BoundProduct(x, w, out, bias).call(following)


class _BoundProduct:
    """x @ w (+ bias), to be computed again and again: what each thread calls is prepared, down to the views.

    The depth is cut into `parts` whose products, the terms, are added up; the panels into `pieces`, one for a thread each.
    """

    def __init__(self, x: np.ndarray, w: Panels, out: np.ndarray, bias: np.ndarray | None) -> None:
        self.x, self.w, self.out, self.bias = x, w, out, bias
        self.parts = _parts(w.shape[0])
        self.pieces = _pieces(len(x), w)

    def call(self, following: Panels | None) -> Call:
        """All of it in one call."""
        if self.parts > 1 and self.parts * self.out.nbytes > MOST_TERMS:
            return _on_all_cores([partial(self._one_piece, piece) for piece in self.pieces])
        terms = self._terms(self.out)
        products = [self._multiply(piece, terms[:, :, _columns(piece)]) for piece in self.pieces]
        ahead = None if following is None else _read_ahead(following, len(self.x))
        if len(self.x) > ROWS:
            ends = [self._add_up(terms, self.out, _columns(piece)) for piece in self.pieces]
            return _on_all_cores([_in_turn([*product, *end]) for product, end in zip(products, ends)], ahead)
        # Adding up a few rows is not worth a second thread, which would wait for the interpreter.
        multiplied = _on_all_cores([_in_turn(product) for product in products], ahead)
        return _in_turn([multiplied, *self._add_up(terms, self.out, slice(0, None))])

    def alone(self) -> None:
        """All of it on the calling thread."""
        self._one_piece(slice(0, len(self.w.data)))

    def _one_piece(self, piece: slice) -> None:
        """The product with some panels, its terms in memory of the thread."""
        out = self.out[:, _columns(piece)]
        terms = self._terms(out)
        _in_turn([*self._multiply(piece, terms), *self._add_up(terms, out, slice(0, None), piece.start * WIDTH)])()

    def _terms(self, out: np.ndarray) -> np.ndarray:
        """Where the terms go; one alone is the product."""
        return out[None] if self.parts == 1 else buffers.scratch("panels", (self.parts, *out.shape), out.dtype)

    def _multiply(self, piece: slice, terms: np.ndarray) -> list[Call]:
        """Calls that set the terms [parts, m, P w] of x [m, K] @ each of the panels [P, K, w]."""
        return multiply(self.x, self.w.data[piece], terms)

    def _add_up(self, terms: np.ndarray, out: np.ndarray, columns: slice, first: int = 0) -> list[Call]:
        """Calls that add the terms in order, and the bias, in `columns` of out, whose first is the product's column `first`."""
        n = self.w.shape[1] - first
        columns = slice(columns.start, min(columns.stop or n, n, out.shape[1]))
        some = out[:, columns]
        calls: list[Call] = []
        if len(terms) > 1:
            calls.append(partial(np.add.reduce, terms[:, :, columns], axis=0, out=some))
        if self.bias is not None:
            calls.append(partial(np.add, some, self.bias[first:][columns], out=some))
        return calls


def _read_ahead(w: Panels, m: int) -> Call | None:
    """A call that reads the beginning of what a second thread reads of w for m rows, into its caches."""
    pieces = _pieces(m, w)
    if len(pieces) < 2:
        return None
    return partial(np.maximum.reduce, w.data[pieces[1]].reshape(-1)[: READ_AHEAD // w.dtype.itemsize])


def _pieces(m: int, w: Panels) -> list[slice]:
    """Ranges of panels for one thread each, cut by the size of the product with m rows."""
    count, flops = len(w.data), 2.0 * m * w.shape[0] * w.shape[1]
    pieces = 1 if flops < PARALLEL_FLOPS else 2 * max(1, round(flops / (2 * PIECE_FLOPS)))
    head_start = pieces == 2 and count >= HEAD_START  # of the caller, who need not be woken
    return slices.pieces(count, max(1, -(-count // pieces) + head_start))


def _columns(panels: slice) -> slice:
    return slice(panels.start * WIDTH, panels.stop * WIDTH)


def multiply(x: np.ndarray, panels: np.ndarray, terms: np.ndarray) -> list[Call]:
    """Calls that set the terms [parts, m, P w] of x [m, K] @ each of panels [P, K, w], the depth in equal parts."""
    count, _, width = panels.shape
    stack = _in_parts(panels, len(terms))
    return [partial(np.matmul, rows, stack, out=results) for rows, results in _row_groups(x, terms, count, width)]


def _in_parts(panels: np.ndarray, parts: int) -> np.ndarray:  # [P, K, w] -> [parts, P, 1, K / parts, w]
    count, _, width = panels.shape
    return panels.reshape(count, parts, 1, -1, width).swapaxes(0, 1)


def _row_groups(
    x: np.ndarray, terms: np.ndarray, count: int, width: int
) -> list[tuple[np.ndarray, np.ndarray]]:  # of [parts, 1, G, rows, K / parts], [parts, P, G, rows, w]
    """x [m, K] and terms [parts, m, P w] in groups of ROWS rows, as many as there are; and what remains as one more."""
    m, parts = len(x), len(terms)
    x = x.reshape(m, parts, -1)
    whole = m - m % ROWS
    return [
        (
            x[some].reshape(-1, rows, *x.shape[1:]).transpose(2, 0, 1, 3)[:, None],
            terms[:, some].reshape(parts, -1, rows, count, width).transpose(0, 3, 1, 2, 4),
        )
        for some, rows in ((slice(0, whole), ROWS), (slice(whole, m), m - whole))
        if some.stop > some.start
    ]


def bind_late(x: np.ndarray, out: np.ndarray, like: Panels) -> Callable[[Panels], None]:
    """A call that sets out[:, :N] = x @ w, for whatever x [room, K], a few rows, then holds and whatever w [K, N] it is given.

    `like` is one such w.
    """
    count, k, width = like.data.shape
    parts = _parts(k)
    terms = out[None] if parts == 1 else buffers.scratch("panels", (parts, *out.shape), out.dtype)
    groups = _row_groups(x, terms, count, width)

    def call(w: Panels) -> None:
        stack = _in_parts(w.data, parts)
        for rows, results in groups:
            np.matmul(rows, stack, out=results)
        if parts > 1:
            np.add.reduce(terms, axis=0, out=out)

    return call


def _in_turn(calls: Sequence[Call]) -> Call:
    """One call that makes these one after the other."""
    return calls[0] if len(calls) == 1 else partial(_call_each, calls)


def _call_each(calls: Sequence[Call]) -> None:
    for call in calls:
        call()


def _on_all_cores(calls: Sequence[Call], ahead: Call | None = None) -> Call:
    """One call that makes these on all cores; a thread that has none left makes the call `ahead`, for which nobody waits."""
    return calls[0] if len(calls) == 1 else threads.prepared(calls, ahead)


@lru_cache(maxsize=64)
def _parts(k: int) -> int:
    """Into how many equal parts the depth is cut, so that ROWS rows make small products; 1 where there are none."""
    return next((n for n in range(-(-k // DEPTH), k // 16 + 1) if k % n == 0), 1)


def are_usable(depths: Sequence[int]) -> bool:
    """Whether panels of weights of these depths give each row the same bits in any company, and are not slow."""
    return all(_is_usable(k) for k in sorted({depth // _parts(depth) for depth in depths}))


@lru_cache(maxsize=64)
def keep_rows_alone(k: int, width: int) -> bool:
    """Whether panels of weights of this depth, and of this width each, give a row the same bits in any company."""
    x, w = _trial(k // _parts(k), width)
    panels = Panels.of(w, width)
    return _rows_are_alone(lambda x: product(x, panels), x)


def _trial(k: int, n: int) -> tuple[np.ndarray, np.ndarray]:  # [2 ROWS, k], [k, n]
    random = np.random.Generator(np.random.Philox(1))
    return random.standard_normal((2 * ROWS, k), np.float32), random.standard_normal((k, n), np.float32)


@lru_cache(maxsize=64)
def _is_usable(k: int) -> bool:
    x, w = _trial(k, 8 * WIDTH)
    panels = Panels.of(w)
    if not _rows_are_alone(lambda x: product(x, panels), x):
        return False
    w = np.tile(w, (1, TRIAL_SCALARS // w.size + 1))
    panels = Panels.of(w)
    out = np.empty((1, 4, panels.data.shape[0] * WIDTH), np.float32)
    calls = multiply(x[:4], panels.data, out)
    # Where the bits are equal, panels take 0.2 to 0.45 of the time; only a BLAS nobody has met is excluded here. So busy cores,
    # which stretch either time by chance, cannot make two sessions choose differently.
    return _seconds(_in_turn(calls)) < 2 * _seconds(lambda: x[:4] @ w)


@lru_cache(maxsize=1)
def small_kernels() -> bool:
    """Whether BLAS multiplies small matrices by kernels of their own, which treat every row alike."""
    x, w = np.sin(np.arange(2 * WIDTH**2, dtype=np.float32)).reshape(2, WIDTH, WIDTH)  # numpy.random takes long to load
    whole = x @ w
    return all(np.array_equal(x[:m] @ w, whole[:m]) for m in (2, 3, 5, 8, 16, 31))


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
