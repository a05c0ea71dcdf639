"""Keys and values of the positions that a stream has read, and attention of new rows over them: in rows, or in blocks.

Blocks go with panels: there a row's attention has the same bits whatever other rows it is computed with.
"""

from collections.abc import Callable, Sequence
from math import prod
from typing import Any, Protocol

import numpy as np

from ..core.config import GPT2Config
from ..tensor import FLOAT32
from . import attend_blocks, threads
from .attend import attend
from .attend_tree import attend_tree

MOST_HEADS = 6  # a task
SHARED_COSTS = 6e6  # below, in positions x 3D x (4 + rows), attention costs less than handing over half of it


class Cache(Protocol):
    """Keys and values of all layers, of at most `room` positions. `shares` its memory with caches of other streams, or not."""

    room: int

    @property
    def shares(self) -> bool: ...

    def attend(self, layer: int, qkv: np.ndarray, out: np.ndarray, start: int, factor: float | None = None) -> None:
        """Keep the keys and values of the rows qkv [T, 3D], and give the last of them attention, as many as out [t, D] has.

        A row sees the positions before `start`, the rows before it, and itself. `factor` is that of scores, or 1 / sqrt(d).
        """

    def attend_tree(
        self, layer: int, qkv: np.ndarray, out: np.ndarray, start: int, mask: np.ndarray, factor: float | None = None
    ) -> None:
        """out [n, D] = attention of the n rows of a tree, qkv [n, 3D], of which nothing is kept.

        Row i sees the positions before `start`, and those rows of the tree where row i of mask [n, n] has 0 and not -inf.
        """

    def copy_to(self, other: Any, length: int) -> None:
        """The first `length` positions, into a cache of the same kind."""


class RowCache:
    """Keys and values as [H, positions, d]."""

    shares = False

    def __init__(self, config: GPT2Config, room: int) -> None:
        self.room, self._n_head = room, config.n_head
        shape = self._shape(config, room)
        self._keys, self._values = np.empty(shape, FLOAT32), np.empty(shape, FLOAT32)

    @staticmethod
    def _shape(config: GPT2Config, room: int) -> tuple[int, ...]:
        return config.n_layer, config.n_head, room, config.d_head

    @classmethod
    def nbytes(cls, config: GPT2Config, room: int) -> int:
        """Memory that one takes."""
        return 2 * FLOAT32.itemsize * prod(cls._shape(config, room))

    def attend(
        self, layer: int, qkv: np.ndarray, out: np.ndarray, start: int, factor: float | None = None
    ) -> None:  # [T, 3D], [t, D]
        """As `Cache.attend`, over rows: one product a group of heads."""
        end, first = start + len(qkv), start + len(qkv) - len(out)
        q, k, v = _heads(qkv, 3, self._n_head)
        q = q[:, first - start :]
        (mixed,) = _heads(out, 1, self._n_head)
        keys, values = self._keys[layer, :, :end], self._values[layer, :, :end]
        keys[:, start:], values[:, start:] = k, v
        heads = self._n_head if len(out) == 1 else _heads_a_task(self._n_head)

        def some(h: slice) -> None:
            attend(q[h], keys[h], values[h], mixed[h], first, factor=factor)

        threads.for_rows(self._n_head, heads, some)

    def attend_tree(
        self, layer: int, qkv: np.ndarray, out: np.ndarray, start: int, mask: np.ndarray, factor: float | None = None
    ) -> None:
        """As `Cache.attend_tree`."""
        keys, values = self._keys[layer, :, :start], self._values[layer, :, :start]

        def some(h: slice, q: np.ndarray, k: np.ndarray, v: np.ndarray, mixed: np.ndarray) -> None:
            def score(q: np.ndarray, z: np.ndarray) -> None:
                np.matmul(q, keys[h].swapaxes(-1, -2), out=z)

            attend_tree(q, k, v, mask, score, values[h], mixed, factor)

        _by_heads(qkv, out, start, self._n_head, some)

    def copy_to(self, other: "RowCache", length: int) -> None:
        """As `Cache.copy_to`."""
        other._keys[:, :, :length] = self._keys[:, :, :length]
        other._values[:, :, :length] = self._values[:, :, :length]


def attend_alike(
    qkv: np.ndarray, out: np.ndarray, count: int, n_head: int, factor: float | None = None
) -> None:  # [count T, 3D], [count t, D]
    """What a RowCache gives the last t rows of each of `count` texts of T rows, in as few calls as for one text."""
    q, k, v = qkv.reshape(count, -1, 3, n_head, qkv.shape[1] // (3 * n_head)).transpose(2, 0, 3, 1, 4)
    mixed = out.reshape(count, -1, n_head, q.shape[-1]).swapaxes(1, 2)
    first = k.shape[2] - mixed.shape[2]

    def some(h: slice) -> None:
        attend(q[:, h, first:], k[:, h], v[:, h], mixed[:, h], first, factor=factor)

    threads.for_rows(n_head, _heads_a_task(n_head), some)


class BlockCache:
    """Keys as [H, blocks, d, 64], values as [H, positions, d]; zeros at first, since what is not there gets weight 0."""

    def __init__(self, config: GPT2Config, room: int, arena: "Arena | None" = None, slot: int = 0) -> None:
        self._n_head = config.n_head
        self.arena, self.slot = arena or Arena(config, room, 1), slot
        self._keys, self._values = self.arena.keys[:, slot], self.arena.values[:, slot]
        self.room = self._values.shape[-2]

    @property
    def shares(self) -> bool:
        """Whether the arena has other caches."""
        return self.arena.keys.shape[1] > 1

    def attend(
        self, layer: int, qkv: np.ndarray, out: np.ndarray, start: int, factor: float | None = None
    ) -> None:  # [T, 3D], [t, D]
        """As `Cache.attend`, over blocks: a row has the same bits in any company."""
        first, t = start + len(qkv) - len(out), len(out)
        q, k, v = _heads(qkv, 3, self._n_head)
        q = q[:, first - start :]
        (mixed,) = _heads(out, 1, self._n_head)
        keys, values = self._keys[layer], self._values[layer]
        heads = _heads_for(first + t, qkv.shape[1], t, self._n_head)
        if t <= attend_blocks.ROWS:
            attend_blocks.store(keys, values, k, v, start)
            attend_blocks.attend_few(q, keys, values, mixed, first, heads, factor)
            return

        def some(h: slice) -> None:
            attend_blocks.store(keys[h], values[h], k[h], v[h], start)
            attend_blocks.attend_blocks(q[h], keys[h], values[h], mixed[h], first, factor)

        threads.for_rows(self._n_head, heads, some)

    def attend_tree(
        self, layer: int, qkv: np.ndarray, out: np.ndarray, start: int, mask: np.ndarray, factor: float | None = None
    ) -> None:
        """As `Cache.attend_tree`; what lies in the last block after `start` gets weight 0."""
        blocks = -(-start // attend_blocks.BLOCK)
        keys = self._keys[layer, :, :blocks]
        values = self._values[layer, :, : blocks * attend_blocks.BLOCK]

        def some(h: slice, q: np.ndarray, k: np.ndarray, v: np.ndarray, mixed: np.ndarray) -> None:
            def score(q: np.ndarray, z: np.ndarray) -> None:
                np.matmul(q[:, None], keys[h], out=z.reshape(*z.shape[:2], blocks, -1).swapaxes(1, 2))
                z[..., start:] = -np.inf

            attend_tree(q, k, v, mask, score, values[h], mixed, factor)

        _by_heads(qkv, out, start, self._n_head, some)

    def copy_to(self, other: "BlockCache", length: int) -> None:
        """As `Cache.copy_to`; whole blocks of keys."""
        blocks = -(-length // attend_blocks.BLOCK)
        other._keys[:, :, :blocks] = self._keys[:, :, :blocks]
        other._values[:, :, :length] = self._values[:, :, :length]


class Arena:
    """Memory of several caches of blocks, side by side, so that one row of each is attended to in the same few calls."""

    def __init__(self, config: GPT2Config, room: int, count: int) -> None:
        *shape, positions, d = self._shape(config, room, count)
        self.keys = np.zeros((*shape, positions // attend_blocks.BLOCK, d, attend_blocks.BLOCK), FLOAT32)
        self.values = np.zeros((*shape, positions, d), FLOAT32)

    @staticmethod
    def _shape(config: GPT2Config, room: int, count: int) -> tuple[int, ...]:
        blocks = -(-room // attend_blocks.BLOCK)
        return config.n_layer, count, config.n_head, blocks * attend_blocks.BLOCK, config.d_head

    @classmethod
    def nbytes(cls, config: GPT2Config, room: int, count: int) -> int:
        """Memory that one takes."""
        return 2 * FLOAT32.itemsize * prod(cls._shape(config, room, count))

    def attend(
        self, slots: np.ndarray, layer: int, qkv: np.ndarray, starts: np.ndarray, factor: float | None = None
    ) -> np.ndarray:  # [S, 3D] -> [S, D]
        """Attention of one row for each of `slots`, which ascend, at the positions starts [S]."""
        n_head = self.keys.shape[2]
        q, k, v = qkv.reshape(len(slots), 3, n_head, -1).swapaxes(0, 1)
        keys, values = self.keys[layer], self.values[layer]
        first, end = int(slots[0]), int(slots[-1]) + 1
        queries, places = q, starts
        if end - first > len(slots):  # a slot in between without a row computes what nobody reads
            queries, places = np.zeros((end - first, *q.shape[1:]), FLOAT32), np.zeros(end - first, np.int64)
            queries[slots - first], places[slots - first] = q, starts
        mixed = np.empty(queries.shape, FLOAT32)

        def keep(some: slice) -> None:
            rows = slice(*np.searchsorted(slots, (first + some.start, first + some.stop)))
            at, block, place = slots[rows], *np.divmod(starts[rows], attend_blocks.BLOCK)
            keys[at, :, block, :, place] = k[rows]
            values[at, :, starts[rows]] = v[rows]

        attend_blocks.attend_each(queries, keys[first:end], values[first:end], mixed, places, keep, factor)
        return (mixed if queries is q else mixed[slots - first]).reshape(len(slots), -1)


def block_caches(config: GPT2Config, rooms: Sequence[int]) -> list[BlockCache]:
    """Caches for streams that go on together, in the arenas of `_groups`."""
    found: dict[int, BlockCache] = {}
    for numbers in _groups(rooms):
        arena = Arena(config, max(rooms[number] for number in numbers), len(numbers))
        found |= {number: BlockCache(config, rooms[number], arena, slot) for slot, number in enumerate(numbers)}
    return [found[number] for number in range(len(rooms))]


def _groups(rooms: Sequence[int]) -> list[list[int]]:
    """Numbers of the streams that share an arena: their rooms differ by less than a factor of two."""
    groups: dict[int, list[int]] = {}
    for number, room in enumerate(rooms):
        groups.setdefault((-(-room // attend_blocks.BLOCK) - 1).bit_length(), []).append(number)
    return list(groups.values())


def bytes_of_caches(config: GPT2Config, rooms: Sequence[int], in_blocks: bool) -> int:
    """Memory of the caches of streams that go on together."""
    if not in_blocks:
        return sum(RowCache.nbytes(config, room) for room in rooms)
    return sum(Arena.nbytes(config, max(rooms[number] for number in some), len(some)) for some in _groups(rooms))


def _heads_for(positions: int, width: int, rows: int, n_head: int) -> int:
    """How many heads are a task: all, where a second thread would cost more than it saves."""
    return _heads_a_task(n_head) if positions * width * (4 + rows) >= SHARED_COSTS else n_head


def _heads_a_task(n_head: int) -> int:
    """A head has the same bits in any company."""
    return min(MOST_HEADS, n_head if threads.in_a_task() else -(-n_head // threads.threads()))


def _by_heads(qkv: np.ndarray, out: np.ndarray, start: int, n_head: int, work: Callable[..., None]) -> None:
    """work(heads, q, k, v, mixed) on all cores, of those heads."""
    q, k, v = _heads(qkv, 3, n_head)
    (mixed,) = _heads(out, 1, n_head)
    heads = _heads_for(start + len(qkv), qkv.shape[1], len(qkv), n_head)
    threads.for_rows(n_head, heads, lambda h: work(h, q[h], k[h], v[h], mixed[h]))


def _heads(x: np.ndarray, parts: int, n_head: int) -> np.ndarray:  # [T, parts D] -> [parts, H, T, d]
    return x.reshape(len(x), parts, n_head, -1).transpose(1, 2, 0, 3)
