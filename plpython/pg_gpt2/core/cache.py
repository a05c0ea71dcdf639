"""Decoding: keys and values of the positions a model has read, so that a new token costs one row of work."""

from typing import Any

import numpy as np

from .config import GPT2Config
from .ops import attend, merge_heads, scaled, softmax, split_heads


class KeyValues:
    """Keys and values of each layer, [H, positions, d], for at most `room` positions."""

    shares = False

    def __init__(self, config: GPT2Config, room: int) -> None:
        self.room, self._n_head = room, config.n_head
        shape = (config.n_layer, config.n_head, room, config.d_head)
        self._keys, self._values = np.zeros(shape, np.float32), np.zeros(shape, np.float32)

    def attend(
        self, layer: int, qkv: np.ndarray, out: np.ndarray, start: int, factor: float | None = None
    ) -> None:  # [T, 3D], [t, D]
        """Keep the keys and values of T new rows from position `start` on; out = attention of the last t of them."""
        q, k, v = (split_heads(part, self._n_head) for part in np.split(qkv, 3, axis=-1))
        end = start + len(qkv)
        keys, values = self._keys[layer, :, :end], self._values[layer, :, :end]
        keys[:, start:], values[:, start:] = k, v
        out[...] = merge_heads(attend(q[:, len(qkv) - len(out) :], keys, factor) @ values)

    def attend_tree(
        self, layer: int, qkv: np.ndarray, out: np.ndarray, start: int, mask: np.ndarray, factor: float | None = None
    ) -> None:
        """out [n, D] = attention of the n rows of a tree, qkv [n, 3D], of which nothing is kept.

        Row i sees the positions before `start`, and those rows of the tree where row i of mask [n, n] has 0 and not -inf.
        """
        q, k, v = (split_heads(part, self._n_head) for part in np.split(qkv, 3, axis=-1))
        keys = np.concatenate([self._keys[layer, :, :start], k], axis=1)
        values = np.concatenate([self._values[layer, :, :start], v], axis=1)
        scores = scaled(q @ keys.swapaxes(-1, -2), q.shape[-1], factor)
        scores[:, :, start:] += mask
        out[...] = merge_heads(softmax(scores) @ values)

    def copy_to(self, other: Any, length: int) -> None:
        """The first `length` positions, into another one."""
        other._keys[:, :, :length] = self._keys[:, :, :length]
        other._values[:, :, :length] = self._values[:, :, :length]
