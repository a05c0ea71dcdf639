"""Local steps with averaging: DiLoCo (Douillard et al. 2023, arXiv 2311.08105).

In a round each replica starts from the weights that all share, and makes steps of AdamW by itself, each on its shard of that
step's rows. Then the way to the mean of all replicas is an outer gradient, by which Nesterov's momentum moves the shared weights.
The moments of AdamW are averaged as well, which the paper found to change little: so a model between two rounds has weights,
one m and one v, as after any step. Replicas are a number of the problem, as shards are, and are added up in order: who
computes one changes no bit.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from ..fast import threads
from .flat import Flat
from .shards import PIECE, Found, Part, Shard, Sum
from .trainer import Trainer

# Step and replica -> its rows, and what Trainer.step takes beside them.
Read = Callable[[int, int], tuple[Shard, dict[str, Any]]]


def state_of(trainer: Trainer) -> Flat:
    """Weights, then first and then second moments of what learns, as one row of 3n numbers."""
    return Flat([arrays[name] for arrays in (trainer.params, trainer.m, trainer.v) for name in trainer.m])


def local_step(trainer: Trainer, shard: Shard, how: dict[str, Any]) -> tuple[float, float]:
    """One step of a replica; its loss, and the norm of its gradient. `how["update"]` is how AdamW is to be called, and `counts`
    in it how many steps each tensor has had."""
    update = dict(how["update"])
    trainer.steps.update(zip(trainer.m, update.pop("counts")))
    drawn = {name: how[name] for name in ("dropout_p", "seed", "step_no")}
    gradients = partial(trainer.gradients, first_part=shard.first_part, total=how["total"])
    result = trainer.step(shard.batches, gradients=gradients, **drawn, **update)
    return result.loss, result.grad_norm


@dataclass(frozen=True, eq=False)
class Replica(Part):
    """One of those that learn by themselves through the steps of a round."""

    index: int
    steps: range
    read: Read
    counts_before: list[int]  # AdamW's steps of each tensor
    start: np.ndarray  # what all begin with
    state: Flat  # of the trainer here

    def counts(self) -> bool:
        """Each is a part of the mean, even one whose rows carry no loss."""
        return True

    def calls(self, how: dict[str, Any]) -> Iterator[tuple[Shard, dict[str, Any]]]:
        """Its steps, without those whose rows carry no loss; the first says that it begins."""
        begins = True
        for done, step in enumerate(self.steps):
            shard, said = self.read(step, self.index)
            if shard.counts():
                update = said["update"] | {"counts": [count + done for count in self.counts_before]}
                yield shard, how | said | {"update": update, "begins": begins}
                begins = False

    def found(self, trainer: Trainer, how: dict[str, Any]) -> Found:
        """Weights and moments after its steps, computed here."""
        self.state.take(self.start)
        made = tuple(local_step(trainer, shard, said) for shard, said in self.calls(how))
        return Found(0.0, self.state, made)

    def answered(self, answers: Sequence[Sequence[float]], values: np.ndarray) -> Found:
        """The same from elsewhere, where nobody was asked if there was no loss."""
        return Found(0.0, values if answers else self.start, tuple(answers))


class _Sum(Sum):
    """The sum over replicas, which keeps what each of their steps gave."""

    def __init__(self, out: np.ndarray) -> None:
        super().__init__(out)
        self.steps: dict[int, tuple[Sequence[float], ...]] = {}

    def add(self, index: int, found: Found | None) -> None:
        """Take a replica."""
        if found is not None:
            self.steps[index] = found.steps
        super().add(index, found)


class Rounds:
    """The shared weights and moments of a trainer, in 24 n bytes beside it, and the outer momentum in 4 n."""

    def __init__(self, trainer: Trainer, replicas: int, outer_lr: float, outer_momentum: float) -> None:
        self.trainer, self.replicas = trainer, replicas
        self.outer_lr, self.outer_momentum = outer_lr, outer_momentum
        self.state = state_of(trainer)
        self._start, self._sum = (np.empty(self.state.size, np.float32) for _ in range(2))
        self.n = self.state.size // 3
        self.momentum = np.zeros(self.n if outer_momentum else 0, np.float32)

    @property
    def outer(self) -> dict[str, np.ndarray]:
        """The outer momentum by tensor, views of it; none where it is 0."""
        found, start = {}, 0
        for name, w in self.trainer.m.items() if self.momentum.size else ():
            found[name] = self.momentum[start : start + w.size].reshape(w.shape)
            start += w.size
        return found

    def learn(self, steps: range, read: Read, collect: Callable[..., None]) -> list[tuple[Sequence[float], ...]]:
        """A round; of each replica, what its steps with loss gave. `collect` adds up parts, as `Sharded.collect` does."""
        counts = dict(self.trainer.steps)
        threads.for_rows(self.state.size, PIECE, self._keep)
        before = (list(counts.values()), self._start, self.state)
        replicas = [Replica(index, steps, read, *before) for index in range(self.replicas)]
        added = _Sum(self._sum)
        collect(replicas, added, {})
        threads.for_rows(self.n, PIECE, self._move)
        threads.for_rows(2 * self.n, PIECE, self._average)
        self.state.take(self._sum)
        self.trainer.steps.update({name: count + len(steps) for name, count in counts.items()})
        return [added.steps[index] for index in range(self.replicas)]

    def _keep(self, part: slice) -> None:
        """What all replicas begin with."""
        self._start[part] = self.state[part]

    def _move(self, part: slice) -> None:
        """Nesterov's step, as torch's SGD makes it: from the sum of the replicas' weights to the new ones."""
        kind, start = np.float32, self._start[part]
        gradient = start - self._sum[part] / kind(self.replicas)
        if self.outer_momentum:
            self.momentum[part] = kind(self.outer_momentum) * self.momentum[part] + gradient
            gradient += kind(self.outer_momentum) * self.momentum[part]
        self._sum[part] = start - kind(self.outer_lr) * gradient

    def _average(self, part: slice) -> None:
        """The mean of the moments."""
        self._sum[self.n :][part] /= np.float32(self.replicas)
