"""What is recorded of a run: its row of llm_run, and a row of llm_train_log a step."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field

from ...training.trainer import StepResult
from .. import db
from ..storage import sharing
from .session import Session

# $2: steps done, $3: session.environment().
RESUMED = (
    "resumed = resumed || jsonb_build_array(jsonb_build_object("
    "'after_step', $2::bigint, 'at', clock_timestamp(), 'environment', $3::jsonb))"
)


def new_run(session: Session, config: dict, seed: int, n_steps: int | None, status: str) -> int:
    """A row of llm_run; its run_id."""
    row = db.row(
        "INSERT INTO {schema}.llm_run (model, config, seed, status, first_step, n_steps, weights_version,"
        f" weights_digest, environment, shared) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, {sharing.changed_too()})"
        # Where an older snapshot does not show the manual run, this gives 40001 and not a duplicate key.
        " ON CONFLICT (model) WHERE status = 'manual' DO NOTHING RETURNING run_id",
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
            json.dumps(session.environment()),
        ),
    )
    return (row or {})["run_id"]


def validation(run_id: int) -> list[tuple[int, float]]:
    """(step, loss on the split val) of each evaluation of a run that is logged, in order."""
    rows = db.query(
        "SELECT step, val_loss FROM {schema}.llm_train_log WHERE run_id = $1 AND val_loss IS NOT NULL ORDER BY step",
        ["int8"],
        run_id,
    )
    return [(row["step"], row["val_loss"]) for row in rows]


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
        servers: dict | None = None,
    ) -> None:
        """Remember a step."""
        arrays = ["{" + ",".join(map(str, values)) + "}" for values in (batch, digests)]
        told = None if servers is None else json.dumps(servers)
        self.rows.append((step, lr, result.loss, result.grad_norm, result.tokens, seconds, val_loss, *arrays, told))

    def write(
        self,
        write_seconds: float,
        weights_digest: str | None = None,
        config: dict | None = None,
        lineage: str | None = None,
    ) -> None:
        """Insert what was remembered; digest, lineage and the seconds of writing are of the weights after the last of it."""
        if not self.rows:
            return
        db.run(
            "INSERT INTO {schema}.llm_train_log"
            " (run_id, model, step, lr, loss, grad_norm, tokens, seconds, val_loss, batch, batch_digest, weights_digest,"
            " servers, config, lineage, write_seconds)"
            " SELECT $1, $2, step, lr, loss, grad_norm, tokens, seconds, val_loss, batch::bigint[], digests::bigint[],"
            " CASE WHEN step = $13 THEN $14 END, servers::jsonb, $15, CASE WHEN step = $13 THEN $16 END,"
            " CASE WHEN step = $13 THEN $17 END"
            " FROM unnest($3, $4, $5, $6, $7, $8, $9, $10, $11, $12)"
            " AS new (step, lr, loss, grad_norm, tokens, seconds, val_loss, batch, digests, servers)",
            [
                *("int8", "text", "int8[]", "float8[]", "float8[]", "float8[]", "int4[]", "float8[]", "float8[]"),
                *("text[]", "text[]", "text[]", "int8", "text", "jsonb", "text", "float8"),
            ],
            *(self.run_id, self.model, *map(list, zip(*self.rows)), self.rows[-1][0], weights_digest),
            *(None if config is None else json.dumps(config), lineage, write_seconds),
        )
        self.rows.clear()
