"""Passes of a model over several texts, laid end to end: what is computed row by row is shared, attention is each text's own.

A pass reads all weights, so many short texts cost hardly more than a long one. Several passes are computed at a time, each by one
core: two cores that share the ops of one pass wait for each other at every op. With weights in panels a text's states have the
bits that a `Decoder` gives it alone; elsewhere a product's last bits depend on how many rows it has.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import groupby, islice
from typing import TypeVar

import numpy as np

from ..core import gpt2
from ..core.config import GPT2Config
from ..core.tape import Eager
from ..fast import buffers, threads
from ..fast.cache import RowCache, attend_alike
from ..fast.layout import DecoderWeights
from ..fast.products import as_rows
from .decode import kind_of_cache

ROWS = 512  # of a pass, unless one text has more: fewer read the weights more often, more leave a core's cache
MOST_PASSES, TURN = 8, 0.5  # of each core between two reports of progress; fewer where they take more seconds

T = TypeVar("T")


def passes(parts: Iterable[T], rows_of: Callable[[T], int]) -> Iterator[list[T]]:
    """`parts` in order, those together that share a pass."""
    together: list[T] = []
    room = ROWS
    for part in parts:
        if together and rows_of(part) > room:
            yield together
            together, room = [], ROWS
        together.append(part)
        room -= rows_of(part)
    if together:
        yield together


def run_passes(
    parts: Iterable[T], rows_of: Callable[[T], int], work: Callable[[list[T]], object]
) -> Iterator[list[list[T]]]:
    """Call work(parts of a pass) for each pass, on all cores; the passes, some at a time, when they are done.

    What shares a pass does not depend on the number of cores.
    """
    waiting, count = passes(parts, rows_of), 1
    while some := list(islice(waiting, count * threads.threads())):
        began = time.monotonic()
        threads.run([partial(work, together) for together in some])
        if time.monotonic() - began < TURN:
            count = min(2 * count, MOST_PASSES)
        yield some


def states(
    params: DecoderWeights,
    config: GPT2Config,
    texts: Sequence[np.ndarray],
    depth: int,
    wanted: Sequence[int] | None = None,
) -> np.ndarray:  # each [T] -> [sum T, D], or with `wanted` [sum wanted, D]
    """The stream after `depth` blocks, and after ln_f where these are all; until the next pass of this thread.

    With `wanted`, so many rows of each text, its last: the last block works for these only.
    """
    sizes = [len(ids) for ids in texts]
    ends = np.cumsum(sizes)
    attend_each = _attention(params, config, sizes)

    def attend(layer: int, qkv: np.ndarray, factor: float | None) -> np.ndarray:  # [sum T, 1, 3D] -> [n, 1, D]
        counts = sizes if wanted is None or layer < depth - 1 else wanted
        out = np.empty((sum(counts), config.d_model), qkv.dtype)
        attend_each(as_rows(qkv), out, counts, factor)
        return out[:, None]

    def keep(x: np.ndarray) -> np.ndarray:  # [sum T, 1, D] -> [n, 1, D]
        if wanted is None or sum(wanted) == len(x):
            return x
        return x[np.concatenate([np.arange(end - count, end) for end, count in zip(ends, wanted)])]

    run = Eager()
    how = gpt2.Pass(attend=attend)
    with buffers.reusing(buffers.kept() if ends[-1] <= ROWS else buffers.LooseBufferPool()):
        ids, places = np.concatenate(texts)[:, None], np.concatenate([np.arange(size) for size in sizes])
        x = gpt2.embed(run, params, ids, position=places)
        if not depth:
            x = keep(x)
        for i in range(depth):
            x = gpt2.block_of(run, params, x, config, i, how if i < depth - 1 else replace(how, keep=keep))
        if depth == config.n_layer:
            x = gpt2.last_norm(run, params, x, config)
        return as_rows(x)


def _attention(
    params: DecoderWeights, config: GPT2Config, sizes: Sequence[int]
) -> Callable[[np.ndarray, np.ndarray, Sequence[int], float | None], None]:
    """A function of qkv [sum sizes, 3D], out [sum counts, D], counts and the factor of scores: attention of so many rows of each
    text, its last, over that text."""
    kind = kind_of_cache(params)
    if kind is RowCache:

        def attend(qkv: np.ndarray, out: np.ndarray, counts: Sequence[int], factor: float | None) -> None:
            row = place = 0
            for (size, count), alike in groupby(zip(sizes, counts)):
                n = len(list(alike))
                threads.look()
                rows = slice(row, row := row + n * size)
                attend_alike(qkv[rows], out[place : (place := place + n * count)], n, config.n_head, factor)

        return attend

    # of the layer and text at hand: what follows in it, of others, is not seen
    cache = kind(replace(config, n_layer=1), max(sizes))

    def attend_by_cache(qkv: np.ndarray, out: np.ndarray, counts: Sequence[int], factor: float | None) -> None:
        row = place = 0
        for size, count in zip(sizes, counts):
            threads.look()
            rows = slice(row, row := row + size)
            cache.attend(0, qkv[rows], out[place : (place := place + count)], 0, factor)

    return attend_by_cache
