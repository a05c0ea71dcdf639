"""A step's rows cut into shards, whose gradients are added up in their order: who computes a shard changes no bit.

A shard is a computation of its own: its rows are cut into micro-batches by themselves, numbered through the step, and its
gradient is that of its part of the step's weighted mean. Under one environment its bits follow from weights, rows and these
numbers alone.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from ..fast import threads
from .flat import Flat
from .trainer import Batch, Trainer, nothing_counts

PIECE = 1 << 18  # values that a thread adds at a time


class Found(NamedTuple):
    """What a part gives: its part of the loss, and a row of numbers to be added up, of a shard gradients [n]; of a replica what
    each of its own steps gave."""

    loss: float
    gradients: np.ndarray | Flat
    steps: tuple[Sequence[float], ...] = ()


class Part(Protocol):
    """What one server computes by itself: a shard of a step, or a replica through a round of steps (rounds.py)."""

    def counts(self) -> bool:
        """Whether there is anything to compute."""

    def calls(self, how: dict[str, Any]) -> "Iterator[tuple[Shard, dict[str, Any]]]":
        """What another server is to be asked for, in turn."""

    def found(self, trainer: Trainer, how: dict[str, Any]) -> Found:
        """Compute it here. The numbers are the trainer's own, and good until the next part."""

    def answered(self, answers: Sequence[Sequence[float]], values: np.ndarray) -> Found:
        """What another server has found: its answers to `calls`, and the row of numbers."""


class Shard(NamedTuple):
    """Micro-batches of a shard, and the number in the step of the first."""

    batches: tuple[Batch, ...]
    first_part: int

    def counts(self) -> bool:
        """Whether a target of it carries loss; what has none adds nothing."""
        return any(batch.counted() for batch in self.batches)

    def calls(self, how: dict[str, Any]) -> "Iterator[tuple[Shard, dict[str, Any]]]":
        """It is one call."""
        yield self, how

    def found(self, trainer: Trainer, how: dict[str, Any]) -> Found:
        """Its loss and its gradients."""
        loss, _ = trainer.gradients(self.batches, first_part=self.first_part, **how)
        return Found(loss, trainer.flat_gradients)

    def answered(self, answers: Sequence[Sequence[float]], values: np.ndarray) -> Found:
        """Its loss and its gradients, from elsewhere."""
        return Found(answers[0][0], values)


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
    """Rows of numbers added up in the order of their parts, in whatever order they come; those that come early wait."""

    def __init__(self, out: np.ndarray) -> None:
        self.total = out  # [n], of what was added
        self.loss = 0.0
        self.next = 0  # number of the part that is added next
        self._early: dict[int, Found | None] = {}
        self._is_empty = True

    def add(self, index: int, found: Found | None) -> None:
        """Take what the part `index` gave; None: it adds nothing. An array that comes early is kept."""
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

    def collect(self, parts: Sequence[Part], added: Sum, how: dict[str, Any]) -> None:
        """Add every part to `added`; here one after the other."""
        for index, part in enumerate(parts):
            added.add(index, self.compute(part, how))

    def compute(self, part: Part, how: dict[str, Any]) -> Found | None:
        """What a part gives, None where it adds nothing. The numbers are the trainer's own, and good until the next one."""
        return part.found(self.trainer, how) if part.counts() else None
