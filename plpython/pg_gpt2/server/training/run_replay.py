"""A training run done again beside what is recorded of it: from a checkpoint, or from the seed of the model's first weights.

It trains a copy in memory and writes nothing. Under the environment of the run every bit must agree; under another one losses
and norms must agree within a tolerance, and where bits part is only told. `replay` does the same for one tape.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from math import isclose
from typing import Any

from ... import host
from ...errors import Diverged, InconsistentData, InvalidParameter, PgGpt2Error, UndefinedObject, WrongState
from ...tensor import to_bytes
from ...training.batches import BatchOrder
from ...training.trainer import StepResult
from .. import db, resources
from ..storage import checkpoints, store
from ..storage.checkpoint_files import KINDS, Part
from ..storage.checkpoints import Checkpoint
from . import datasets, environment, runs
from .hand_steps import StepPlan
from .local_steps import LocalSteps, Made
from .plan import RunPlan
from .progress import NOTICES, passes
from .replay_start import Difference, Record, base_now, begin, check_settings, logged_step, saved_checkpoints
from .session import Learner

TOLERANCE = 1e-3  # relative: rounding of float32, 6e-8, which grows from step to step
ROUNDED = ("loss", "grad_norm", "val_loss")


@dataclass
class Report:
    """A row of llm_replay."""

    first_step: int
    last_step: int
    exact: bool
    difference: Difference | None = None
    notes: list[str] = field(default_factory=list)


def replay(record: Record, from_checkpoint: int | None, to_step: int | None) -> Report:
    """Train again up to `to_step`, or to the end of the log, and compare; ends at the first difference."""
    last = record.last if to_step is None else to_step
    if not record.start < last <= record.last:
        raise InvalidParameter(
            f"to_step {to_step} is not a step of run {record.run_id}, which has logged {record.start + 1} to {record.last}",
            hint="Leave it out to replay all of them.",
        )
    resources.require_memory(16 * store.config(record.model).n_trained(), f"a replay of run {record.run_id}")
    base = base_now(record)
    start = base if isinstance(base, Difference) else begin(record, from_checkpoint, base)
    first = record.start if isinstance(start, Difference) else start.done + 1
    here = environment.current()
    used = [one for found in record.used(first, last) for one in (found, *found.get("workers", {}).values())]
    other = [name for name in environment.DECISIVE if any(one.get(name) != here[name] for one in used)]
    report = Report(record.start + 1, last, not other)
    if isinstance(start, Difference):
        report.difference, report.last_step = start, start.step
        return report
    if start.done >= last:
        raise InvalidParameter(
            f"{start.source} already has step {start.done} of run {record.run_id}; to_step is {last}",
            hint="Give a later step, or an earlier checkpoint.",
        )
    report.first_step = start.done + 1
    report.notes.append(f"from {start.source}")
    report.difference = start.difference(record)
    if report.difference is not None:
        report.last_step = start.done
        return report
    work = _Replay(record, start.learner, report)
    done = start.done
    while done < last:
        steps = work.together(done, last)
        done = steps[-1]
        report.difference = next(work.go_on(steps), None)
        if report.difference is not None:
            report.last_step = report.difference.step
            break
        if passes(range(steps[0] - start.done, done - start.done + 1), max(1, (last - start.done) // NOTICES)):
            db.notice(f"replay of run {record.run_id}: steps {start.done + 1} to {done} agree")
    else:
        report.difference = next(work.end(last), None)
    work.tell(other)
    return report


class _Replay:
    """Steps of a run beside their record; each comparison yields what differs."""

    def __init__(self, record: Record, learner: Learner, report: Report) -> None:
        self.record, self.learner, self.report = record, learner, report
        self.same_data = False
        if record.plan:
            self.rows = datasets.row_ids(record.model, learner.config, "train")
            self.same_data = datasets.digest(record.model, learner.config) == record.data["digest"]
            self.order = BatchOrder(record.plan.settings.seed, record.data["rows"])
        local = record.plan is not None and record.plan.course.is_local
        self.local = LocalSteps(learner, record.plan) if local and record.plan else None
        self.unlogged = 0
        self.rounded: int | None = None  # first step whose bits differ where they may
        self.saved: dict[int, list[Checkpoint]] = {}
        for saved in saved_checkpoints(record, "c.run_id = $2 AND c.step BETWEEN $3 + 1 AND $4"):
            self.saved.setdefault(record.number(saved.step), []).append(saved)

    def together(self, done: int, last: int) -> range:
        """The steps after step `done` that are made at once, up to `last`."""
        steps = self.record.plan.together(done) if self.record.plan else range(done + 1, done + 2)
        return range(steps[0], min(steps[-1], last) + 1)

    def go_on(self, steps: range) -> Iterator[Difference]:
        """Train one step, or a round of them; what differs from the record, the cause before the consequence."""
        logged, ids, plan = {step: logged_step(self.record.run_id, step) for step in steps}, {}, self.record.plan
        for step in steps:
            self.unlogged += logged[step] is None
            ids[step] = self._ids(step, logged[step])
            by = plan or self._plan_by_hand(step, logged[step])
            wanted = by.batch_size if isinstance(by, StepPlan) else by.batch_size * by.grad_accum
            if len(ids[step]) != wanted or not wanted or not all(type(row_id) is int for row_id in ids[step]):
                yield Difference(step, "batch", ids[step])
                return
        try:
            made = self._learn(steps, ids, by)
        except (UndefinedObject, InvalidParameter, InconsistentData, Diverged) as error:  # such as a row that is gone
            yield Difference(steps[-1], error.message)
            return
        for one in made:
            yield from self._compared(one, logged[one.step])

    def _learn(self, steps: range, ids: dict[int, list[int]], by: RunPlan | StepPlan) -> list[Made]:
        if self.local:
            return self.local.learn(steps, ids.__getitem__)
        lr, result, digests = runs.learn(self.learner, by, steps[0], ids[steps[0]])
        return [Made(steps[0], lr, result, ids[steps[0]], digests)]

    def _compared(self, made: Made, logged: db.Row | None) -> Iterator[Difference]:
        """What of a step, and of all that was saved after it, is not as recorded."""
        step, record = made.step, self.record
        if logged is not None:
            yield from self._rows_read(step, made.ids, logged, made.digests)
            yield from self._numbers(step, logged, made.lr, made.result, made.ids)
            if logged["weights_digest"] is not None:
                yield from self._bits(step, "weights_digest", logged["weights_digest"], self.learner.digest())
        for saved in self.saved.get(step, ()):
            yield from self._checkpoint(step, saved)
        if step == record.left:
            yield from self._model(step)

    def _ids(self, step: int, logged: db.Row | None) -> list[int]:
        """Rows of the step: by the order of the run where the data are what they were, else as they were logged."""
        plan = self.record.plan
        if plan and self.same_data:
            return self.rows[self.order.rows(step, plan.batch_size * plan.grad_accum)].tolist()
        if logged is None:
            unknown = "and the data have changed since" if plan else "which alone had its parameters"
            raise WrongState(
                f"step {step} of run {self.record.run_id} is not in llm_train_log, {unknown}",
                hint="What it did is unknown; give a smaller to_step, or a later from_checkpoint.",
            )
        return logged["batch"]

    def _plan_by_hand(self, step: int, logged: db.Row | None) -> StepPlan:
        """The parameters of a step by hand, from its row of the log; the copy of the model is set to them."""
        try:
            config = json.loads((logged or {})["config"])
            plan = StepPlan.of(config, len((logged or {})["batch_digest"]))
            check_settings(plan.settings)
            chunk, total = config["attention_chunk"], plan.total_steps
            if type(chunk) is not int or chunk < 1 or not (total is None or (type(total) is int and total > 0)):
                raise ValueError
        except (KeyError, TypeError, AttributeError, ValueError, PgGpt2Error):
            raise InconsistentData(
                f"llm_train_log, run {self.record.run_id}, step {step}: config is not what a step by hand records",
                hint="The row was changed by hand; without it the step cannot be done again.",
            ) from None
        self.learner.trainer.chunk = chunk
        return plan

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
        return runs.validate(self.learner, rows, self.record.plan.batch_size if self.record.plan else 1)

    def _bits(self, step: int, what: str, recorded: Any, found: Any) -> Iterator[Difference]:
        """The difference, unless a different environment explains it."""
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

    def _model(self, step: int) -> Iterator[Difference]:
        """The model's weights now, where they are those that the run left, which it had after this step."""
        record = self.record
        now = self.report.exact and store.last_step(record.model, self.learner.config) == record.model_step(step)
        if now and checkpoints.last_run(record.model) == record.run_id:
            self.report.notes.append("llm_param compared")
            yield from self._blocks(step, "llm_param", checkpoints.current_parts(record.model, self.learner.config))

    def end(self, step: int) -> Iterator[Difference]:
        """Whether the run was right to end here."""
        status, by_log = self.record.status, self.record.status_by_log
        if step == self.record.last and status != by_log:
            yield Difference(step, "status", status, by_log)

    def tell(self, other: list[str]) -> None:
        """A note for the reader of the result."""
        notes = self.report.notes
        if other:
            bits = "no bit differs" if self.rounded is None else f"bits differ from step {self.rounded} on"
            notes.append(f"{', '.join(other)} differ from the run's, so compared within {TOLERANCE:g} relative: {bits}")
        if self.unlogged:
            notes.append(f"{self.unlogged} steps are not in llm_train_log any more")
        if self.record.plan and not self.same_data and self.report.difference is None:
            notes.append("the data have changed since, but not the rows that these steps read")
