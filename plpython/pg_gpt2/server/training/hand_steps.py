"""Steps by hand: llm_train_step, one statement a step, each recorded with its parameters under the model's manual run.

The run ends when anything else changes the weights, so that its steps follow one another and can be done again as a run's.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from ...training.optim import lr_schedule
from .. import db
from ..storage import sharing, store
from . import datasets, environment, run_log, runs
from .audit import Auditor
from .plan import settings_of
from .session import Session, Settings


@dataclass(frozen=True)
class StepPlan:
    """What one step by hand is to do, on `batch_size` rows; its number is the model's own."""

    settings: Settings
    total_steps: int | None
    batch_size: int
    shards: int = 1

    @classmethod
    def of(cls, config: dict, batch_size: int) -> "StepPlan":
        """The plan that llm_train_log.config records."""
        return cls(settings_of(config), config["total_steps"], batch_size)

    def lr(self, step: int) -> float:
        """Learning rate of the model's step 1, 2, ..."""
        settings = self.settings
        if self.total_steps is not None:
            return lr_schedule(step, settings.warmup, self.total_steps, settings.lr_max, settings.min_lr)
        return settings.lr_max * min(1.0, step / settings.warmup) if settings.warmup else settings.lr_max


def train_step(
    session: Session, ids: Sequence[int] | None, settings: Settings, total_steps: int | None, audit: str
) -> float:
    """One step by hand, on the rows `ids`, else on the next row of the training data; the loss before it."""
    step = session.step + 1
    if ids is None:
        rows = datasets.row_ids(session.model, session.config, "train")
        ids = [int(rows[(step - 1) % len(rows)])]
    plan = StepPlan(settings, total_steps, len(ids))
    log = run_log.Log(_manual_run(session, settings.seed), session.model)
    auditor = Auditor(session.model, audit)
    began = time.perf_counter()
    lr, result, digests = runs.learn(session, plan, step, ids, auditor.begin(log.run_id, step))
    auditor.end(session.trainer)
    log.add(step, lr, result, time.perf_counter() - began, ids, digests)
    began = time.perf_counter()
    session.write()
    auditor.write()
    seconds = time.perf_counter() - began
    config = asdict(settings) | {"total_steps": total_steps, "attention_chunk": session.trainer.chunk}
    log.write(seconds, config=config, lineage=session.content)
    return result.loss


def _manual_run(session: Session, seed: int) -> int:
    """The model's run of steps by hand: the one that left these weights, else a new one."""
    found = environment.current()
    row = db.row(
        f"SELECT r.run_id, l.lineage = $2 AND r.shared = {sharing.changed_too()} AS same,"
        " coalesce(r.resumed -> -1 -> 'environment', r.environment) = $3 AS here"
        " FROM {schema}.llm_run AS r LEFT JOIN LATERAL (SELECT lineage FROM {schema}.llm_train_log"
        " WHERE run_id = r.run_id ORDER BY step DESC LIMIT 1) AS l ON true WHERE r.model = $1 AND r.status = 'manual'",
        ["text", "text", "jsonb"],
        *(session.model, session.content, json.dumps(found)),
    )
    if row is None or not row["same"]:
        store.finish_manual_run(session.model)
        return run_log.new_run(session, runs.made_of(session), seed, None, "manual")
    if not row["here"]:
        db.run(
            f"UPDATE {{schema}}.llm_run SET {run_log.RESUMED} WHERE run_id = $1",
            ["int8", "int8", "jsonb"],
            *(row["run_id"], session.step, json.dumps(found)),
        )
    return row["run_id"]
