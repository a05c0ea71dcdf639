"""Streams of tokens through a model: keys and values are kept, so that a new token costs one row of work.

The model itself is gpt2.hidden; what differs is the layout of its weights, and that its attention goes over a cache. Passes over
a few rows are prepared once: see prepared.py.
"""

from array import array
from collections.abc import Iterator, Sequence
from functools import partial

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
from ..fast.prepared import Attend
from ..fast.products import as_rows
from ..tensor import FLOAT32
from .passes import Ids as Ids
from .passes import Piece, packed
from .trees import NO_TREE, Tree

PREFILL_ROWS = 512  # rows of the prompt a pass: fewer read the weights more often, more leave a core's cache
WHOLE = 128  # the same where rows influence each other: passes end at its multiples, and what whole ones read can be used again
LOGITS_ROWS = 128  # at a time

NO_SCORES = np.empty((2, 0))

Wanted = np.ndarray | slice  # rows of a pass whose results somebody reads: the last block works for these only
ALL, LAST = slice(None), slice(-1, None)


class Decoder:
    """Feeds tokens to a model and gives logits; holds keys and values of at most `room` positions.

    `exact` says that a row's results have the same bits whatever rows share its pass; it comes with weights in panels.
    `ids` is what it has read, the first `length` positions. The cache may have more room than was asked for.
    """

    def __init__(self, params: DecoderWeights, config: GPT2Config, room: int, cache: Cache | None = None) -> None:
        self.params = params
        self.config = config
        self.room = min(room, config.n_positions)
        self.length = 0
        self.ids = array("q")
        self.scores = NO_SCORES  # [2, s] log-probability and rank of ids[1 : s + 1], where `scoring` found them
        self.exact = params.exact
        self._whole = 0  # positions that were read in passes of WHOLE rows
        self.cache: Cache = cache or kind_of_cache(params)(config, self.room)

    @property
    def nbytes(self) -> int:
        """Memory of its keys and values."""
        return self.room_bytes(self.cache.room)

    def room_bytes(self, room: int) -> int:
        """Memory of keys and values of so many positions."""
        return bytes_of_caches(self.config, [room], self.exact)

    @property
    def reusable(self) -> int:
        """Positions whose keys and values are those of any stream that begins with the same tokens, bit for bit."""
        return self.length if self.exact else self._whole

    def usable_for(self, ids: np.ndarray, scored: bool = False) -> int:
        """How much of what was read a stream of `ids` can begin with; never all of them, because logits follow a row.
        `scored`: so that the scores of as many tokens and one more are known."""
        n = min(self.reusable, len(ids) - 1)
        differs = np.asarray(self.ids)[:n] != ids[:n]
        same = int(differs.argmax()) if differs.any() else n
        return self.boundary(max(0, min(same - 1, self.scores.shape[1])) if scored else same)

    def boundary(self, length: int) -> int:
        """The end of what can be used of `length` positions that were read."""
        return length if self.exact else length - length % WHOLE

    def resume(self, ids: Ids) -> Ids:
        """Forget what is no beginning of `ids`; what remains to be fed of them, at least the last."""
        self.rewind(self.usable_for(np.asarray(ids, np.int64)))
        return ids[self.length :]

    def feed(self, ids: Ids) -> np.ndarray:
        """Append `ids`; logits [vocab] of what follows the last of them."""
        return checked(logits_of(self.params, self.read(ids)))[0]

    def read(self, ids: Ids) -> np.ndarray:
        """Append `ids`; the stream after ln_f [1, D] at the last of them, until the next pass."""
        for x in self.passes(ids, LAST):
            last = x
        return last

    def passes(self, ids: Ids, wanted: Wanted = ALL) -> Iterator[np.ndarray]:
        """Append `ids`, in passes; of each the stream after ln_f at what is wanted of it, until the next pass."""
        most, before = (PREFILL_ROWS, 0) if self.exact else (WHOLE, self.length % WHOLE)
        for start in range(-before, len(ids), most):
            yield self._read(ids[max(0, start) : start + most], wanted)
            host.check_interrupts()

    def feed_all(self, ids: Ids) -> np.ndarray:
        """Append `ids`, a few; logits [len(ids), vocab] of what follows each, not checked to be finite."""
        return logits_of(self.params, self._read(ids))

    def feed_tree(self, tree: Tree) -> np.ndarray:  # -> [n, D]
        """The stream after ln_f at each token of a tree that follows what was read, until the next pass; nothing is appended."""
        if not len(tree):
            return np.empty((0, self.config.d_model), FLOAT32)
        return _read_pass(self, [Piece(0, self.cache, self.length, tree.tokens, tree)])[0]

    def _read(self, ids: Ids, wanted: Wanted = ALL) -> np.ndarray:  # [T] -> [T, D] or what is wanted of it
        tokens = np.asarray(ids, np.int64)
        x = _hidden(self.params, self.config, tokens[None], self.length, self.attend, wanted)
        self.append(tokens)
        return x

    def append(self, tokens: np.ndarray) -> None:
        """Note that a pass has read `tokens` [T] int64."""
        if tokens.size == WHOLE and self._whole == self.length:
            self._whole += WHOLE
        self.ids.frombytes(tokens.tobytes())
        self.length += tokens.size

    def rewind(self, length: int) -> None:
        """Forget the positions from `length` on."""
        del self.ids[length:]
        self.length = length
        if self._whole > length:
            self._whole = length - length % WHOLE
        if self.scores.shape[1] >= length:
            self.scores = self.scores[:, : max(0, length - 1)]

    def copy(self) -> "Decoder":
        """Another stream that has read the same tokens."""
        twin = Decoder(self.params, self.config, self.room)
        self.copy_to(twin, self.length)
        return twin

    def copy_to(self, other: "Decoder", length: int) -> None:
        """Let `other`, a stream of the same model, have read the first `length` positions of this one instead of its own."""
        self.cache.copy_to(other.cache, length)
        other.ids, other.length, other._whole, other.scores = self.ids[:], self.length, self._whole, self.scores
        other.rewind(length)

    def attend(self, layer: int, qkv: np.ndarray, out: np.ndarray, factor: float | None) -> None:  # [T, 3D], [t, D]
        """Attention of the last t new rows over all positions so far; keys and values of all new rows are kept."""
        self.cache.attend(layer, qkv, out, self.length, factor)


def feed_together(decoders: Sequence[Decoder], texts: Sequence[Ids]) -> np.ndarray:
    """Append a text to each of several streams of one model; logits [len(decoders), vocab] of what follows each.

    They share passes where a row's company does not matter.
    """
    first = decoders[0]
    if not first.exact:
        return np.array([decoder.feed(ids) for decoder, ids in zip(decoders, texts)])
    return checked(logits_of(first.params, read_together(decoders, texts)))


def read_together(decoders: Sequence[Decoder], texts: Sequence[Ids]) -> np.ndarray:  # -> [len(decoders), D]
    """As `feed_together`: the stream after ln_f at the last token of each text."""
    return np.concatenate(read_with_trees(decoders, texts, [NO_TREE] * len(texts)))


def read_with_trees(decoders: Sequence[Decoder], texts: Sequence[Ids], trees: Sequence[Tree]) -> list[np.ndarray]:
    """Append a text to each of several streams, and have a tree follow it as `feed_tree` does: the stream after ln_f at the last
    token of each text and at the n of its tree, [1 + n, D]."""
    first = decoders[0]
    found = [np.empty((1 + len(tree), first.config.d_model), FLOAT32) for tree in trees]
    if not first.exact:
        for decoder, ids, tree, rows in zip(decoders, texts, trees, found):
            rows[:1] = decoder.read(ids)
            rows[1:] = decoder.feed_tree(tree)
        return found
    lengths = [decoder.length for decoder in decoders]
    for pieces in packed([decoder.cache for decoder in decoders], lengths, texts, trees, PREFILL_ROWS):
        for piece, rows in zip(pieces, _read_pass(first, pieces)):
            if piece.tree is None:
                decoders[piece.number].append(piece.tokens)
                found[piece.number][:1] = rows
            else:
                found[piece.number][1:] = rows
        host.check_interrupts()
    return found


def _read_pass(decoder: Decoder, pieces: Sequence[Piece]) -> list[np.ndarray]:
    """The stream after ln_f at those rows of each piece that are wanted, until the next pass."""
    sizes = [len(piece.tokens) for piece in pieces]
    starts, ends = np.cumsum([0, *sizes[:-1]]), np.cumsum(sizes)[:-1]
    wanted = [start + piece.wanted for start, piece in zip(starts, pieces)]
    wanted_ends = np.cumsum([len(rows) for rows in wanted])[:-1]

    def attend_each(
        layer: int, qkv: np.ndarray, out: np.ndarray, factor: float | None
    ) -> None:  # [rows, 3D], [rows, D], at last those wanted
        outs = np.split(out, ends if len(out) == len(qkv) else wanted_ends)
        for piece, rows, mixed in zip(pieces, np.split(qkv, ends), outs):
            piece.attend(layer, rows, mixed, factor)

    ids = np.concatenate([piece.tokens for piece in pieces])[:, None]
    positions = np.concatenate([piece.positions for piece in pieces])
    x = _hidden(decoder.params, decoder.config, ids, positions, attend_each, np.concatenate(wanted))
    return np.split(x, wanted_ends)


def step_together(decoders: Sequence[Decoder], tokens: Sequence[int]) -> np.ndarray:
    """Append one token to each of several streams of one model, in one pass; logits [len(decoders), vocab]."""
    first = decoders[0]
    ids = np.asarray(tokens, np.int64)[:, None]
    lengths = np.asarray([decoder.length for decoder in decoders])
    arenas = _arenas([decoder.cache for decoder in decoders if isinstance(decoder.cache, BlockCache)])

    def attend_each(layer: int, qkv: np.ndarray, out: np.ndarray, factor: float | None) -> None:  # [B, 3D], [B, D]
        for arena, rows, slots in arenas:
            out[rows] = arena.attend(slots, layer, qkv[rows], lengths[rows], factor)
        if not first.exact:
            rows_of = [slice(i, i + 1) for i in range(len(decoders))]
            threads.run([partial(d.attend, layer, qkv[i], out[i], factor) for d, i in zip(decoders, rows_of)])

    x = _hidden(first.params, first.config, ids, lengths, attend_each)
    for decoder, token in zip(decoders, ids):
        decoder.append(token)
    return checked(logits_of(first.params, x))


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
    kept = block_caches(config, rooms) if params.exact else [None] * len(rooms)
    return [Decoder(params, config, room, cache) for room, cache in zip(rooms, kept)]


def bytes_of_several(params: DecoderWeights, config: GPT2Config, rooms: Sequence[int]) -> int:
    """Memory that the decoders of `several` take."""
    return bytes_of_caches(config, [min(room, config.n_positions) for room in rooms], params.exact)


def kind_of_cache(params: DecoderWeights) -> type[BlockCache] | type[RowCache] | type[KeyValues]:
    """How a Decoder of these weights keeps keys and values now."""
    return BlockCache if params.exact else RowCache if is_fast() else KeyValues


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
        return prepared.prepared_pass(params, config, ids.size)(params, x.reshape(ids.size, -1), attend)[wanted]

    count = len(np.arange(ids.size)[wanted])

    def keep(x: np.ndarray) -> np.ndarray:  # [B, T, D] -> [n, D]
        return as_rows(x)[wanted]

    def attend_eagerly(
        layer: int, qkv: np.ndarray, factor: float | None
    ) -> np.ndarray:  # [B, T, 3D] -> [B, T, D], at last [n, D]
        last = layer == config.n_layer - 1
        out = np.empty((count, config.d_model) if last else (*qkv.shape[:2], config.d_model), qkv.dtype)
        attend(layer, as_rows(qkv), as_rows(out), factor)
        return out

    with buffers.reusing(buffers.kept() if ids.size <= PREFILL_ROWS else None):
        return as_rows(gpt2.hidden(Eager(), params, ids, config, position=position, attend=attend_eagerly, keep=keep))


def logits_of(params: DecoderWeights, hidden: np.ndarray) -> np.ndarray:  # [B, D] -> [B, V]
    table = gpt2.output_table(params)
    if len(hidden) <= LOGITS_ROWS:
        return lookup("lm_head")(hidden, table)
    logits = np.empty((len(hidden), table.shape[0]), hidden.dtype)
    for rows in slices.pieces(len(hidden), LOGITS_ROWS):
        logits[rows] = lookup("lm_head")(hidden[rows], table)
        host.check_interrupts()
    return logits


def checked(values: np.ndarray, what: str = "the model's logits") -> np.ndarray:
    """`values`; 22000 when the largest is not finite, as where a NaN is among them."""
    if not np.isfinite(values.max()):
        raise InconsistentData(
            f"{what} are not finite",
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
