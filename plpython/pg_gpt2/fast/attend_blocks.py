"""Attention of a few new rows over keys and values kept in blocks of 64 positions; a row's bits do not depend on the others.

Keys lie as [H, blocks, d, 64], values as [H, positions, d]: all products are small ones, as in panels.py. What a row does not see
has weight 0 and adds nothing, so neither the number of rows nor that of blocks matters.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache, partial

import numpy as np

from . import buffers, panels, slices, threads
from .attend import factor_of

BLOCK = 64  # positions
ROWS = 8  # in a product
GROUPS = 8  # of rows at a time
STREAMS = 8  # a task
VECTOR = 16  # heads of whole vectors have the same bits whatever number of positions is mixed; others want whole blocks
SEGMENT = 1024  # positions whose values are mixed in one product, where it is a small one


def attend_blocks(
    q: np.ndarray, keys: np.ndarray, values: np.ndarray, out: np.ndarray, offset: int, factor: float | None = None
) -> None:  # [H, t, d], [H, blocks, d, 64], [H, 64 blocks, d], [H, t, d]
    """out = softmax(factor q k') v, where row i sees the positions 0 .. offset + i; no factor = 1 / sqrt(d)."""
    whole = q.shape[1] - q.shape[1] % ROWS
    for rows in slices.pieces(whole, ROWS * GROUPS):
        _attend_groups(q[:, rows], keys, values, out[:, rows], offset + rows.start, factor)
    if whole < q.shape[1]:
        attend_few(q[:, whole:], keys, values, out[:, whole:], offset + whole, factor=factor)


def _attend_groups(
    q: np.ndarray, keys: np.ndarray, values: np.ndarray, out: np.ndarray, offset: int, factor: float | None
) -> None:
    """Groups of ROWS rows, in the same few calls: the products of `attend_few`, and its bits."""
    n_head, t, d = q.shape
    blocks = -(-(offset + t) // BLOCK)
    rows = buffers.scratch("queries", (n_head, t // ROWS, 1, ROWS, d), q.dtype)
    np.multiply(q, factor_of(d, factor), out=rows.reshape(q.shape))
    scores = buffers.scratch("scores", (n_head, t // ROWS, ROWS, blocks, BLOCK), q.dtype)
    np.matmul(rows, keys[:, None, :blocks], out=scores.swapaxes(2, 3))
    z = scores.reshape(n_head, t, -1)
    z[..., offset:] += _future(t)[:, : z.shape[-1] - offset]
    _mix(scores, ROWS, offset + t, values[:, None], out.reshape(n_head, -1, ROWS, d))


def attend_few(
    q: np.ndarray,
    keys: np.ndarray,
    values: np.ndarray,
    out: np.ndarray,
    offset: int,
    heads: int = 0,
    factor: float | None = None,
) -> None:
    """`attend_blocks` of at most ROWS rows; the products of so many `heads` are a task each, 0 for one thread."""
    n_head, t, d = q.shape
    blocks = -(-(offset + t) // BLOCK)
    tasks = slices.pieces(n_head, heads or n_head)
    rows = buffers.scratch("queries", (n_head, 1, max(2, t), d), q.dtype)  # BLAS treats a single row otherwise
    rows[:, :, 1:] = 0
    np.multiply(q, factor_of(d, factor), out=rows[:, 0, :t])
    scores = buffers.scratch("scores", (n_head, max(2, t), blocks, BLOCK), q.dtype)
    results = scores.swapaxes(1, 2)
    threads.run([partial(np.matmul, rows[h], keys[h, :blocks], out=results[h]) for h in tasks])
    z = scores.reshape(n_head, -1, blocks * BLOCK)[:, :t, offset:]
    np.add(z, _future(t)[:, : blocks * BLOCK - offset], out=z)
    _mix(scores, t, offset + t, values, out, tasks)


def attend_each(
    q: np.ndarray,
    keys: np.ndarray,
    values: np.ndarray,
    out: np.ndarray,
    places: np.ndarray,
    keep: Callable[[slice], object],
    factor: float | None = None,
) -> None:  # [S, H, d], [S, H, blocks, d, 64], [S, H, 64 blocks, d], [S, H, d], [S]
    """`attend_blocks` of one row for each of several streams, which sees the positions 0 .. its place.

    `keep` stores the new keys and values of some streams; it is called on the thread that reads them next.
    """
    n, n_head, d = q.shape
    blocks = int(places.max()) // BLOCK + 1
    tasks = slices.pieces(n, STREAMS)
    rows = buffers.scratch("queries", (n, n_head, 1, 2, d), q.dtype)
    rows[:, :, :, 1] = 0
    np.multiply(q, factor_of(d, factor), out=rows[:, :, 0, 0])
    scores = buffers.scratch("scores", (n, n_head, 2, blocks, BLOCK), q.dtype)
    results = scores.swapaxes(2, 3)

    def score(s: slice) -> None:
        keep(s)
        np.matmul(rows[s], keys[s, :, :blocks], out=results[s])

    threads.run([partial(score, s) for s in tasks])
    z = scores.reshape(n, n_head, 2, -1)[:, :, :1]
    z += np.where(np.arange(z.shape[-1]) > places[:, None, None, None], np.float32(-np.inf), np.float32(0))
    _mix(scores, 1, int(places.max()) + 1, values, out[:, :, None], tasks)


def _mix(
    scores: np.ndarray,
    t: int,
    seen: int,
    values: np.ndarray,
    out: np.ndarray,
    tasks: Sequence[slice] = (slice(None),),
) -> None:
    """out [.., t, d] = softmax(scores) values, of the first t rows of [.., room, blocks, 64], which see at most `seen` positions.

    Only the products are shared out, by the first axis: two threads with a dozen small calls each wait for the interpreter.
    """
    flat = scores.reshape(*scores.shape[:-2], -1)
    z = flat[..., :t, :]
    np.subtract(z, np.maximum.reduce(z, axis=-1, keepdims=True), out=z)
    np.exp(z, out=z)
    total = np.matmul(z[..., None, :], _ones(z.shape[-1]))[..., 0]  # dot products: np.add sums short rows slowly
    d = values.shape[-1]
    first, *more = slices.pieces(flat.shape[-1] if d % VECTOR else seen, _segment(d))
    mixed = np.empty((*flat.shape[:-1], d), values.dtype)

    def mix(some: slice) -> None:
        np.matmul(flat[some, ..., first], values[some, ..., first, :], out=mixed[some])
        for part in more:
            mixed[some] += np.matmul(flat[some, ..., part], values[some, ..., part, :])

    threads.run([partial(mix, some) for some in tasks])
    np.divide(mixed[..., :t, :], total, out=out)


@lru_cache(maxsize=64)
def _ones(n: int) -> np.ndarray:
    """[n, 1]."""
    return np.ones((n, 1), np.float32)


@lru_cache(maxsize=ROWS + GROUPS)
def _future(rows: int) -> np.ndarray:
    """[rows, rows + 63]: -inf where the key comes after the query, else 0; up to the end of a block."""
    return np.triu(np.full((rows, rows + BLOCK - 1), -np.inf, np.float32), 1)


def store(
    keys: np.ndarray, values: np.ndarray, k: np.ndarray, v: np.ndarray, start: int
) -> None:  # [H, blocks, d, 64], [H, 64 blocks, d], [H, t, d], [H, t, d]
    """Keep keys and values of the positions from `start` on."""
    end = start + k.shape[1]
    values[:, start:end] = v
    for block in range(start // BLOCK, -(-end // BLOCK)):
        first = block * BLOCK
        places = slice(max(start, first), min(end, first + BLOCK))
        keys[:, block, :, places.start - first : places.stop - first] = k[
            :, places.start - start : places.stop - start
        ].swapaxes(-1, -2)


@lru_cache(maxsize=16)
def _segment(d: int) -> int:
    """Positions whose values, d wide, are mixed in one product; 0 where none is small."""
    return min(SEGMENT, panels.SMALL // (ROWS * d) // BLOCK * BLOCK)


@lru_cache(maxsize=16)
def is_usable(d: int) -> bool:
    """Whether rows of heads of width d have the same bits alone and together, with this CPU and BLAS."""
    return _segment(d) > 0 and all(_rows_are_alone(d, offset) for offset in (0, _segment(d) - BLOCK))


def _rows_are_alone(d: int, offset: int) -> bool:
    """So it is for rows at the positions from `offset` on."""
    random = np.random.Generator(np.random.Philox(2))
    t = offset + 2 * BLOCK
    q, k, v = random.standard_normal((3, 2, t, d), np.float32)
    keys, values = np.zeros((2, t // BLOCK, d, BLOCK), np.float32), np.zeros((2, t, d), np.float32)
    store(keys, values, k, v, 0)
    whole = np.empty((2, 2 * BLOCK, d), np.float32)
    attend_blocks(q[:, offset:], keys, values, whole, offset)
    for start, rows in ((0, 1), (5, 3), (31, 1), (60, 7), (90, 2), (127, 1)):
        some = np.empty((2, rows, d), np.float32)
        attend_blocks(q[:, offset + start :][:, :rows], keys, values, some, offset + start)
        if not np.array_equal(some, whole[:, start : start + rows]):
            return False
    return True
