"""What is recorded of a training run, and where it can be done again from: a checkpoint, or the seed of the first weights.

The state is read into memory, each block compared with its digest; nothing is written. `run_replay` goes on from there.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ... import host
from ...core import gpt2
from ...core.config import GPT2Config
from ...core.ops import CHUNK
from ...errors import FeatureNotSupported, InconsistentData, InvalidParameter, PgGpt2Error, UndefinedObject, WrongState
from ...fast import threads
from ...tensor import FLOAT32
from ...training.early import Evaluations
from ...training.trainer import Trainer
from .. import db
from ..storage import checkpoints, reading, store, weights
from ..storage.checkpoint_files import KINDS
from ..storage.checkpoints import Checkpoint
from . import run_log
from .plan import RunPlan
from .session import Learner, Settings, with_base

# Of a checkpoint c of the run's first step: weights and optimizer state are those that the run began with, as far as loads and
# sharing decide. It was saved after tensors were shared, or became copies without the optimizer's state, where that came last.
AT_START = (
    "c.step = $3 AND NOT EXISTS (SELECT FROM (SELECT checkpoint_id, at FROM {schema}.llm_checkpoint_restore"
    " WHERE model = $1 AND after_run < $2 ORDER BY id DESC LIMIT 1) AS last"
    " WHERE last.checkpoint_id IS NULL AND last.at > c.created_at)"
)


@dataclass(frozen=True)
class Record:
    """A run as llm_run has it. `plan` None: of steps by hand, each with a plan of its own, which count as the model does."""

    run_id: int
    model: str
    plan: RunPlan | None
    data: dict[str, Any]
    tied: dict[str, str]
    base: dict[str, str] | None  # name and digest of what an adapter adapted
    first_step: int
    weights_digest: str | None
    environments: list[tuple[int, dict[str, Any]]]  # the number of the last step before each
    last: int  # number of the last step logged
    status: str
    evaluations: Evaluations  # as they are logged

    @property
    def start(self) -> int:
        """Number of the step before the first."""
        return 0 if self.plan else self.first_step

    @property
    def left(self) -> int:
        """Number of the step whose weights the run left."""
        ended = self.plan and self.plan.course.keep_best and self.status in ("finished", "early")
        return (ended and self.evaluations.best_step) or self.last

    @property
    def status_by_log(self) -> str:
        """The status that the log gives a run with patience."""
        if self.plan is None or self.plan.course.patience is None or self.status not in ("finished", "early"):
            return self.status
        return "finished" if self.last == self.plan.n_steps else "early" if self.evaluations.exhausted else "running"

    @property
    def from_start_only(self) -> bool:
        """Whether more than what a checkpoint holds decides about the next round: the outer momentum."""
        return self.plan is not None and self.plan.course.is_local and self.plan.course.outer_momentum > 0

    def number(self, model_step: int) -> int:
        """Number in the log of the step that was the model's `model_step`-th."""
        return model_step - self.first_step + self.start

    def model_step(self, number: int) -> int:
        """Number among the model's steps of the step that the log calls `number`."""
        return number + self.first_step - self.start

    def used(self, first: int, last: int) -> list[dict[str, Any]]:
        """Environments of the steps from `first` to `last`."""
        began = max(i for i, (after, _) in enumerate(self.environments) if after < first or i == 0)
        return [
            found for i, (after, found) in enumerate(self.environments) if i >= began and (after < last or i == began)
        ]

    @property
    def chunk(self) -> int:
        """Rows of attention at a time, which decide about bits."""
        return self.environments[0][1].get("attention_chunk", CHUNK)

    @classmethod
    def find(cls, run_id: int) -> "Record":
        """The record of the run `run_id`. An unknown run is refused (42704), and so is one that cannot be done again (55000)."""
        row = db.row(
            "SELECT model, config, status, first_step, n_steps, weights_digest, environment, resumed,"
            " (SELECT max(step) FROM {schema}.llm_train_log AS l WHERE l.run_id = r.run_id) AS last"
            " FROM {schema}.llm_run AS r WHERE run_id = $1",
            ["int8"],
            run_id,
        )
        if row is None:
            raise UndefinedObject(f"run {run_id} does not exist", hint="SELECT run_id, model FROM llm_run lists them.")
        if not row["last"]:
            raise WrongState(f"run {run_id} has no step in llm_train_log", hint="There is nothing to compare with.")
        try:
            record = cls._of(run_id, row, json.loads(row["config"]))
        except (KeyError, TypeError, AttributeError, ValueError, RecursionError, PgGpt2Error):
            raise InconsistentData(
                f"llm_run row {run_id}: config, environment or resumed is not what a run records",
                hint="The row was changed by hand; without it the run cannot be done again.",
            ) from None
        if record.last <= record.start:
            raise InconsistentData(
                f"llm_run row {run_id}: first_step {record.first_step} is not before the steps in llm_train_log",
                hint="The row was changed by hand; without it the run cannot be done again.",
            )
        return record

    @classmethod
    def _of(cls, run_id: int, row: db.Row, config: dict) -> "Record":
        """What the row says; an error of any kind when it is not what a run records."""
        resumed = json.loads(row["resumed"])
        if not isinstance(resumed, list):
            raise ValueError
        environments = [(-1, json.loads(row["environment"]))]
        environments += [(one["after_step"], one["environment"]) for one in resumed]
        tied = config.get("tied", {})
        whole = [after for after, _ in environments] + [
            found.get("attention_chunk", CHUNK) for _, found in environments
        ]
        plan, data = None, {}
        if row["n_steps"] is not None:
            plan, data = RunPlan.of(config), config["data"]
            check_settings(plan.settings)
            whole += [plan.n_steps, plan.batch_size, plan.grad_accum, data["rows"]]
            if min(data["rows"], plan.batch_size, plan.grad_accum) <= 0 or not isinstance(data["digest"], str):
                raise ValueError
        evaluations = plan.evaluations() if plan else Evaluations()
        for step, loss in run_log.validation(run_id):
            evaluations.add(step, loss)
        record = cls(
            *(run_id, row["model"], plan, data, tied, config.get("base"), row["first_step"]),
            *(row["weights_digest"], environments, row["last"], row["status"], evaluations),
        )
        if not all(type(number) is int for number in whole) or record.chunk <= 0:
            raise ValueError
        named = [*tied.values(), *((record.base["model"], record.base["digest"]) if record.base else ())]
        if not all(isinstance(one, str) for one in named):
            raise ValueError
        return record


def check_settings(settings: Settings) -> None:
    """Raise ValueError where a setting is not a number, or not a whole one where it counts something."""
    if not all(isinstance(number, int | float | None) for number in asdict(settings).values()):
        raise ValueError
    if not all(type(number) is int for number in (settings.seed, settings.warmup)):
        raise ValueError


@dataclass(frozen=True)
class Difference:
    """Where the replay begins to differ from the record: after the step numbered `step`."""

    step: int
    what: str
    recorded: object = None
    replayed: object = None


@dataclass(frozen=True)
class Start:
    """A copy of the model as it was after step `done` of the run."""

    learner: Learner
    done: int
    source: str

    def difference(self, record: Record) -> Difference | None:
        """How the run's weights at that step differ from these; None where they do not."""
        at_start = {"weights_digest": record.weights_digest}
        row = at_start if self.done == record.start else logged_step(record.run_id, self.done)
        recorded = (row or {}).get("weights_digest")
        found = self.learner.digest()
        return (
            None if recorded in (None, found) else Difference(self.done, f"weights of {self.source}", recorded, found)
        )


def base_now(record: Record) -> weights.Model | Difference | None:
    """The base of an adapter, which must be what it was; None where the run was not of one."""
    if record.base is None:
        return None
    config = store.config(record.model)
    found = None
    if config.adapter is not None:
        found, _ = weights.load_base(record.model, config, reading.versions_of(record.model, config))
        if record.base == {"model": found.name, "digest": found.digest}:
            return found
    what = f'weights of its base "{record.base["model"]}"'
    return Difference(record.start, what, record.base["digest"], found and found.digest)


def begin(record: Record, from_checkpoint: int | None, base: weights.Model | None) -> Start | Difference:
    """Where the replay begins; a Difference where the checkpoint that it would begin with is damaged."""
    if from_checkpoint is not None:
        return _from_checkpoint(record, _required(record, from_checkpoint), base)
    at_start = saved_checkpoints(record, AT_START)
    for saved in at_start:
        start = _from_checkpoint(record, saved, base)
        if isinstance(start, Difference) or start.difference(record) is None:
            return start
    initial = _initial(record, base)
    if initial is not None and initial.difference(record) is None:
        return initial
    on_the_way = "false" if record.from_start_only else "c.run_id = $2 AND c.step BETWEEN $3 + 1 AND $4 - 1"
    for saved in saved_checkpoints(record, on_the_way):
        return _from_checkpoint(record, saved, base)
    raise WrongState(
        f"run {record.run_id} cannot be replayed: nothing has the weights that it began with, or had on its way",
        hint="llm_checkpoint_save before a run, or between calls that resume it, makes it possible.",
    )


def saved_checkpoints(record: Record, condition: str) -> Iterator[Checkpoint]:
    """Checkpoints of the model, or that it was loaded from, in the order of their steps; the latest saved first."""
    rows = db.query(
        "SELECT c.id FROM {schema}.llm_checkpoint AS c WHERE (c.model = $1 OR EXISTS (SELECT FROM"
        f" {{schema}}.llm_checkpoint_restore AS r WHERE r.model = $1 AND r.checkpoint_id = c.id)) AND {condition}"
        " ORDER BY c.step, c.id DESC",
        ["text", "int8", "int8", "int8"],
        *(record.model, record.run_id, record.first_step, record.model_step(record.last)),
    )
    return (checkpoints.find(row["id"]) for row in rows)


def _required(record: Record, checkpoint_id: int) -> Checkpoint:
    """The checkpoint that the caller names; 22023 when the run did not pass it."""
    saved = checkpoints.find(checkpoint_id)
    done = record.number(saved.step)
    if not any(found.id == saved.id for found in saved_checkpoints(record, "true")):
        problem = f'of model "{saved.model}", and run {record.run_id} of "{record.model}"'
    elif not record.start <= done < record.last:
        last = record.model_step(record.last)
        problem = f"of step {saved.step}; run {record.run_id} went from step {record.first_step} to {last}"
    elif done > record.start and record.from_start_only:
        raise FeatureNotSupported(
            f"checkpoint {checkpoint_id} is of the middle of run {record.run_id}, and does not have its outer momentum",
            hint="A run with sync_every is replayed from its start: leave from_checkpoint out.",
        )
    elif done == record.start and not any(found.id == saved.id for found in saved_checkpoints(record, AT_START)):
        problem = (
            f"of before tensors of the model were shared, or became copies, and run {record.run_id} began after that"
        )
    elif done > record.start and saved.run_id != record.run_id:
        problem = f"of run {saved.run_id}, not of run {record.run_id}"
    else:
        return saved
    raise InvalidParameter(
        f"checkpoint {checkpoint_id} is {problem}",
        hint="Give one saved where the run began or on its way, or leave from_checkpoint out.",
    )


def _from_checkpoint(record: Record, saved: Checkpoint, base: weights.Model | None) -> Start | Difference:
    done = record.number(saved.step)
    shapes = saved.config.trained_shapes()
    if base is not None and saved.config.plain() != base.config.plain():
        return Difference(done, f'checkpoint {saved.id} is of no adapter of "{base.name}"')
    arrays = {kind: {name: np.zeros(shape, FLOAT32) for name, shape in shapes.items()} for kind in KINDS}
    steps = dict.fromkeys(shapes, 0)
    try:
        found = checkpoints.parts(saved)
        checkpoints.check_layout(saved.model, saved.config, found)
        for part in found:
            steps[part.name] = max(part.step, steps[part.name])
        for kind, part, data in checkpoints.blocks(saved):
            rows = slice(part.token_id, part.token_id + part.shape[0])
            arrays[kind][part.name][rows] = np.frombuffer(data, FLOAT32).reshape(part.shape)
            host.check_interrupts()
    except InconsistentData as error:
        return Difference(done, error.message)
    learner = _learner(record, base, saved.config, arrays["data"], arrays["m"], arrays["v"], steps)
    return Start(learner, done, f"checkpoint {saved.id}")


def _initial(record: Record, base: weights.Model | None) -> Start | None:
    """The model as llm_init_model or llm_adapter_create made it, where that is how it began."""
    source = "init_seed FROM {schema}.llm_model_config" if base is None else "seed FROM {schema}.llm_adapter"
    row = db.row(f"SELECT {source} WHERE model = $1", ["text"], record.model)
    seed = next(iter((row or {}).values()), None)
    if record.first_step or seed is None:
        return None
    config = store.config(record.model)
    if base is None:
        return Start(_learner(record, None, config, gpt2.init_params(config, seed, threads.run)), 0, "llm_init_model")
    return Start(_learner(record, base, config, dict(gpt2.init_adapter(config, seed))), 0, "llm_adapter_create")


def _learner(record: Record, base: weights.Model | None, config: GPT2Config, own: dict, *state: dict) -> Learner:
    trainer = Trainer(config, with_base(base, own), *state, tied=record.tied, chunk=record.chunk)
    return Learner(record.model, config, trainer)


def logged_step(run_id: int, step: int) -> db.Row | None:
    """A row of llm_train_log."""
    return db.row(
        "SELECT model, lr, loss, grad_norm, tokens, val_loss, batch, batch_digest, weights_digest, config"
        " FROM {schema}.llm_train_log WHERE run_id = $1 AND step = $2",
        ["int8", "int8"],
        *(run_id, step),
    )
