"""Streams of tokens through a model: keys and values are kept, so that a new token costs one row of work.

The model itself is gpt2.hidden; what differs is the layout of its weights, and that its attention goes over a cache. Passes over
a few rows are prepared once: see prepared.py.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from .. import host
from ..core import gpt2
from ..core.cache import KeyValues
from ..core.config import GPT2Config
from ..core.op import is_fast
from ..core.tape import Eager
from ..errors import InconsistentData, InvalidParameter
from ..fast import buffers, prepared, slices, threads
from ..fast.cache import Arena, BlockCache, Cache, RowCache, block_caches, bytes_of_caches
from ..fast.layout import DecoderWeights
from ..fast.ops import lookup
from ..fast.panels import Panels
from ..fast.prepared import Attend
from ..fast.products import as_rows
from ..tensor import FLOAT32

PREFILL_ROWS = 512  # rows of the prompt a pass: fewer read the weights more often, more leave a core's cache
LOGITS_ROWS = 128  # at a time

Wanted = np.ndarray | slice  # rows of a pass whose results somebody reads: the last block works for these only
ALL, LAST = slice(None), slice(-1, None)


class Decoder:
    """Feeds tokens to a model and gives logits; holds keys and values of at most `room` positions.

    `exact` says that a row's results have the same bits whatever rows share its pass; it comes with weights in panels.
    """

    def __init__(self, params: DecoderWeights, config: GPT2Config, room: int, cache: Cache | None = None) -> None:
        self.params = params
        self.config = config
        self.length = 0
        self.exact = _is_exact(params)
        kind = BlockCache if self.exact else RowCache if is_fast() else KeyValues
        self.cache: Cache = cache or kind(config, min(room, config.n_positions))

    def feed(self, ids: Sequence[int]) -> np.ndarray:
        """Append `ids`; logits [vocab] of what follows the last of them."""
        for rows in slices.pieces(len(ids), PREFILL_ROWS):
            x = self._read(ids[rows], LAST)
            host.check_interrupts()
        return checked(_logits(self.params, x))[0]

    def feed_all(self, ids: Sequence[int]) -> np.ndarray:
        """Append `ids`, a few; logits [len(ids), vocab] of what follows each, not checked to be finite."""
        return _logits(self.params, self._read(ids))

    def _read(self, ids: Sequence[int], wanted: Wanted = ALL) -> np.ndarray:  # [T] -> [T, D] or what is wanted of it
        tokens = np.asarray(ids, np.int64)[None]
        x = _hidden(self.params, self.config, tokens, self.length, self.attend, wanted)
        self.length += tokens.size
        return x

    def rewind(self, length: int) -> None:
        """Forget the positions from `length` on."""
        self.length = length

    def copy(self) -> "Decoder":
        """Another stream that has read the same tokens."""
        twin = Decoder(self.params, self.config, self.cache.room)
        twin.length = self.length
        self.cache.copy_to(twin.cache, self.length)
        return twin

    def attend(self, layer: int, qkv: np.ndarray, out: np.ndarray) -> None:  # [T, 3D], [t, D]
        """Attention of the last t new rows over all positions so far; keys and values of all new rows are kept."""
        self.cache.attend(layer, qkv, out, self.length)


def feed_together(decoders: Sequence[Decoder], texts: Sequence[Sequence[int]]) -> np.ndarray:
    """Append a text to each of several streams of one model; logits [len(decoders), vocab] of what follows each.

    They share passes where a row's company does not matter.
    """
    first = decoders[0]
    if not first.exact:
        return np.array([decoder.feed(ids) for decoder, ids in zip(decoders, texts)])
    last = np.empty((len(decoders), first.config.d_model), FLOAT32)
    for pieces in _packed([len(ids) for ids in texts]):
        numbers = [number for number, _ in pieces]
        last[numbers] = _read_together([decoders[i] for i in numbers], [texts[i][rows] for i, rows in pieces])
        host.check_interrupts()
    return checked(_logits(first.params, last))


def _packed(lengths: Sequence[int]) -> Iterator[list[tuple[int, slice]]]:
    """(number, slice) of texts of these lengths, those that share a pass."""
    pieces: list[tuple[int, slice]] = []
    room = PREFILL_ROWS
    for number, length in enumerate(lengths):
        start = 0
        while start < length:
            rows = slice(start, min(length, start + room))
            pieces.append((number, rows))
            start, room = rows.stop, room - (rows.stop - start)
            if not room:
                yield pieces
                pieces, room = [], PREFILL_ROWS
    if pieces:
        yield pieces


def _read_together(decoders: Sequence[Decoder], texts: Sequence[Sequence[int]]) -> np.ndarray:  # -> [len(decoders), D]
    """The stream after ln_f at the last token of each text."""
    sizes = [len(ids) for ids in texts]
    ends = np.cumsum(sizes)
    positions = np.concatenate([np.arange(d.length, d.length + size) for d, size in zip(decoders, sizes)])

    def attend_each(layer: int, qkv: np.ndarray, out: np.ndarray) -> None:  # [sum T, 3D], [sum T, D], at last [n, D]
        outs = np.split(out, ends[:-1] if len(out) == len(qkv) else len(decoders))
        for decoder, rows, mixed in zip(decoders, np.split(qkv, ends[:-1]), outs):
            decoder.attend(layer, rows, mixed)

    ids = np.concatenate([np.asarray(ids, np.int64) for ids in texts])[:, None]
    x = _hidden(decoders[0].params, decoders[0].config, ids, positions, attend_each, ends - 1)
    for decoder, size in zip(decoders, sizes):
        decoder.length += size
    return x


def step_together(decoders: Sequence[Decoder], tokens: Sequence[int]) -> np.ndarray:
    """Append one token to each of several streams of one model, in one pass; logits [len(decoders), vocab]."""
    first = decoders[0]
    ids = np.asarray(tokens, np.int64)[:, None]
    lengths = np.asarray([decoder.length for decoder in decoders])
    arenas = _arenas([decoder.cache for decoder in decoders if isinstance(decoder.cache, BlockCache)])

    def attend_each(layer: int, qkv: np.ndarray, out: np.ndarray) -> None:  # [B, 3D], [B, D]
        for arena, rows, slots in arenas:
            out[rows] = arena.attend(slots, layer, qkv[rows], lengths[rows])
        if not first.exact:
            threads.run(
                [lambda d=d, i=slice(i, i + 1): d.attend(layer, qkv[i], out[i]) for i, d in enumerate(decoders)]  # type: ignore[misc]
            )

    x = _hidden(first.params, first.config, ids, lengths, attend_each)
    for decoder in decoders:
        decoder.length += 1
    return checked(_logits(first.params, x))


def _arenas(caches: Sequence[BlockCache]) -> list[tuple[Arena, np.ndarray | slice, np.ndarray]]:
    """(arena, places of its caches among those given, their slots, which ascend) of each arena."""
    places: dict[Arena, list[int]] = {}
    for place, found in sorted(enumerate(caches), key=lambda item: item[1].slot):
        places.setdefault(found.arena, []).append(place)
    return [(arena, _rows(rows), np.array([caches[row].slot for row in rows])) for arena, rows in places.items()]


def _rows(numbers: list[int]) -> np.ndarray | slice:
    """An index of these rows, which need no copy when they follow each other."""
    first, end = numbers[0], numbers[-1] + 1
    return slice(first, end) if numbers == list(range(first, end)) else np.array(numbers)


def several(params: DecoderWeights, config: GPT2Config, rooms: Sequence[int]) -> list[Decoder]:
    """Decoders of streams that go on together."""
    rooms = [min(room, config.n_positions) for room in rooms]
    kept = block_caches(config, rooms) if _is_exact(params) else [None] * len(rooms)
    return [Decoder(params, config, room, cache) for room, cache in zip(rooms, kept)]


def bytes_of_several(params: DecoderWeights, config: GPT2Config, rooms: Sequence[int]) -> int:
    """Memory that the decoders of `several` take."""
    return bytes_of_caches(config, [min(room, config.n_positions) for room in rooms], _is_exact(params))


def _is_exact(params: DecoderWeights) -> bool:
    return isinstance(params["h.0.mlp.c_fc.weight"], Panels)


def _hidden(
    params: DecoderWeights,
    config: GPT2Config,
    ids: np.ndarray,
    position: gpt2.Position,
    attend: Attend,
    wanted: Wanted = ALL,
) -> np.ndarray:  # [B, T] -> [B T, D] or the rows of it that are wanted
    """The stream after ln_f, until the next call of this."""
    if ids.size <= prepared.MOST_ROWS and is_fast():
        gpt2.check_window(int(np.max(position)) + ids.shape[1], config)
        x = gpt2.embed(Eager(), params, ids, position=position)
        return prepared.prepared_pass(params, config, ids.size)(x.reshape(ids.size, -1), attend)[wanted]

    count = len(np.arange(ids.size)[wanted])

    def keep(x: np.ndarray) -> np.ndarray:  # [B, T, D] -> [n, D]
        return as_rows(x)[wanted]

    def attend_eagerly(layer: int, qkv: np.ndarray) -> np.ndarray:  # [B, T, 3D] -> [B, T, D], at last [n, D]
        last = layer == config.n_layer - 1
        out = np.empty((count, config.d_model) if last else (*qkv.shape[:2], config.d_model), qkv.dtype)
        attend(layer, as_rows(qkv), as_rows(out))
        return out

    with buffers.reusing(buffers.kept if ids.size <= PREFILL_ROWS else None):
        return as_rows(gpt2.hidden(Eager(), params, ids, config, position=position, attend=attend_eagerly, keep=keep))


def _logits(params: DecoderWeights, hidden: np.ndarray) -> np.ndarray:  # [B, D] -> [B, V]
    if len(hidden) <= LOGITS_ROWS:
        return lookup("lm_head")(hidden, params["wte"])
    logits = np.empty((len(hidden), params["wte"].shape[0]), hidden.dtype)
    for rows in slices.pieces(len(hidden), LOGITS_ROWS):
        logits[rows] = lookup("lm_head")(hidden[rows], params["wte"])
        host.check_interrupts()
    return logits


def checked(values: np.ndarray, what: str = "logits") -> np.ndarray:
    """`values`; 22000 when the largest is not finite, as where a NaN is among them."""
    if not np.isfinite(values.max()):
        raise InconsistentData(
            f"the model's {what} are not finite",
            hint="Its weights have NaN or huge values: go back to an earlier state, or import it again.",
        )
    return values


def check_ids(ids: Sequence[int], config: GPT2Config, model: str) -> None:
    """Refuse (22023) an id that is not one of the model's."""
    for place, token in enumerate(ids):
        if token is None or not 0 <= token < config.vocab:
            raise InvalidParameter(
                f"token id {'null' if token is None else token} at position {place} is not in 0..{config.vocab - 1},"
                f' the ids of model "{model}"',
                hint="llm_encode(text, model) gives the ids of a text.",
            )
