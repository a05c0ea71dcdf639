"""A step's rows cut into shards, whose gradients are added up in their order: who computes a shard changes no bit.

A shard is a computation of its own: its rows are cut into micro-batches by themselves, numbered through the step, and its
gradient is that of its part of the step's weighted mean. Under one environment its bits follow from weights, rows and these
numbers alone.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ..fast import threads
from .trainer import Batch, Trainer, nothing_counts

PIECE = 1 << 18  # values that a thread adds at a time


class Shard(NamedTuple):
    """Micro-batches of a shard, and the number in the step of the first."""

    batches: tuple[Batch, ...]
    first_part: int

    def counts(self) -> bool:
        """Whether a target of it carries loss; what has none adds nothing."""
        return any(batch.counted() for batch in self.batches)


class Found(NamedTuple):
    """What a shard gives: its part of the loss, and of the gradients [n]."""

    loss: float
    gradients: np.ndarray


def cut(n_rows: int, shards: int) -> list[slice]:
    """Rows of each of `shards` shards, in order: as many in each, or one more in the first ones."""
    sizes = [n_rows // shards + (i < n_rows % shards) for i in range(shards)]
    ends = np.cumsum(sizes).tolist()
    return [slice(end - size, end) for size, end in zip(sizes, ends)]


def numbered(parts: Sequence[Sequence[Batch]]) -> list[Shard]:
    """The shards of a step, from the micro-batches of each."""
    found, first = [], 0
    for batches in parts:
        found.append(Shard(tuple(batches), first))
        first += len(batches)
    return found


class Sum:
    """Gradients added up in the order of their shards, in whatever order they come; those that come early wait."""

    def __init__(self, out: np.ndarray) -> None:
        self.total = out  # [n], of what was added
        self.loss = 0.0
        self.next = 0  # number of the shard that is added next
        self._early: dict[int, Found | None] = {}
        self._is_empty = True

    def add(self, index: int, found: Found | None) -> None:
        """Take what the shard `index` gave; None: it adds nothing. An array that comes early is kept."""
        self._early[index] = found
        while self.next in self._early:
            one = self._early.pop(self.next)
            self.next += 1
            if one is not None:
                self._fold(one)

    def _fold(self, one: Found) -> None:
        self.loss += one.loss
        total, more, first = self.total, one.gradients, self._is_empty

        def piece(part: slice) -> None:
            if first:
                total[part] = more[part]
            else:
                total[part] += more[part]

        threads.for_rows(total.size, PIECE, piece)
        self._is_empty = False


class Sharded:
    """Fills a trainer's gradients shard by shard, for `Trainer.step`."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self._sum = np.empty_like(trainer.flat_gradients)

    def gradients(self, shards: Sequence[Shard], batches: Sequence[Batch], **how: Any) -> tuple[float, int]:
        """(loss, tokens) of a step whose micro-batches are `batches`; `how` as for the trainer's own function."""
        tokens, total = sum(batch.counted() for batch in batches), sum(batch.total() for batch in batches)
        if not tokens:
            raise nothing_counts()
        added = Sum(self._sum)
        self.collect(shards, added, {"total": total, **how})
        self.trainer.flat_gradients[...] = added.total
        return added.loss, tokens

    def collect(self, shards: Sequence[Shard], added: Sum, how: dict[str, Any]) -> None:
        """Add every shard to `added`; here one after the other."""
        for index, shard in enumerate(shards):
            added.add(index, self.compute(shard, how))

    def compute(self, shard: Shard, how: dict[str, Any]) -> Found | None:
        """What a shard gives, None where it adds nothing. The array is the trainer's own, and good until the next one."""
        if not shard.counts():
            return None
        loss, _ = self.trainer.gradients(shard.batches, first_part=shard.first_part, **how)
        return Found(loss, self.trainer.flat_gradients)
