"""A training run done again beside what is recorded of it: from a checkpoint, or from the seed of the model's first weights.

It trains a copy in memory and writes nothing. Under the environment of the run every bit must agree; under another one losses
and norms must agree within a tolerance, and where bits part is only told. `replay` does the same for one tape.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from math import isclose
from typing import Any

import numpy as np

from . import checkpoints, datasets, db, gpt2, host, resources, runs, store
from .batches import BatchOrder
from .checkpoint_files import KINDS, Part
from .checkpoints import Checkpoint
from .config import GPT2Config
from .errors import InconsistentData, InvalidParameter, PgGpt2Error, UndefinedObject, WrongState
from .ops import CHUNK
from .tensor import FLOAT32, to_bytes
from .trainer import Diverged, StepResult, Trainer
from .training import Learner

DECISIVE = ("sources", "numpy", "blas", "machine", "processor")  # about bits; the number of threads is not
TOLERANCE = 1e-3  # relative: rounding of float32, 6e-8, which grows from step to step
ROUNDED = ("loss", "grad_norm", "val_loss")


@dataclass(frozen=True)
class Record:
    """A run as llm_run has it."""

    run_id: int
    model: str
    plan: runs.Plan
    data: dict[str, Any]
    tied: dict[str, str]
    first_step: int
    weights_digest: str | None
    environment: dict[str, Any]
    last: int  # step logged

    @classmethod
    def find(cls, run_id: int) -> "Record":
        """42704 when there is none, 55000 when it cannot be done again."""
        row = db.row(
            "SELECT model, config, first_step, n_steps, weights_digest, environment,"
            " (SELECT max(step) FROM {schema}.llm_train_log AS l WHERE l.run_id = r.run_id) AS last"
            " FROM {schema}.llm_run AS r WHERE run_id = $1",
            ["int8"],
            run_id,
        )
        if row is None:
            raise UndefinedObject(f"run {run_id} does not exist", hint="SELECT run_id, model FROM llm_run lists them.")
        if row["n_steps"] is None:
            raise WrongState(
                f"run {run_id} is of steps done by hand, whose parameters are not recorded",
                hint="What llm_train and llm_train_run did can be replayed.",
            )
        if not row["last"]:
            raise WrongState(f"run {run_id} has no step in llm_train_log", hint="There is nothing to compare with.")
        config, environment = json.loads(row["config"]), json.loads(row["environment"])
        try:
            plan, data, tied = runs.Plan.of(config), config["data"], config.get("tied", {})
            numbers = [*asdict(plan.settings).values(), plan.n_steps, plan.batch_size, plan.grad_accum]
            chunk = environment.get("attention_chunk", CHUNK)
            whole = [plan.settings.seed, plan.settings.warmup, plan.n_steps, plan.batch_size, plan.grad_accum, chunk]
            if not (
                all(isinstance(number, int | float | None) for number in numbers)
                and all(type(number) is int for number in [*whole, data["rows"]])
                and min(data["rows"], plan.batch_size, plan.grad_accum, chunk) > 0
                and isinstance(data["digest"], str)
                and all(isinstance(one, str) for one in tied.values())
            ):
                raise ValueError
        except (KeyError, TypeError, AttributeError, ValueError, PgGpt2Error):
            raise InconsistentData(
                f"llm_run row {run_id}: config or environment is not what a run records",
                hint="The row was changed by hand; without it the run cannot be done again.",
            ) from None
        return cls(
            *(run_id, row["model"], plan, data, tied, row["first_step"]),
            *(row["weights_digest"], environment, row["last"]),
        )


@dataclass(frozen=True)
class Difference:
    """Where record and replay part, after `step` steps of the run."""

    step: int
    what: str
    recorded: object = None
    replayed: object = None


@dataclass
class Report:
    """A row of llm_replay."""

    first_step: int
    last_step: int
    exact: bool
    difference: Difference | None = None
    notes: list[str] = field(default_factory=list)


# --- where to begin ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Start:
    """A copy of the model with `done` steps of the run behind it."""

    learner: Learner
    done: int
    source: str

    def difference(self, record: Record) -> Difference | None:
        """Whether the run had other weights there."""
        row = {"weights_digest": record.weights_digest} if self.done == 0 else _logged(record.run_id, self.done)
        recorded = (row or {}).get("weights_digest")
        found = self.learner.digest()
        return (
            None if recorded in (None, found) else Difference(self.done, f"weights of {self.source}", recorded, found)
        )


def begin(record: Record, from_checkpoint: int | None) -> Start | Difference:
    """Where the replay begins, or that the checkpoint to begin with is damaged."""
    if from_checkpoint is not None:
        return _from_checkpoint(record, _required(record, from_checkpoint))
    at_start = _saved(record, "c.step = $3")
    for saved in at_start:
        start = _from_checkpoint(record, saved)
        if isinstance(start, Difference) or start.difference(record) is None:
            return start
    initial = _initial(record)
    if initial is not None and initial.difference(record) is None:
        return initial
    for saved in _saved(record, "c.run_id = $2 AND c.step BETWEEN $3 + 1 AND $4 - 1"):
        return _from_checkpoint(record, saved)
    raise WrongState(
        f"run {record.run_id} cannot be replayed: nothing has the weights that it began with, or had on its way",
        hint="llm_checkpoint_save before a run, or between calls that resume it, makes it possible.",
    )


def _saved(record: Record, condition: str) -> Iterator[Checkpoint]:
    """Checkpoints of the model, or that it was loaded from, in the order of their steps; the latest saved first."""
    rows = db.query(
        "SELECT c.id FROM {schema}.llm_checkpoint AS c WHERE (c.model = $1 OR EXISTS (SELECT FROM"
        f" {{schema}}.llm_checkpoint_restore AS r WHERE r.model = $1 AND r.checkpoint_id = c.id)) AND {condition}"
        " ORDER BY c.step, c.id DESC",
        ["text", "int8", "int8", "int8"],
        *(record.model, record.run_id, record.first_step, record.first_step + record.last),
    )
    return (checkpoints.find(row["id"]) for row in rows)


def _required(record: Record, checkpoint_id: int) -> Checkpoint:
    """The checkpoint that the caller names; 22023 when the run did not pass it."""
    saved = checkpoints.find(checkpoint_id)
    done = saved.step - record.first_step
    if not any(found.id == saved.id for found in _saved(record, "true")):
        problem = f'of model "{saved.model}", and run {record.run_id} of "{record.model}"'
    elif not 0 <= done < record.last:
        last = record.first_step + record.last
        problem = f"of step {saved.step}; run {record.run_id} went from step {record.first_step} to {last}"
    elif done and saved.run_id != record.run_id:
        problem = f"of run {saved.run_id}, not of run {record.run_id}"
    else:
        return saved
    raise InvalidParameter(
        f"checkpoint {checkpoint_id} is {problem}",
        hint="Give one saved where the run began or on its way, or leave from_checkpoint out.",
    )


def _from_checkpoint(record: Record, saved: Checkpoint) -> Start | Difference:
    done = saved.step - record.first_step
    shapes = saved.config.param_shapes()
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
    learner = _learner(record, saved.config, arrays["data"], arrays["m"], arrays["v"], steps)
    return Start(learner, done, f"checkpoint {saved.id}")


def _initial(record: Record) -> Start | None:
    """The model as llm_init_model made it, where that is how it began."""
    row = db.row("SELECT init_seed FROM {schema}.llm_model_config WHERE model = $1", ["text"], record.model)
    if record.first_step or row is None or row["init_seed"] is None:
        return None
    config = store.config(record.model)
    return Start(_learner(record, config, gpt2.init_params(config, row["init_seed"])), 0, "llm_init_model")


def _learner(record: Record, config: GPT2Config, *state: dict) -> Learner:
    chunk = record.environment.get("attention_chunk", CHUNK)
    return Learner(record.model, config, Trainer(config, *state, tied=record.tied, chunk=chunk))


# --- the steps --------------------------------------------------------------------------------------------------------------


def replay(record: Record, from_checkpoint: int | None, to_step: int | None) -> Report:
    """Train again up to `to_step`, else as far as the log goes, and compare; ends at the first difference."""
    last = record.last if to_step is None else to_step
    if not 1 <= last <= record.last:
        raise InvalidParameter(
            f"to_step {to_step} is not a step of run {record.run_id}, which has logged 1 to {record.last}",
            hint="Leave it out to replay all of them.",
        )
    resources.require_memory(16 * store.config(record.model).n_params(), f"a replay of run {record.run_id}")
    other = [name for name in DECISIVE if record.environment.get(name) != runs.environment()[name]]
    report = Report(1, last, not other)
    start = begin(record, from_checkpoint)
    if isinstance(start, Difference):
        report.difference, report.last_step = start, start.step
        return report
    if start.done >= last:
        raise InvalidParameter(
            f"{start.source} already has {start.done} steps of run {record.run_id}; to_step is {last}",
            hint="Give a later step, or an earlier checkpoint.",
        )
    report.first_step = start.done + 1
    report.notes.append(f"from {start.source}")
    report.difference = start.difference(record)
    if report.difference is not None:
        report.last_step = start.done
        return report
    work = _Replay(record, start.learner, report)
    for step in range(start.done + 1, last + 1):
        report.difference = next(work.step(step), None)
        if report.difference is not None:
            report.last_step = step
            break
        if (step - start.done) % max(1, (last - start.done) // runs.NOTICES) == 0:
            db.notice(f"replay of run {record.run_id}: steps {start.done + 1} to {step} agree")
    else:
        report.difference = next(work.end(last), None)
    work.tell(other)
    return report


class _Replay:
    """Steps of a run beside their record; each comparison yields what differs."""

    def __init__(self, record: Record, learner: Learner, report: Report) -> None:
        self.record, self.learner, self.report = record, learner, report
        self.rows = datasets.row_ids(record.model, learner.config, "train")
        self.same_data = datasets.digest(record.model, learner.config) == record.data["digest"]
        self.order = BatchOrder(record.plan.settings.seed, record.data["rows"])
        self.unlogged = 0
        self.rounded: int | None = None  # first step whose bits differ where they may
        self.saved: dict[int, list[Checkpoint]] = {}
        for saved in _saved(record, "c.run_id = $2 AND c.step BETWEEN $3 + 1 AND $4"):
            self.saved.setdefault(saved.step - record.first_step, []).append(saved)

    def step(self, step: int) -> Iterator[Difference]:
        """Train one step; what differs from the record, the cause before the consequence."""
        plan = self.record.plan
        logged = _logged(self.record.run_id, step)
        if logged is None:
            self.unlogged += 1
        ids = self._ids(step, logged)
        if len(ids) != plan.batch_size * plan.grad_accum or not all(type(row_id) is int for row_id in ids):
            yield Difference(step, "batch", ids)
            return
        try:
            lr, result, digests = runs.learn(self.learner, plan, step, ids)
        except (
            UndefinedObject,
            InvalidParameter,
            InconsistentData,
            Diverged,
        ) as error:  # as a row of the data that is gone
            yield Difference(step, error.message)
            return
        if logged is not None:
            yield from self._rows_read(step, ids, logged, digests)
            yield from self._numbers(step, logged, lr, result, ids)
            if logged["weights_digest"] is not None:
                yield from self._bits(step, "weights_digest", logged["weights_digest"], self.learner.digest())
        for saved in self.saved.get(step, ()):
            yield from self._checkpoint(step, saved)

    def _ids(self, step: int, logged: db.Row | None) -> list[int]:
        """Rows of the step: by the order of the run where the data are what they were, else as they were logged."""
        if self.same_data:
            return self.rows[self.order.rows(step, self.record.plan.batch_size * self.record.plan.grad_accum)].tolist()
        if logged is None:
            raise WrongState(
                f"step {step} of run {self.record.run_id} is not in llm_train_log, and the data have changed since",
                hint="Which rows it read is unknown; give a smaller to_step, or a later from_checkpoint.",
            )
        return logged["batch"]

    def _rows_read(self, step: int, ids: list[int], logged: db.Row, digests: list[int]) -> Iterator[Difference]:
        recorded = logged["batch_digest"]
        if recorded is None or recorded == digests:
            return
        if self.same_data or len(recorded) != len(digests):
            yield Difference(step, "batch_digest", recorded, digests)
        for row_id, was, now in zip(ids, recorded, digests):
            if was != now:
                yield Difference(step, f"llm_dataset row {row_id}", was, now)

    def _numbers(
        self, step: int, logged: db.Row, lr: float, result: StepResult, ids: list[int]
    ) -> Iterator[Difference]:
        found = {"model": self.record.model, "batch": ids, "lr": lr, "tokens": result.tokens, "loss": result.loss}
        found["grad_norm"] = result.grad_norm
        if logged["val_loss"] is not None:
            found["val_loss"] = self._val_loss()
        for what, value in found.items():
            yield from self._bits(step, what, logged[what], value)

    def _val_loss(self) -> float | None:
        try:
            rows = datasets.row_ids(self.learner.model, self.learner.config, "val")
        except WrongState:
            return None
        return runs.validate(self.learner, rows, self.record.plan.batch_size)

    def _bits(self, step: int, what: str, recorded: Any, found: Any) -> Iterator[Difference]:
        """A difference, unless it is one that another environment excuses."""
        if recorded == found:
            return
        excused = not self.report.exact and (
            what == "weights_digest"
            or (what in ROUNDED and found is not None and isclose(recorded, found, rel_tol=TOLERANCE))
        )
        if excused:
            self.rounded = self.rounded or step
        else:
            yield Difference(step, what, recorded, found)

    def _checkpoint(self, step: int, saved: Checkpoint) -> Iterator[Difference]:
        """A checkpoint saved after this step. Of those in files, the manifest is compared."""
        if self.report.exact:
            yield from self._blocks(step, f"checkpoint {saved.id}", checkpoints.parts(saved))
        if saved.manifest is None:
            try:
                for _ in checkpoints.blocks(saved):
                    host.check_interrupts()
            except InconsistentData as error:
                yield Difference(step, error.message)

    def _blocks(self, step: int, where: str, found: Iterable[Part]) -> Iterator[Difference]:
        trainer = self.learner.trainer
        for part in found:
            name = trainer.tied.get(part.name, part.name)
            place = f'{where}: tensor "{part.name}", block {part.token_id}'
            if part.step != trainer.steps[name]:
                yield Difference(step, f"{place}, step", part.step, trainer.steps[name])
            for kind, arrays in zip(KINDS, (trainer.params, trainer.m, trainer.v)):
                rows = arrays[name][part.token_id : part.token_id + part.shape[0]]
                digest, recorded = hashlib.sha256(to_bytes(rows)).hexdigest(), part.digest(kind)
                if recorded is None or recorded.hex() != digest:
                    yield Difference(step, f"{place}, {kind}", recorded and recorded.hex(), digest)
            host.check_interrupts()

    def end(self, step: int) -> Iterator[Difference]:
        """The model's weights now, where they are those after this step."""
        record = self.record
        now = step == record.last and store.last_step(record.model) == record.first_step + step
        if now and checkpoints.last_run(record.model) == record.run_id and self.report.exact:
            self.report.notes.append("llm_param compared")
            yield from self._blocks(step, "llm_param", checkpoints.current_parts(record.model))

    def tell(self, other: list[str]) -> None:
        """What a reader of the result has to know."""
        notes = self.report.notes
        if other:
            bits = "no bit differs" if self.rounded is None else f"bits differ from step {self.rounded} on"
            notes.append(f"{', '.join(other)} differ from the run's, so compared within {TOLERANCE:g} relative: {bits}")
        if self.unlogged:
            notes.append(f"{self.unlogged} steps are not in llm_train_log any more")
        if not self.same_data and self.report.difference is None:
            notes.append("the data have changed since, but not the rows that these steps read")


def _logged(run_id: int, step: int) -> db.Row | None:
    return db.row(
        "SELECT model, lr, loss, grad_norm, tokens, val_loss, batch, batch_digest, weights_digest"
        " FROM {schema}.llm_train_log WHERE run_id = $1 AND step = $2",
        ["int8", "int8"],
        *(run_id, step),
    )
