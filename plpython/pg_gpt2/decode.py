"""One stream of tokens through a model: keys and values are kept, so that a new token costs one row of work.

The model itself is gpt2.hidden; only its attention is replaced, by the same attention core over the cache.
"""

from collections.abc import Sequence

import numpy as np

from . import gpt2, host, threads
from .config import GPT2Config
from .errors import InvalidParameter
from .ops.attend import attend
from .ops.products import product
from .tape import Eager
from .tensor import FLOAT32

HEADS_A_TASK = 2  # of a prompt; one token's attention is too little to share out
PREFILL_ROWS = 256  # rows of the prompt a pass: each pass ends soon enough to be cancelled


class Decoder:
    """Feeds tokens to a model and gives logits; holds keys and values of at most `room` positions."""

    def __init__(self, params: dict[str, np.ndarray], config: GPT2Config, room: int) -> None:
        self.params = params
        self.config = config
        self.room = min(room, config.n_positions)
        self.length = 0
        shape = (config.n_layer, config.n_head, self.room, config.d_head)
        self._keys = np.empty(shape, FLOAT32)
        self._values = np.empty(shape, FLOAT32)
        self._run = Eager()

    def feed(self, ids: Sequence[int]) -> np.ndarray:
        """Append `ids`; logits [vocab] of what follows the last of them."""
        for start in range(0, len(ids), PREFILL_ROWS):
            hidden = self._pass(ids[start : start + PREFILL_ROWS])
            if len(ids) > PREFILL_ROWS:
                host.check_interrupts()
        return product(hidden[-1:], self.params["wte"].T)[0]

    def clear(self) -> None:
        """Forget all positions."""
        self.length = 0

    def _pass(self, ids: Sequence[int]) -> np.ndarray:
        """Hidden states [len(ids), D] after the final norm."""
        tokens = np.asarray(ids, np.int64)[None]
        hidden = gpt2.hidden(self._run, self.params, tokens, self.config, position=self.length, attend=self._attend)
        self.length += len(ids)
        return hidden[0]

    def _attend(self, layer: int, qkv: np.ndarray) -> np.ndarray:
        """qkv [1, T, 3D] -> [1, T, D]: attention of the new rows over all positions so far."""
        _, rows, width = qkv.shape
        q, k, v = qkv.reshape(rows, 3, self.config.n_head, -1).transpose(1, 2, 0, 3)
        end = self.length + rows
        keys, values = self._keys[layer, :, :end], self._values[layer, :, :end]
        keys[:, self.length :] = k
        values[:, self.length :] = v
        out = np.empty((1, rows, width // 3), FLOAT32)
        mixed = out.reshape(rows, self.config.n_head, -1).transpose(1, 0, 2)
        heads = self.config.n_head if rows == 1 else HEADS_A_TASK
        threads.for_rows(self.config.n_head, heads, lambda h: attend(q[h], keys[h], values[h], mixed[h], self.length))
        return out


def check_ids(ids: Sequence[int], config: GPT2Config, model: str) -> None:
    """22023 unless every id is one of the model's."""
    for place, token in enumerate(ids):
        if token is None or not 0 <= token < config.vocab:
            raise InvalidParameter(
                f'token id {"null" if token is None else token} at position {place} is not in 0..{config.vocab - 1}, the ids of model "{model}"',
                hint="llm_encode(text, model) gives the ids of a text.",
            )
