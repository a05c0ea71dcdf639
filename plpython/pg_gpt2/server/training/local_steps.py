"""The rounds of a run with sync_every: the rows that each replica reads, and what is logged of each step.

Between two rounds a model has weights and moments as after any step, and the outer momentum, which stands in llm_param.grad until
the run ends: it is the outer gradients, added up.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from ... import host
from ...tensor import FLOAT32
from ...training.rounds import Rounds
from ...training.shards import Shard, cut
from ...training.trainer import StepResult, nothing_counts
from .. import db, resources
from ..storage import store
from .plan import RunPlan
from .session import Learner, Session


class Made(NamedTuple):
    """A step: its number, learning rate and result, the rows that it read, and a digest of each."""

    step: int
    lr: float
    result: StepResult
    ids: list[int]
    digests: list[int]


class _Read(NamedTuple):
    """What a replica read in a step: the sum of its targets' weights, their number, and digests of the rows."""

    weight: float
    tokens: int
    digests: list[int]


class LocalSteps:
    """The replicas of a run."""

    def __init__(self, learner: Learner, plan: RunPlan) -> None:
        self._learner, self._plan, course = learner, plan, plan.course
        values = (7 if course.outer_momentum else 6) * learner.config.n_trained()
        resources.require_memory(4 * values, f'rounds of "{learner.model}" (sync_every)')
        self.rounds = Rounds(learner.trainer, course.shards, course.outer_lr, course.outer_momentum)
        self._ids: dict[int, list[int]] = {}
        self._read: dict[tuple[int, int], _Read] = {}

    @property
    def momentum(self) -> dict[str, np.ndarray]:
        """The outer momentum by tensor, to be written with the weights; none where it is 0."""
        return self.rounds.outer

    def learn(self, steps: range, ids: Callable[[int], list[int]]) -> list[Made]:
        """A round; `ids` says which rows a step reads."""
        self._ids, self._read = {step: ids(step) for step in steps}, {}
        found = self.rounds.learn(steps, self._shard, self._learner.sharded.collect)
        losses = [iter(made) for made in found]
        return [self._together(step, losses) for step in steps]

    def _shard(self, step: int, replica: int) -> tuple[Shard, dict[str, Any]]:
        """What a replica learns from in a step, and how."""
        ids, plan = self._ids[step], self._plan
        values: dict[str, Any] = plan.settings.arguments()
        drawn = {name: values.pop(name) for name in ("dropout_p", "seed")}
        part = cut(len(ids), plan.course.shards)[replica]
        shard, digests = self._learner.shard(ids, part, plan.batch_size, drawn["dropout_p"])
        total = sum(batch.total() for batch in shard.batches)
        tokens = sum(batch.counted() for batch in shard.batches)
        self._read[step, replica] = _Read(total, tokens, digests)
        return shard, {**drawn, "step_no": step, "total": total, "update": {**values, "lr": plan.lr(step)}}

    def _together(self, step: int, losses: list) -> Made:
        """A step of all replicas: the mean over the targets of all, and of the norms by the same weights."""
        read = [self._read[step, replica] for replica in range(len(losses))]
        made = [(one.weight, *next(mine)) for one, mine in zip(read, losses) if one.tokens]
        weight = sum(own for own, _, _ in made)
        if not weight:
            raise nothing_counts(self._ids[step])
        loss, norm = (sum(one[0] * one[i] for one in made) / weight for i in (1, 2))
        result = StepResult(loss, norm, sum(one.tokens for one in read))
        digests = [digest for one in read for digest in one.digests]
        return Made(step, self._plan.lr(step), result, self._ids[step], digests)


def read_momentum(session: Session, outer: Mapping[str, np.ndarray]) -> None:
    """Fill `outer` with the momentum that the last round left in the rows of the model."""
    config = session.config
    for row in db.cursor(
        f"SELECT name, token_id, shape, grad FROM {store.trained(config)} AS p WHERE name = ANY ($2)",
        ["text", "text[]"],
        *(session.model, list(outer)),
    ):
        array = outer[row["name"]][row["token_id"] : row["token_id"] + row["shape"][0]]
        if len(row["grad"] or b"") != array.nbytes:  # since the session read the row
            raise session.changed()
        array[...] = np.frombuffer(row["grad"], FLOAT32).reshape(row["shape"])
        host.check_interrupts()
