"""Where the state of a run's best evaluation is kept until the run ends.

A run in one transaction keeps it in memory. One that commits keeps it in a checkpoint, which is committed with the step and
entered in llm_run: whatever ends the session, the best weights are in the database, beside those of the last commit.
"""

from collections.abc import Mapping
from typing import Protocol

import numpy as np

from ... import host
from ...errors import InsufficientPrivilege, UndefinedObject
from ...tensor import FLOAT32
from ...training.early import Evaluations
from ...training.trainer import Trainer
from .. import db, resources
from ..storage import checkpoint_removal, checkpoints
from ..storage.checkpoint_files import KINDS
from .session import Learner


class Best(Protocol):
    """The kept state."""

    def keep(self) -> None:
        """The model as it is now, in place of what was kept before."""

    def put_back(self) -> bool:
        """The model in memory as it was kept; false when that is gone."""

    def forget(self) -> None:
        """The run has ended: nothing is kept any more."""


class InMemory:
    """A copy of weights, moments and step counts."""

    def __init__(self, learner: Learner) -> None:
        self._learner, self._trainer = learner, learner.trainer
        self._require_memory()
        self._steps: dict[str, int] = {}
        self._kept: list[dict[str, np.ndarray]] = []

    def keep(self) -> None:
        """Copy the state; from the second time on into the arrays of the first."""
        trainer = self._trainer
        self._steps = dict(trainer.steps)
        if not self._kept:
            self._require_memory()  # steps have taken theirs since
            self._kept = [{name: np.empty_like(arrays[name]) for name in trainer.m} for arrays in _state(trainer)]
        for kept, arrays in zip(self._kept, _state(trainer)):
            for name, array in kept.items():
                np.copyto(array, arrays[name])
                host.check_interrupts()

    def put_back(self) -> bool:
        """Copy it back."""
        for kept, arrays in zip(self._kept, _state(self._trainer)):
            for name, array in kept.items():
                np.copyto(arrays[name], array)
                host.check_interrupts()
        self._trainer.steps.update(self._steps)
        return True

    def forget(self) -> None:
        """Let the copy go."""
        self._kept.clear()

    def _require_memory(self) -> None:
        learner = self._learner
        resources.require_memory(12 * learner.config.n_trained(), f'the best weights of "{learner.model}" (keep_best)')


class InCheckpoint:
    """A checkpoint of the model, called "best of run N", whose id llm_run has. The caller has just written the rows."""

    def __init__(self, learner: Learner, run_id: int) -> None:
        _require_rights()
        self._learner, self._run_id = learner, run_id

    def keep(self) -> None:
        """Save the rows of the model as the checkpoint."""
        # First the old one: dropping takes the stronger lock (sql/checkpoints.sql), and two runs that went from the weaker to
        # that would wait for each other.
        self.forget()
        self._enter(checkpoints.save(self._learner.model, f"best of run {self._run_id}"))

    def put_back(self) -> bool:
        """Read it, each block compared with its digest."""
        trainer, found = self._learner.trainer, entered(self._run_id)
        try:
            saved = checkpoints.find(found or 0, lock=True)
        except UndefinedObject:  # dropped by hand
            return False
        for arrays in (trainer.m, trainer.v):  # null where there was no step yet
            for array in arrays.values():
                array.fill(0)
        for kind, part, data in checkpoints.blocks(saved):
            name = trainer.tied.get(part.name, part.name)
            array = _state(trainer)[KINDS.index(kind)][name]
            rows = slice(part.token_id, part.token_id + part.shape[0])
            array[rows] = np.frombuffer(data, FLOAT32).reshape(part.shape)
            trainer.steps[name] = part.step
            host.check_interrupts()
        return True

    def forget(self) -> None:
        """Drop it."""
        found = entered(self._run_id)
        if found is not None:
            self._enter(None)
            checkpoint_removal.drop(self._learner.model, [found])

    def _enter(self, checkpoint_id: int | None) -> None:
        db.run(
            "UPDATE {schema}.llm_run SET best_checkpoint = $2 WHERE run_id = $1",
            ["int8", "int4"],
            *(self._run_id, checkpoint_id),
        )


def put_back(best: Best, evaluations: Evaluations, run_id: int, done: int) -> None:
    """The weights of the best evaluation in place of those of the last step, `done`; a NOTICE says which the run leaves."""
    step = evaluations.best_step
    if step is None:
        return
    lowest = f"its validation loss, {evaluations.best_loss:.3f}, is the lowest"
    if step == done:
        db.notice(f"run {run_id} leaves the weights of its last step: {lowest}")
    elif best.put_back():
        db.notice(f"run {run_id} leaves the weights of step {step}: {lowest}")
    else:
        db.notice(
            f"run {run_id} leaves the weights of its last step: the checkpoint of its best, step {step}, was dropped"
        )


def told(run_id: int) -> str:
    """The end of a NOTICE about a run that has not ended: where its best weights are."""
    found = entered(run_id)
    return "" if found is None else f"; checkpoint {found} has its best weights so far"


def entered(run_id: int) -> int | None:
    """The id of the checkpoint that llm_run has for the best evaluation of a run."""
    row = db.row("SELECT best_checkpoint FROM {schema}.llm_run WHERE run_id = $1", ["int8"], run_id)
    return (row or {"best_checkpoint": None})["best_checkpoint"]


def _state(trainer: Trainer) -> tuple[Mapping[str, np.ndarray], ...]:
    """Weights, first and second moments, in the order of KINDS."""
    return trainer.params, trainer.m, trainer.v


def _require_rights() -> None:
    """Refuse (42501) a caller who may train and not save checkpoints, before hours of training end in that."""
    row = db.row(
        "SELECT bool_and(has_table_privilege(name, 'INSERT') AND has_table_privilege(name, 'DELETE')) AS held"
        " FROM unnest($1) AS name",
        ["text[]"],
        [db.qualified(name) for name in ("llm_checkpoint", "llm_checkpoint_part", "llm_checkpoint_blob")],
    )
    if not (row or {})["held"]:
        raise InsufficientPrivilege(
            "keep_best of llm_train_run keeps the best weights in a checkpoint, and this role may not save checkpoints",
            hint="llm_grant_usage(role, 'admin') allows it; llm_train keeps them in memory.",
        )
