"""Removing checkpoints, with what nothing needs any more. Files that hold one stay."""

from collections.abc import Sequence

from .. import db
from .checkpoints import BLOCKS


def drop(model: str, checkpoint_ids: Sequence[int]) -> int:
    """Remove checkpoints of `model`, and the blocks that no other of it needs; how many there were."""
    row = db.row(  # one statement: by a policy parts may be visible only as long as their checkpoint is
        "WITH gone AS (DELETE FROM {schema}.llm_checkpoint WHERE model = $1 AND id = ANY ($2) RETURNING id),"
        " parts AS (DELETE FROM {schema}.llm_checkpoint_part AS p USING gone WHERE p.checkpoint_id = gone.id)"
        " SELECT count(*) AS n FROM gone",
        ["text", "int4[]"],
        *(model, list(checkpoint_ids)),
    )
    dropped = (row or {})["n"]
    if dropped:
        sweep(model)
    return dropped


def drop_all(model: str) -> int:
    """Remove all checkpoints of `model`, and what those left whose rows were deleted by hand; how many there were."""
    rows = db.query("SELECT id FROM {schema}.llm_checkpoint WHERE model = $1", ["text"], model)
    dropped = drop(model, [row["id"] for row in rows])
    if not dropped:
        sweep(model)
    return dropped


def sweep(model: str) -> None:
    """Delete blocks of `model` that no checkpoint of it has, and parts of no checkpoint. It must see every checkpoint of the
    model that is committed, and waits for those being saved.

    It does nothing where it may not see them all: in an older snapshot, after which the next drop does it, and where policies are
    on some of the tables only. Where they are on all, they hide whole models (docs/how-to/hide-models.md).
    """
    sees_all = db.row(
        "SELECT bool_or(row_security_active(t)) AS filtered FROM unnest(ARRAY["
        "'{schema}.llm_checkpoint', '{schema}.llm_checkpoint_part', '{schema}.llm_checkpoint_blob']::regclass[]) AS t"
        " HAVING current_setting('transaction_isolation') IN ('read committed', 'read uncommitted')"
        " AND count(DISTINCT row_security_active(t)) = 1"
    )
    if sees_all is None:
        return
    db.run(f"SELECT pg_advisory_xact_lock({BLOCKS})", ["text"], model)
    if not sees_all["filtered"]:  # else a part may only seem to be of no checkpoint
        db.run(
            "DELETE FROM {schema}.llm_checkpoint_part AS p"
            " WHERE NOT EXISTS (SELECT FROM {schema}.llm_checkpoint AS c WHERE c.id = p.checkpoint_id)"
        )
    with db.without_nested_loops():
        db.run(
            "WITH used AS (SELECT unnest(ARRAY[p.data, p.m, p.v]) AS digest FROM {schema}.llm_checkpoint AS c"
            " JOIN {schema}.llm_checkpoint_part AS p ON p.checkpoint_id = c.id WHERE c.model = $1)"
            " DELETE FROM {schema}.llm_checkpoint_blob AS b"
            " WHERE b.model = $1 AND NOT EXISTS (SELECT FROM used WHERE used.digest = b.digest)",
            ["text"],
            model,
        )


OF_USERS = (  # of the checkpoints of model $1 those that no run may need to go on
    "model = $1 AND file_path IS NULL AND NOT EXISTS (SELECT FROM {schema}.llm_run AS r"
    " WHERE r.best_checkpoint = c.id AND r.status IN ('running', 'stopped'))"
)


def prunable(model: str, keep_last: int, keep_every: int | None) -> list[int]:
    """Ids of the checkpoints in the database beyond the last `keep_last`, whose step is no multiple of `keep_every`; but for
    those with the best weights of a run that may go on, which are the run's."""
    rows = db.query(
        f"SELECT id FROM {{schema}}.llm_checkpoint AS c WHERE {OF_USERS}"
        f" AND ($3 IS NULL OR step % $3 <> 0) AND id NOT IN ("
        f"SELECT id FROM {{schema}}.llm_checkpoint AS c WHERE {OF_USERS} ORDER BY id DESC LIMIT $2)",
        ["text", "int4", "int4"],
        *(model, keep_last, keep_every),
    )
    return [row["id"] for row in rows]
