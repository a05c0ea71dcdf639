"""Training runs: the loop over steps, and what is recorded of it: the run, a log row a step, the weights at commit points.

A run is determined by its configuration, the data and the weights at its start; every step by its number. So an interrupted
run goes on where its last commit left it, and ends with the bits of an uninterrupted one.
"""

import json
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields

import numpy as np

from . import __version__, datasets, db, host, resources, threads
from .audit import Auditor
from .batches import BatchOrder
from .optim import lr_schedule, run_lr
from .tape import Audit
from .trainer import StepResult
from .training import Learner, Session, Settings, mean_loss

NOTICES = 10  # a run, unless log_every says otherwise
STOP_EVERY = 0.5  # seconds between looks for llm_train_stop


@dataclass(frozen=True)
class Plan:
    """What a run is to do. `eval_every`, `log_every` and `audit` change what is reported, not what is learned."""

    settings: Settings
    n_steps: int
    batch_size: int
    grad_accum: int
    eval_every: int | None
    log_every: int | None
    audit: str = "tape"

    @classmethod
    def of(cls, config: dict) -> "Plan":
        """Back from llm_run.config; what it does not determine is off."""
        settings = Settings(**{field.name: config[field.name] for field in fields(Settings)})
        return cls(settings, config["n_steps"], config["batch_size"], config["grad_accum"], None, None, "none")


@dataclass
class Log:
    """Rows for llm_train_log, written by one statement."""

    run_id: int
    model: str
    rows: list[tuple] = field(default_factory=list)

    def add(
        self,
        step: int,
        lr: float,
        result: StepResult,
        seconds: float,
        batch: Sequence[int],
        digests: Sequence[int],
        val_loss: float | None = None,
    ) -> None:
        """Remember a step."""
        arrays = ["{" + ",".join(map(str, values)) + "}" for values in (batch, digests)]
        self.rows.append((step, lr, result.loss, result.grad_norm, result.tokens, seconds, val_loss, *arrays))

    def write(self, weights_digest: str | None = None) -> None:
        """Insert what was remembered; the digest is of the weights after the last of it."""
        if not self.rows:
            return
        db.run(
            "INSERT INTO {schema}.llm_train_log"
            " (run_id, model, step, lr, loss, grad_norm, tokens, seconds, val_loss, batch, batch_digest, weights_digest)"
            " SELECT $1, $2, step, lr, loss, grad_norm, tokens, seconds, val_loss, batch::bigint[], digests::bigint[],"
            " CASE WHEN step = $12 THEN $13 END"
            " FROM unnest($3, $4, $5, $6, $7, $8, $9, $10, $11)"
            " AS new (step, lr, loss, grad_norm, tokens, seconds, val_loss, batch, digests)",
            [
                *("int8", "text", "int8[]", "float8[]", "float8[]", "float8[]", "int4[]", "float8[]", "float8[]"),
                *("text[]", "text[]", "int8", "text"),
            ],
            *(self.run_id, self.model, *map(list, zip(*self.rows)), self.rows[-1][0], weights_digest),
        )
        self.rows.clear()


class Run:
    """A run in progress: `step` makes and logs one step, `commit_point` writes what has been learned."""

    def __init__(self, session: Session, plan: Plan, *, commits: bool = False) -> None:
        self.session = session
        self.plan = plan
        self._audit = Auditor(session.model, plan.audit)
        self._commits = commits
        self._rows = datasets.row_ids(session.model, session.config, "train")
        self._val_rows = datasets.row_ids(session.model, session.config, "val") if plan.eval_every else None
        self._order = BatchOrder(plan.settings.seed, len(self._rows))
        self.data = {"rows": len(self._rows), "digest": datasets.digest(session.model, session.config)}
        self._progress = _Progress(plan.n_steps, plan.log_every)
        self.done = 0
        self._log = Log(0, session.model)

    @property
    def run_id(self) -> int:
        """Its number in llm_run."""
        return self._log.run_id

    def begin(self) -> None:
        """Enter the run as a new one."""
        session, plan = self.session, self.plan
        self._log.run_id = new_run(session, self._config(), plan.settings.seed, plan.n_steps, "running")

    def resume(self) -> bool:
        """Go on with the model's last run when that was interrupted, had this plan and data, and left these weights."""
        row = db.row(
            "SELECT r.run_id, r.first_step, r.config = $2 AS same, l.step,"
            " coalesce(l.weights_digest, r.weights_digest) AS weights_digest FROM {schema}.llm_run r"
            " LEFT JOIN LATERAL (SELECT step, weights_digest FROM {schema}.llm_train_log WHERE run_id = r.run_id"
            " ORDER BY step DESC LIMIT 1) l ON true"
            " WHERE r.model = $1 AND r.status IN ('running', 'stopped') ORDER BY r.run_id DESC LIMIT 1",
            ["text", "jsonb"],
            self.session.model,
            json.dumps(self._config()),
        )
        if row is None:
            return False
        done = row["step"] or 0
        same_weights = self.session.step == row["first_step"] + done and row["weights_digest"] == self.session.digest()
        if not (row["same"] and same_weights):
            what = "weights" if row["same"] else "parameters or data"
            db.notice(f"run {row['run_id']} was interrupted, but {what} are not what they were: starting a new run")
            db.run("UPDATE {schema}.llm_run SET status = 'abandoned' WHERE run_id = $1", ["int8"], row["run_id"])
            return False
        db.notice(f"resuming run {row['run_id']} after step {done}")
        db.run(
            "UPDATE {schema}.llm_run SET status = 'running', stop_requested = false WHERE run_id = $1",
            ["int8"],
            row["run_id"],
        )
        self.done, self._log.run_id = done, row["run_id"]
        return True

    def _config(self) -> dict[str, object]:
        """What determines the run, beside the weights at its start."""
        plan = self.plan
        numbers = {"n_steps": plan.n_steps, "batch_size": plan.batch_size, "grad_accum": plan.grad_accum}
        tied = {"tied": self.session.trainer.tied} if self.session.trainer.tied else {}
        return asdict(plan.settings) | numbers | {"data": self.data} | tied

    def step(self) -> None:
        """The next step."""
        plan, session, step = self.plan, self.session, self.done + 1
        began = time.perf_counter()
        ids = self._rows[self._order.rows(step, plan.batch_size * plan.grad_accum)].tolist()
        # Any step of a committing run may be the last before a commit; of another, only the last stay.
        audit = self._audit.begin(self.run_id, step, 0 if self._commits else plan.n_steps - step)
        lr, result, digests = learn(session, plan, step, ids, audit)
        self._audit.end(session.trainer)
        seconds = time.perf_counter() - began
        val_loss = self._evaluate(step)
        self._log.add(step, lr, result, seconds, ids, digests, val_loss)
        self._progress.show(step, result.loss, lr, result.tokens, val_loss)
        self.done = step
        host.check_interrupts()

    def _evaluate(self, step: int) -> float | None:
        every, n_steps = self.plan.eval_every, self.plan.n_steps
        if self._val_rows is None or not every or (step % every and step != n_steps):
            return None
        return validate(self.session, self._val_rows, self.plan.batch_size)

    def commit_point(self, status: str = "running") -> None:
        """Write weights and log; the caller commits."""
        self.session.write()
        self._audit.write()
        self._log.write(self.session.digest())
        db.run(
            "UPDATE {schema}.llm_run SET status = $2, finished_at = CASE WHEN $2 <> 'running' THEN clock_timestamp() END"
            " WHERE run_id = $1",
            ["int8", "text"],
            self.run_id,
            status,
        )

    def stop_requested(self) -> bool:
        """Whether llm_train_stop was called."""
        row = db.row("SELECT stop_requested FROM {schema}.llm_run WHERE run_id = $1", ["int8"], self.run_id)
        return row is None or row["stop_requested"]


def learn(
    learner: Learner, plan: Plan, step: int, ids: Sequence[int], audit: Audit | None = None
) -> tuple[float, StepResult, list[int]]:
    """One step of a run, on the rows `ids`: learning rate, result, digests of the rows."""
    settings = plan.settings
    lr = run_lr(step, plan.n_steps, settings.warmup, settings.lr_max, settings.min_lr)
    batches, digests = learner.batches(ids, plan.batch_size)
    result = learner.trainer.step(batches, lr=lr, step_no=step, audit=audit, **settings.arguments())  # type: ignore[arg-type]
    return lr, result, digests


def validate(learner: Learner, ids: np.ndarray, batch_size: int) -> float:
    """Mean loss of the rows `ids` at this moment of a run."""
    trainer = learner.trainer
    return mean_loss(trainer.params, learner.config, learner.model, ids, batch_size, trainer.chunk)[0]


def train(session: Session, plan: Plan) -> int:
    """All steps in the caller's transaction; the run_id."""
    run = Run(session, plan)
    run.begin()
    while run.done < plan.n_steps:
        run.step()
    run.commit_point("finished")
    return run.run_id


def train_committing(session: Session, plan: Plan, commit_every: int, flush_seconds: float) -> None:
    """All steps, committing as they are made: every `commit_every` steps, but not before `flush_seconds` have passed."""
    run = Run(session, plan, commits=True)
    if not run.resume():
        run.begin()
    db.commit()
    committed = looked = time.monotonic()
    while run.done < plan.n_steps:
        run.step()
        now = time.monotonic()
        if now - looked >= STOP_EVERY:
            looked = now
            if run.stop_requested():
                run.commit_point("stopped")
                db.commit()
                db.notice(f"run {run.run_id} stopped after step {run.done}; the same call goes on with it")
                return
        if run.done % commit_every == 0 and now - committed >= flush_seconds and run.done < plan.n_steps:
            run.commit_point()
            db.commit()
            committed = time.monotonic()
    run.commit_point("finished")
    db.commit()


def new_run(session: Session, config: dict, seed: int, n_steps: int | None, status: str) -> int:
    """A row of llm_run; its run_id."""
    row = db.row(
        "INSERT INTO {schema}.llm_run (model, config, seed, status, first_step, n_steps, weights_version,"
        " weights_digest, environment) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) RETURNING run_id",
        ["text", "jsonb", "int8", "text", "int8", "int4", "text", "text", "jsonb"],
        *(
            session.model,
            json.dumps(config),
            seed,
            status,
            session.step,
            n_steps,
            session.version,
            session.digest(),
            json.dumps(environment()),
        ),
    )
    return (row or {})["run_id"]


def environment() -> dict[str, object]:
    """What the same bits are promised under."""
    return {
        "pg_gpt2": __version__,
        "sources": db.sources_digest,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "blas": threads.blas_name(),
        "threads": threads.threads(),
        "attention_chunk": resources.attention_chunk(),
        "machine": platform.machine(),
        "processor": _processor(),
    }


def _processor() -> str | None:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next((line.split(":", 1)[1].strip() for line in file if line.startswith("model name")), None)
    except OSError:
        return None


def train_step(
    session: Session, ids: Sequence[int] | None, settings: Settings, total_steps: int | None, audit: str
) -> float:
    """One step by hand, on the rows `ids`, else on the next row of the training data; the loss before it."""
    step = session.step + 1
    if ids is None:
        rows = datasets.row_ids(session.model, session.config, "train")
        ids = [int(rows[(step - 1) % len(rows)])]
    batches, digests = session.batches(ids, len(ids))
    if total_steps is not None:
        lr = lr_schedule(step, settings.warmup, total_steps, settings.lr_max, settings.min_lr)
    else:
        lr = settings.lr_max * min(1.0, step / settings.warmup) if settings.warmup else settings.lr_max
    log = Log(_manual_run(session, settings.seed), session.model)
    auditor = Auditor(session.model, audit)
    began = time.perf_counter()
    watch = auditor.begin(log.run_id, step)
    result = session.trainer.step(batches, lr=lr, step_no=step, audit=watch, **settings.arguments())  # type: ignore[arg-type]
    auditor.end(session.trainer)
    log.add(step, lr, result, time.perf_counter() - began, ids, digests)
    log.write()
    session.write()
    auditor.write()
    return result.loss


def _manual_run(session: Session, seed: int) -> int:
    """The model's run of steps done by hand, made with its first."""
    row = db.row("SELECT run_id FROM {schema}.llm_run WHERE model = $1 AND status = 'manual'", ["text"], session.model)
    return row["run_id"] if row else new_run(session, {}, seed, None, "manual")


class _Progress:
    """NOTICEs of a run: the first step, every `log_every`-th, and the last."""

    def __init__(self, n_steps: int, log_every: int | None) -> None:
        self.n_steps = n_steps
        self.every = log_every if log_every is not None else max(1, n_steps // NOTICES)
        self.tokens = 0
        self.began = time.perf_counter()

    def show(self, step: int, loss: float, lr: float, tokens: int, val_loss: float | None) -> None:
        self.tokens += tokens
        if self.every and (step == 1 or step % self.every == 0 or step == self.n_steps):
            rate = self.tokens / (time.perf_counter() - self.began)
            validation = "" if val_loss is None else f", validation loss {val_loss:.3f}"
            db.notice(f"step {step}/{self.n_steps}: loss {loss:.3f}{validation}, lr {lr:.2e}, {rate:,.0f} tokens/s")
            self.tokens, self.began = 0, time.perf_counter()
