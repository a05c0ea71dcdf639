"""One pass of a model over several texts, laid end to end: what is computed row by row is shared, attention is each text's own.

A pass reads all weights, so many short texts cost hardly more than a long one. With weights in panels a text's states have the
bits that a `Decoder` gives it alone; elsewhere a product's last bits depend on how many rows it has.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np

from .. import host
from ..core import gpt2
from ..core.config import GPT2Config
from ..core.tape import Eager
from ..fast import buffers
from ..fast.layout import DecoderWeights
from ..fast.products import as_rows
from .decode import kind_of_cache

ROWS = 512  # of a pass, unless one text has more: fewer read the weights more often, more leave a core's cache

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


def states(
    params: DecoderWeights, config: GPT2Config, texts: Sequence[np.ndarray], depth: int
) -> np.ndarray:  # each [T] -> [sum T, D]
    """The stream after `depth` blocks, and after ln_f where these are all."""
    ends = np.cumsum([len(ids) for ids in texts])
    # of the layer and text at hand: what follows in it, of others, is not seen
    cache = kind_of_cache(params)(replace(config, n_layer=1), max(map(len, texts)))

    def attend(layer: int, qkv: np.ndarray, factor: float | None) -> np.ndarray:  # [sum T, 1, 3D] -> [sum T, 1, D]
        out = np.empty((len(qkv), config.d_model), qkv.dtype)
        for end, ids in zip(ends, texts):
            rows = slice(end - len(ids), end)
            cache.attend(0, qkv[rows, 0], out[rows], 0, factor)
            host.check_interrupts()
        return out[:, None]

    run = Eager()
    how = gpt2.Pass(attend=attend)
    with buffers.reusing(buffers.kept if ends[-1] <= ROWS else None):
        ids, places = np.concatenate(texts)[:, None], np.concatenate([np.arange(len(ids)) for ids in texts])
        x = gpt2.embed(run, params, ids, position=places)
        for i in range(depth):
            x = gpt2.block_of(run, params, x, config, i, how)
        if depth == config.n_layer:
            x = gpt2.last_norm(run, params, x, config)
        return as_rows(x)
