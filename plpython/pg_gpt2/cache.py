"""Keys and values of the positions that a stream has read, and attention of new rows over them: in rows, or in blocks.

Blocks go with panels: there a row's attention has the same bits whatever other rows it is computed with.
"""

from typing import Any, Protocol

import numpy as np

from . import threads
from .config import GPT2Config
from .ops import attend_blocks
from .ops.attend import attend
from .tensor import FLOAT32

HEADS_A_TASK = 2  # of a prompt; few rows' attention is too little to share out
FEW_ROWS = 16


class Cache(Protocol):
    """Keys and values of all layers, of at most `room` positions."""

    room: int

    def attend(self, layer: int, qkv: np.ndarray, out: np.ndarray, start: int) -> None:
        """Attention of the rows qkv [T, 3D] over the positions before `start` and themselves, into out [T, D]; they are kept."""

    def copy_to(self, other: Any, length: int) -> None:
        """The first `length` positions, into a cache of the same kind."""


class RowCache:
    """Keys and values as [H, positions, d]."""

    def __init__(self, config: GPT2Config, room: int) -> None:
        self.room, self._n_head = room, config.n_head
        shape = (config.n_layer, config.n_head, room, config.d_head)
        self._keys, self._values = np.empty(shape, FLOAT32), np.empty(shape, FLOAT32)

    def attend(self, layer: int, qkv: np.ndarray, out: np.ndarray, start: int) -> None:  # [T, 3D], [T, D]
        """See Cache."""
        end = start + len(qkv)
        q, k, v = _heads(qkv, 3, self._n_head)
        (mixed,) = _heads(out, 1, self._n_head)
        keys, values = self._keys[layer, :, :end], self._values[layer, :, :end]
        keys[:, start:], values[:, start:] = k, v
        heads = self._n_head if len(qkv) == 1 else HEADS_A_TASK
        threads.for_rows(self._n_head, heads, lambda h: attend(q[h], keys[h], values[h], mixed[h], start))

    def copy_to(self, other: "RowCache", length: int) -> None:
        """See Cache."""
        other._keys[:, :, :length] = self._keys[:, :, :length]
        other._values[:, :, :length] = self._values[:, :, :length]


class BlockCache:
    """Keys as [H, blocks, d, 64], values as [H, positions, d]; zeros at first, since what is not there gets weight 0."""

    def __init__(self, config: GPT2Config, room: int) -> None:
        blocks = -(-room // attend_blocks.BLOCK)
        self.room, self._n_head = room, config.n_head
        layers = (config.n_layer, config.n_head)
        self._keys = np.zeros((*layers, blocks, config.d_head, attend_blocks.BLOCK), FLOAT32)
        self._values = np.zeros((*layers, blocks * attend_blocks.BLOCK, config.d_head), FLOAT32)

    def attend(self, layer: int, qkv: np.ndarray, out: np.ndarray, start: int) -> None:  # [T, 3D], [T, D]
        """See Cache."""
        q, k, v = _heads(qkv, 3, self._n_head)
        (mixed,) = _heads(out, 1, self._n_head)
        keys, values = self._keys[layer], self._values[layer]
        attend_blocks.store(keys, values, k, v, start)
        if len(qkv) <= FEW_ROWS:
            attend_blocks.attend_blocks(q, keys, values, mixed, start)
        else:
            threads.for_rows(
                self._n_head,
                HEADS_A_TASK,
                lambda h: attend_blocks.attend_blocks(q[h], keys[h], values[h], mixed[h], start),
            )

    def copy_to(self, other: "BlockCache", length: int) -> None:
        """See Cache."""
        blocks = -(-length // attend_blocks.BLOCK)
        other._keys[:, :, :blocks] = self._keys[:, :, :blocks]
        other._values[:, :, :length] = self._values[:, :, :length]


def _heads(x: np.ndarray, parts: int, n_head: int) -> np.ndarray:  # [T, parts D] -> [parts, H, T, d]
    return x.reshape(len(x), parts, n_head, -1).transpose(1, 2, 0, 3)
