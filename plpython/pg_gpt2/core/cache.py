"""Decoding: keys and values of the positions a model has read, so that a new token costs one row of work."""

from typing import Any

import numpy as np

from .config import GPT2Config
from .ops import attend, merge_heads, split_heads


class KeyValues:
    """Keys and values of each layer, [H, positions, d], for at most `room` positions."""

    shares = False

    def __init__(self, config: GPT2Config, room: int) -> None:
        self.room, self._n_head = room, config.n_head
        shape = (config.n_layer, config.n_head, room, config.d_head)
        self._keys, self._values = np.zeros(shape, np.float32), np.zeros(shape, np.float32)

    def attend(self, layer: int, qkv: np.ndarray, out: np.ndarray, start: int) -> None:  # [T, 3D], [t, D]
        """Keep the keys and values of T new rows from position `start` on; out = attention of the last t of them."""
        q, k, v = (split_heads(part, self._n_head) for part in np.split(qkv, 3, axis=-1))
        end = start + len(qkv)
        keys, values = self._keys[layer, :, :end], self._values[layer, :, :end]
        keys[:, start:], values[:, start:] = k, v
        out[...] = merge_heads(attend(q[:, len(qkv) - len(out) :], keys) @ values)

    def copy_to(self, other: Any, length: int) -> None:
        """The first `length` positions, into another one."""
        other._keys[:, :, :length] = self._keys[:, :, :length]
        other._values[:, :, :length] = self._values[:, :, :length]
