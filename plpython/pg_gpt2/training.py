"""Training a model that lives in rows: read its state once, step in memory, write it back once, log every step.

The arithmetic is Trainer's. Here are the order of things and what is recorded: the run, the log, the weights.
"""

import json
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

import numpy as np

from . import __version__, datasets, db, host, resources, store
from .batches import BatchOrder
from .config import GPT2Config
from .errors import InconsistentData, InvalidParameter, NullNotAllowed
from .optim import lr_schedule, run_lr
from .tensor import FLOAT32, to_bytes
from .trainer import StepResult, Trainer, estimate_step_bytes, evaluate

NOTICES = 10  # a run, unless log_every says otherwise


@dataclass(frozen=True)
class Settings:
    """The optimizer's side of a run. `grad_clip` None = no clipping."""

    dropout_p: float
    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    lr_max: float
    warmup: int
    min_lr: float
    grad_clip: float | None
    seed: int

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value is None and name != "grad_clip":
                raise NullNotAllowed(f"{name} must not be null", hint="Leave it out to get its default.")
        for name in ("lr_max", "warmup", "min_lr"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise InvalidParameter(f"{name} must be 0 or more, not {getattr(self, name)}")
        if self.grad_clip is not None and not 0 < self.grad_clip < float("inf"):
            raise InvalidParameter(f"grad_clip must be above 0, not {self.grad_clip}", hint="null = no clipping.")

    def arguments(self) -> dict[str, float | int | None]:
        """What Trainer.step takes beside batches, learning rate and number of the step."""
        values = asdict(self)
        return {name: value for name, value in values.items() if name not in ("lr_max", "warmup", "min_lr")}


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
        val_loss: float | None = None,
    ) -> None:
        """Remember a step."""
        ids = "{" + ",".join(map(str, batch)) + "}"
        self.rows.append((step, lr, result.loss, result.grad_norm, result.tokens, seconds, val_loss, ids))

    def write(self) -> None:
        """Insert what was remembered."""
        if not self.rows:
            return
        db.run(
            "INSERT INTO {schema}.llm_train_log (run_id, model, step, lr, loss, grad_norm, tokens, seconds, val_loss, batch)"
            " SELECT $1, $2, step, lr, loss, grad_norm, tokens, seconds, val_loss, batch::bigint[]"
            " FROM unnest($3, $4, $5, $6, $7, $8, $9, $10) AS new (step, lr, loss, grad_norm, tokens, seconds, val_loss, batch)",
            ["int8", "text", "int8[]", "float8[]", "float8[]", "float8[]", "int4[]", "float8[]", "float8[]", "text[]"],
            *(self.run_id, self.model, *map(list, zip(*self.rows))),
        )
        self.rows.clear()


class Session:
    """A model's state in memory, from its rows and back to them. The model is locked until the transaction ends."""

    def __init__(self, model: str, workers: int) -> None:
        self.model = model
        self.config = store.config(model)
        resources.apply_threads(workers)
        resources.require_memory(16 * self.config.n_params(), f'training "{model}"')
        store.lock(model)
        self.version = store.weights_version(model)
        self._blocks: list[tuple[str, int, int]] = []
        self.trainer = self._read()

    @property
    def step(self) -> int:
        """AdamW updates that the model has had."""
        return max(self.trainer.steps.values())

    def _read(self) -> Trainer:
        assembly = store.Assembly(self.model, self.config.param_shapes())
        m: store.Params = {}
        v: store.Params = {}
        steps: dict[str, int] = {}
        for row in db.cursor(
            "SELECT name, token_id, shape, data, m, v, step FROM {schema}.llm_param WHERE model = $1 ORDER BY name, token_id",
            ["text"],
            self.model,
        ):
            name, first, rows = row["name"], row["token_id"], row["shape"][0]
            assembly.add(name, first, row["shape"], row["data"])
            for moments, data in ((m, row["m"]), (v, row["v"])):
                if name not in moments:
                    moments[name] = np.zeros(self.config.param_shapes()[name], FLOAT32)
                if data:
                    if len(data) != len(row["data"]):
                        raise InconsistentData(
                            f'm or v of tensor "{name}", block {first}, of model "{self.model}" has {len(data)} bytes,'
                            f" not {len(row['data'])}",
                            hint="Set m and v to null to start the optimizer anew.",
                        )
                    moments[name][first : first + rows] = np.frombuffer(data, FLOAT32).reshape(row["shape"])
            steps[name] = max(row["step"], steps.get(name, 0))
            self._blocks.append((name, first, rows))
            host.check_interrupts()
        return Trainer(self.config, assembly.finish(), m, v, steps, chunk=resources.attention_chunk())

    def batches(self, ids: Sequence[int], batch_size: int) -> list[datasets.Batch]:
        """The rows `ids`, cut into micro-batches of at most `batch_size`."""
        found = []
        for start in range(0, len(ids), batch_size):
            found += datasets.batches(ids[start : start + batch_size], self.model, self.config)
        rows, length = max(tokens.shape for tokens, _ in found)
        resources.require_memory(
            estimate_step_bytes(self.config, rows, length) - 16 * self.config.n_params(),
            f"a batch of {rows} x {length} tokens",
        )
        return found

    def write(self) -> None:
        """Weights, moments and steps back into the rows they came from."""
        batch: list[tuple[str, int, bytes, bytes, bytes, int]] = []
        held = 0
        trainer = self.trainer
        for name, first, rows in self._blocks:
            part = slice(first, first + rows)
            data, m, v = (to_bytes(array[name][part]) for array in (trainer.params, trainer.m, trainer.v))
            batch.append((name, first, data, m, v, trainer.steps[name]))
            held += 3 * len(data)
            if held >= store.FLUSH_BYTES:
                self._update(batch)
                batch, held = [], 0
            host.check_interrupts()
        if batch:
            self._update(batch)

    def _update(self, batch: list[tuple[str, int, bytes, bytes, bytes, int]]) -> None:
        updated = db.run(
            "UPDATE {schema}.llm_param AS p SET data = new.data, m = new.m, v = new.v, step = new.step, grad = NULL"
            " FROM unnest($2, $3, $4, $5, $6, $7) AS new (name, token_id, data, m, v, step)"
            " WHERE p.model = $1 AND p.name = new.name AND p.token_id = new.token_id",
            ["text", "text[]", "int4[]", "bytea[]", "bytea[]", "bytea[]", "int8[]"],
            *(self.model, *map(list, zip(*batch))),
        )
        if updated != len(batch):
            raise InconsistentData(
                f'weights of model "{self.model}" were changed by another session during training',
                hint="Run the training again; do not change llm_param while a model is trained.",
            )


def start_run(session: Session, settings: dict, seed: int, n_steps: int | None, status: str = "running") -> int:
    """A row of llm_run; its run_id."""
    row = db.row(
        "INSERT INTO {schema}.llm_run (model, config, seed, status, first_step, n_steps, weights_version, environment)"
        " VALUES ($1, $2, $3, $4, $5, $6, $7, $8) RETURNING run_id",
        ["text", "jsonb", "int8", "text", "int8", "int4", "text", "jsonb"],
        *(
            session.model,
            json.dumps(settings),
            seed,
            status,
            session.step,
            n_steps,
            session.version,
            json.dumps(environment()),
        ),
    )
    return (row or {})["run_id"]


def environment() -> dict[str, object]:
    """What the same bits are promised under."""
    blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    return {
        "pg_gpt2": __version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "blas": f"{blas.get('name')} {blas.get('version')}",
        "machine": platform.machine(),
    }


def manual_run(session: Session, seed: int) -> int:
    """The model's run of steps done by hand, made with its first."""
    row = db.row("SELECT run_id FROM {schema}.llm_run WHERE model = $1 AND status = 'manual'", ["text"], session.model)
    return row["run_id"] if row else start_run(session, {}, seed, None, "manual")


def train_step(session: Session, ids: Sequence[int] | None, settings: Settings, total_steps: int | None) -> float:
    """One logged step on the rows `ids`, else on the next row of the training data; the loss before it."""
    step = session.step + 1
    if ids is None:
        rows = datasets.row_ids(session.model, session.config, "train")
        ids = [int(rows[(step - 1) % len(rows)])]
    batches = session.batches(ids, len(ids))
    if total_steps is not None:
        lr = lr_schedule(step, settings.warmup, total_steps, settings.lr_max, settings.min_lr)
    else:
        lr = settings.lr_max * min(1.0, step / settings.warmup) if settings.warmup else settings.lr_max
    began = time.perf_counter()
    result = session.trainer.step(batches, lr=lr, step_no=step, **settings.arguments())  # type: ignore[arg-type]
    log = Log(manual_run(session, settings.seed), session.model)
    log.add(step, lr, result, time.perf_counter() - began, ids)
    log.write()
    session.write()
    return result.loss


def train(
    session: Session,
    n_steps: int,
    settings: Settings,
    batch_size: int,
    grad_accum: int,
    eval_every: int | None,
    log_every: int | None,
) -> int:
    """`n_steps` logged steps; the run_id. All in the caller's transaction."""
    rows = datasets.row_ids(session.model, session.config, "train")
    val_rows = datasets.row_ids(session.model, session.config, "val") if eval_every else None
    config = asdict(settings) | {"batch_size": batch_size, "grad_accum": grad_accum, "n_steps": n_steps}
    log = Log(start_run(session, config, settings.seed, n_steps), session.model)
    progress = _Progress(n_steps, log_every)
    order = BatchOrder(settings.seed, len(rows))
    for step in range(1, n_steps + 1):
        began = time.perf_counter()
        ids = rows[order.rows(step, batch_size * grad_accum)].tolist()
        lr = run_lr(step, n_steps, settings.warmup, settings.lr_max, settings.min_lr)
        batches = session.batches(ids, batch_size)
        result = session.trainer.step(batches, lr=lr, step_no=step, **settings.arguments())  # type: ignore[arg-type]
        seconds = time.perf_counter() - began
        val_loss = None
        if val_rows is not None and eval_every and (step % eval_every == 0 or step == n_steps):
            val_loss, _ = mean_loss(session.trainer.params, session.config, session.model, val_rows, batch_size)
        log.add(step, lr, result, seconds, ids, val_loss)
        progress.show(step, result.loss, lr, result.tokens, val_loss)
        host.check_interrupts()
    session.write()
    log.write()
    db.run(
        "UPDATE {schema}.llm_run SET status = 'finished', finished_at = clock_timestamp() WHERE run_id = $1",
        ["int8"],
        log.run_id,
    )
    return log.run_id


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


def mean_loss(
    params: store.Params, config: GPT2Config, model: str, ids: np.ndarray, batch_size: int
) -> tuple[float, int]:
    """Mean cross entropy and number of tokens of rows of llm_dataset, without dropout."""
    total, count = 0.0, 0
    for start in range(0, len(ids), batch_size):
        for tokens, targets in datasets.batches(ids[start : start + batch_size].tolist(), model, config):
            loss, n = evaluate(params, config, tokens, targets, chunk=resources.attention_chunk())
            total, count = total + loss, count + n
    return total / count, count
