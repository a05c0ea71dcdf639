"""Training runs: the loop over steps, and the weights at commit points.

A run is determined by its configuration, the data and the weights at its start; every step by its number. So an interrupted
run goes on where its last commit left it, and ends with the bits of an uninterrupted one. The same holds for what its
evaluations decide: they are in the log.
"""

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np

from ... import host
from ...fast.tape import Audit
from ...training.batches import BatchOrder
from ...training.options import Course
from ...training.trainer import StepResult
from .. import db
from ..storage import sharing
from . import datasets, evaluated, run_log
from .audit import Auditor
from .best import Best, InCheckpoint, InMemory, put_back, told
from .fleet import Fleet
from .local_steps import LocalSteps, Made, read_momentum
from .plan import Plan, RunPlan
from .progress import Progress, passes
from .session import Learner, Session, mean_loss

STOP_EVERY = 0.5  # seconds between looks for llm_train_stop


class Run:
    """A run in progress: `go_on` makes and logs a step or a round, `commit_point` writes what has been learned."""

    def __init__(self, session: Session, plan: RunPlan, fleet: Fleet | None = None, *, commits: bool = False) -> None:
        self.session = session
        self.plan = plan
        self._fleet = fleet
        self._audit = Auditor(session.model, plan.audit)
        self._commits = commits
        self._rows = datasets.row_ids(session.model, session.config, "train")
        self._val_rows = evaluated.row_ids(session, plan.course) if plan.eval_every else None
        alone = plan.batch_size * plan.grad_accum == 1
        datasets.refuse_unfit(session.model, session.config, "train", self._rows, alone)
        if self._val_rows is not None:
            datasets.refuse_unfit(session.model, session.config, "val", self._val_rows, alone=False)
        self._order = BatchOrder(plan.settings.seed, len(self._rows))
        self.data = {"rows": len(self._rows), "digest": datasets.digest(session.model, session.config)}
        if plan.course.evaluates and self._val_rows is not None:
            self.data |= evaluated.data(session, self._val_rows)
        self.evaluations = plan.evaluations()
        self._best: Best | None = None
        self._progress = Progress(plan.n_steps, plan.log_every)
        self.made = range(0)  # steps, by the last call of `go_on`
        self.done = 0
        self._committed = 0  # of these, in a run that commits
        self._local = LocalSteps(session, plan) if plan.course.is_local else None
        self._log = run_log.Log(0, session.model)

    @property
    def run_id(self) -> int:
        """Its number in llm_run."""
        return self._log.run_id

    def begin(self) -> None:
        """Insert the run as a new one."""
        session, plan = self.session, self.plan
        self._log.run_id = run_log.new_run(session, self._config(), plan.settings.seed, plan.n_steps, "running")
        self._keep_best()

    def resume(self) -> bool:
        """Go on with the model's last run when that was interrupted, had this plan and data, and left these weights."""
        row = db.row(
            "SELECT r.run_id, r.first_step, ($3 || r.config) - $4 = $2 - $4 AS same, l.step,"
            " r.config -> 'base' IS NOT DISTINCT FROM $2 -> 'base' AS same_base,"
            " (r.environment ->> 'attention_chunk')::integer AS chunk,"
            " coalesce(l.weights_digest, r.weights_digest) AS weights_digest, l.lineage FROM {schema}.llm_run r"
            " LEFT JOIN LATERAL (SELECT step, weights_digest, lineage FROM {schema}.llm_train_log WHERE run_id = r.run_id"
            " ORDER BY step DESC LIMIT 1) l ON true"
            " WHERE r.model = $1 AND r.status IN ('running', 'stopped') ORDER BY r.run_id DESC LIMIT 1",
            ["text", "jsonb", "jsonb", "text[]"],
            self.session.model,
            json.dumps(self._config()),
            json.dumps(asdict(Course()) | {"eval_every": None}),  # what a run from before these options had
            [] if self.plan.course.evaluates else ["eval_every"],  # which then decides nothing
        )
        if row is None:
            return False
        done = row["step"] or 0
        same_state = self.session.step == row["first_step"] + done and row["weights_digest"] == self.session.digest()
        if row["lineage"] is not None:  # moments and outer momentum decide, too, and are no bits of the weights yet
            same_state &= row["lineage"] == self.session.content
        if not (row["same"] and same_state):
            what, best = "weights or optimizer state" if row["same"] else "parameters or data", told(row["run_id"])
            what = what if row["same_base"] else "the weights of the base"
            db.notice(
                f"run {row['run_id']} was interrupted, but {what} are not what they were: starting a new run{best}"
            )
            db.run("UPDATE {schema}.llm_run SET status = 'abandoned' WHERE run_id = $1", ["int8"], row["run_id"])
            return False
        db.notice(f"resuming run {row['run_id']} after step {done}")
        db.run(
            f"UPDATE {{schema}}.llm_run SET status = 'running', stop_requested = false, {run_log.RESUMED},"
            " shared = (SELECT coalesce(jsonb_agg(DISTINCT tensor), '[]')"
            f" FROM jsonb_array_elements(shared || {sharing.changed_too('llm_run.model')}) AS tensor) WHERE run_id = $1",
            ["int8", "int8", "jsonb"],
            *(row["run_id"], done, json.dumps(self.session.environment())),
        )
        # Not the setting: it decides about bits.
        self.session.trainer.chunk = row["chunk"] or self.session.trainer.chunk
        self.done, self._log.run_id = done, row["run_id"]
        if self._local and done:
            read_momentum(self.session, self._local.momentum)
        for step, loss in run_log.validation(self.run_id):
            self.evaluations.add(step, loss)
        self._keep_best()
        return True

    def _keep_best(self) -> None:
        if self.plan.course.keep_best:
            self._best = InCheckpoint(self.session, self.run_id) if self._commits else InMemory(self.session)

    def _config(self) -> dict[str, object]:
        """What determines the run, beside the weights at its start; and how often it is evaluated, where that decides nothing."""
        plan = self.plan
        numbers = {"n_steps": plan.n_steps, "batch_size": plan.batch_size, "grad_accum": plan.grad_accum}
        course = asdict(plan.course) | {"eval_every": plan.eval_every}
        return asdict(plan.settings) | numbers | course | {"data": self.data} | made_of(self.session)

    @property
    def over(self) -> bool:
        """Whether there is no further step."""
        return self.done >= self.plan.n_steps or self.evaluations.exhausted

    def go_on(self) -> bool:
        """The next step, or round; whether its weights are to be kept, as the best so far of a run that goes on."""
        plan, began = self.plan, time.perf_counter()
        self.made = plan.together(self.done)
        made = self._local.learn(self.made, self._ids) if self._local else [self._step(self.done + 1)]
        seconds = (time.perf_counter() - began) / len(made)
        last, self.done = made[-1], made[-1].step
        val_loss = self._evaluate()
        is_best = val_loss is not None and self.evaluations.add(self.done, val_loss)
        servers = None if self._fleet is None else self._fleet.told()
        for one in made:
            measured = (val_loss, servers) if one is last else (None, None)
            self._log.add(one.step, one.lr, one.result, seconds, one.ids, one.digests, *measured)
        tokens = sum(one.result.tokens for one in made)
        self._progress.show(self.made, last.result.loss, last.lr, tokens, val_loss, is_best and plan.course.evaluates)
        host.check_interrupts()
        return is_best and self._best is not None and not self.over

    def _ids(self, step: int) -> list[int]:
        """The rows of a step."""
        return self._rows[self._order.rows(step, self.plan.batch_size * self.plan.grad_accum)].tolist()

    def _step(self, step: int) -> Made:
        ids = self._ids(step)
        # Any step of a committing run may be the last before a commit; of another, only the last stay.
        audit = self._audit.begin(self.run_id, step, 0 if self._commits else self.plan.n_steps - step)
        lr, result, digests = learn(self.session, self.plan, step, ids, audit)
        self._audit.end(self.session.trainer)
        return Made(step, lr, result, ids, digests)

    def _evaluate(self) -> float | None:
        every, n_steps = self.plan.eval_every, self.plan.n_steps
        if self._val_rows is None or not every or not (passes(self.made, every) or self.done == n_steps):
            return None
        return validate(self.session, self._val_rows, self.plan.batch_size)

    def keep(self) -> None:
        """Keep the weights of now as the best so far; in a run that commits, those that `commit_point` has just written."""
        if self._best is not None:
            self._best.keep()

    def end(self) -> None:
        """Write what the run leaves, and say why it ended and what that is."""
        early = self.done < self.plan.n_steps
        if early:
            count = self.evaluations.without_gain
            db.notice(
                f"run {self.run_id} ends early after step {self.done}:"
                f" {count} evaluation{'s' * (count > 1)} in a row without gain (patience)"
            )
        self.commit_point("early" if early else "finished")

    def commit_point(self, status: str = "running") -> None:
        """Write weights and log; the caller commits."""
        digest = self.session.digest()  # of the last step, whatever the run then leaves
        ended = status in ("finished", "early")
        if ended and self._best is not None:
            put_back(self._best, self.evaluations, self.run_id, self.done)
        began = time.perf_counter()
        self.session.outer = {} if self._local is None or ended else self._local.momentum
        self.session.write()
        self._audit.write()
        self._log.write(time.perf_counter() - began, digest, lineage=self.session.content)
        if ended and self._best is not None:
            self._best.forget()
        db.run(
            "UPDATE {schema}.llm_run SET status = $2, finished_at = CASE WHEN $2 <> 'running' THEN clock_timestamp() END"
            " WHERE run_id = $1",
            ["int8", "text"],
            self.run_id,
            status,
        )

    def commit(self) -> None:
        """Commit what was begun, gone on with, or written."""
        db.commit()
        self._committed = self.done

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Around the steps of a run that commits. What ends them, such as a cancel, leaves what was committed, which is told."""
        try:
            yield
        except Exception:
            kept = f"run {self.run_id} is kept up to step {self._committed} of {self.plan.n_steps}"
            none = f"no step of run {self.run_id} is kept"
            db.notice(f"{kept if self._committed else none}; the same call goes on from these weights")
            raise

    def stop_requested(self) -> bool:
        """Whether llm_train_stop was called."""
        row = db.row("SELECT stop_requested FROM {schema}.llm_run WHERE run_id = $1", ["int8"], self.run_id)
        return row is None or row["stop_requested"]


def made_of(session: Session) -> dict[str, object]:
    """What a run's config says about tensors that share their rows, and about the base of an adapter."""
    found: dict[str, object] = {"tied": session.trainer.tied} if session.trainer.tied else {}
    if session.base is not None:
        found["base"] = {"model": session.base.name, "digest": session.base.digest}
    return found


def learn(
    learner: Learner, plan: Plan, step: int, ids: Sequence[int], audit: Audit | None = None
) -> tuple[float, StepResult, list[int]]:
    """One step, on the rows `ids`: learning rate, result, digests of the rows."""
    lr = plan.lr(step)
    shards, digests = learner.shards(ids, plan.shards, plan.batch_size, plan.settings.dropout_p)
    batches = [batch for shard in shards for batch in shard.batches]
    together = partial(learner.sharded.gradients, shards) if len(shards) > 1 else None
    how: dict[str, Any] = plan.settings.arguments()
    result = learner.trainer.step(batches, lr=lr, step_no=step, audit=audit, gradients=together, **how)
    return lr, result, digests


def validate(learner: Learner, ids: np.ndarray, batch_size: int) -> float:
    """Mean loss of the rows `ids` at this moment of a run."""
    trainer = learner.trainer
    return mean_loss(trainer.params, learner.config, learner.model, ids, batch_size, trainer.chunk)[0]


def train(session: Session, plan: RunPlan, fleet: Fleet | None = None) -> int:
    """All steps in the caller's transaction; the run_id."""
    run = Run(session, plan, fleet)
    run.begin()
    with datasets.unchanged(session.model):
        while not run.over:
            if run.go_on():
                run.keep()
    run.end()
    return run.run_id


def train_committing(
    session: Session, plan: RunPlan, fleet: Fleet | None, commit_every: int, flush_seconds: float
) -> None:
    """All steps, committing as they are made: every `commit_every` steps, or with the round that makes these full, but not before
    `flush_seconds` have passed; and with each evaluation whose weights are kept as the best so far."""
    run = Run(session, plan, fleet, commits=True)
    if not run.resume():
        run.begin()
    run.commit()
    with run.interruptible(), datasets.unchanged(session.model):
        _make_steps(run, commit_every, flush_seconds)


def _make_steps(run: Run, commit_every: int, flush_seconds: float) -> None:
    committed = looked = time.monotonic()
    while not run.over:
        best = run.go_on()
        now = time.monotonic()
        if best or (passes(run.made, commit_every) and now - committed >= flush_seconds and not run.over):
            run.commit_point()
            if best:
                run.keep()
            run.commit()
            committed = time.monotonic()
        if now - looked >= STOP_EVERY and not run.over:
            looked = now
            if run.stop_requested():
                run.commit_point("stopped")
                run.commit()
                ended = f"run {run.run_id} stopped after step {run.done}; the same call goes on with it"
                db.notice(f"{ended}{told(run.run_id)}")
                return
    run.end()
    run.commit()
