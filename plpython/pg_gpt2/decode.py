"""Streams of tokens through a model: keys and values are kept, so that a new token costs one row of work.

The model itself is gpt2.hidden; only its attention is replaced, by the same attention core over the cache.
"""

from collections.abc import Sequence

import numpy as np

from . import gpt2, host, threads
from .config import GPT2Config
from .errors import InconsistentData, InvalidParameter
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
        self.length = 0
        shape = (config.n_layer, config.n_head, min(room, config.n_positions), config.d_head)
        self._keys = np.empty(shape, FLOAT32)
        self._values = np.empty(shape, FLOAT32)

    def feed(self, ids: Sequence[int]) -> np.ndarray:
        """Append `ids`; logits [vocab] of what follows the last of them."""
        for rows in threads.pieces(len(ids), PREFILL_ROWS):
            tokens = np.asarray(ids[rows], np.int64)[None]
            x = gpt2.hidden(Eager(), self.params, tokens, self.config, position=self.length, attend=self._attend_alone)
            self.length += tokens.size
            host.check_interrupts()
        return _logits(self.params, x[0, -1:])[0]

    def clear(self) -> None:
        """Forget all positions."""
        self.length = 0

    def copy(self) -> "Decoder":
        """Another stream that has read the same tokens."""
        twin = Decoder(self.params, self.config, self._keys.shape[2])
        twin.length = self.length
        twin._keys[:, :, : self.length] = self._keys[:, :, : self.length]
        twin._values[:, :, : self.length] = self._values[:, :, : self.length]
        return twin

    def _attend_alone(self, layer: int, qkv: np.ndarray) -> np.ndarray:  # [1, T, 3D] -> [1, T, D]
        out = np.empty((*qkv.shape[:2], self.config.d_model), FLOAT32)
        self.attend(layer, qkv[0], out[0])
        return out

    def attend(self, layer: int, qkv: np.ndarray, out: np.ndarray) -> None:  # [T, 3D], [T, D]
        """Attention of new rows over all positions so far; their keys and values are kept."""
        rows, n_head = len(qkv), self.config.n_head
        q, k, v = qkv.reshape(rows, 3, n_head, -1).transpose(1, 2, 0, 3)
        end = self.length + rows
        keys, values = self._keys[layer, :, :end], self._values[layer, :, :end]
        keys[:, self.length :] = k
        values[:, self.length :] = v
        mixed = out.reshape(rows, n_head, -1).transpose(1, 0, 2)
        heads = n_head if rows == 1 else HEADS_A_TASK
        threads.for_rows(n_head, heads, lambda h: attend(q[h], keys[h], values[h], mixed[h], self.length))


def step_together(decoders: Sequence[Decoder], tokens: Sequence[int]) -> np.ndarray:
    """Append one token to each of several streams of one model, in one pass; logits [len(decoders), vocab]."""
    first = decoders[0]

    def attend_each(layer: int, qkv: np.ndarray) -> np.ndarray:  # [B, 1, 3D] -> [B, 1, D]
        out = np.empty((len(decoders), 1, first.config.d_model), FLOAT32)
        each = [lambda d=d, i=i: d.attend(layer, qkv[i], out[i]) for i, d in enumerate(decoders)]
        threads.run(each)
        return out

    ids = np.asarray(tokens, np.int64)[:, None]
    lengths = np.asarray([decoder.length for decoder in decoders])
    x = gpt2.hidden(Eager(), first.params, ids, first.config, position=lengths, attend=attend_each)
    for decoder in decoders:
        decoder.length += 1
    return _logits(first.params, x[:, 0])


def _logits(params: dict[str, np.ndarray], hidden: np.ndarray) -> np.ndarray:  # [B, D] -> [B, V]
    logits = product(hidden, params["wte"].T)
    if not np.isfinite(logits.max()):
        raise InconsistentData(
            "the model's logits are not finite",
            hint="Its weights have NaN or huge values: go back to an earlier state, or import it again.",
        )
    return logits


def check_ids(ids: Sequence[int], config: GPT2Config, model: str) -> None:
    """22023 unless every id is one of the model's."""
    for place, token in enumerate(ids):
        if token is None or not 0 <= token < config.vocab:
            raise InvalidParameter(
                f"token id {'null' if token is None else token} at position {place} is not in 0..{config.vocab - 1},"
                f' the ids of model "{model}"',
                hint="llm_encode(text, model) gives the ids of a text.",
            )
