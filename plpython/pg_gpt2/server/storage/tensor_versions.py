"""Weights of a model at its checkpoints and now, tensor by tensor: what differs between two states, what became of a tensor.

Only what differs by digest is read. Numbers are float64; whether a tensor changed is a question of bits.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from itertools import groupby
from math import prod
from typing import NamedTuple

import numpy as np

from ... import host
from ...errors import InconsistentData, UndefinedObject
from ...tensor import FLOAT32
from .. import db, resources
from . import checkpoint_files, checkpoints, store
from .checkpoint_files import Part
from .checkpoints import Checkpoint

CHUNK = 1 << 18  # values at a time in float64


class Difference(NamedTuple):
    """A row of llm_checkpoint_diff without the name."""

    changed: bool
    max_abs: float | None
    l2: float | None
    relative: float | None


class Snapshot:
    """The weights of a checkpoint, or of a model now (`checkpoint` None). Use as a context manager: it may hold a file."""

    def __init__(self, checkpoint: Checkpoint | None, model: str) -> None:
        self.checkpoint = checkpoint
        self.model = model
        found = (
            checkpoints.current_parts(model, store.find_config(model))
            if checkpoint is None
            else checkpoints.parts(checkpoint)
        )
        self.tensors: dict[str, list[Part]] = {name: list(group) for name, group in groupby(found, lambda p: p.name)}
        self._open = ExitStack()

    def __enter__(self) -> "Snapshot":
        found = self.checkpoint
        if found is not None and found.manifest is not None:
            self._reader = checkpoint_files.open_file(str(found.file_path), found.id, found.config, found.manifest)
            self._open.callback(self._reader.close)
        return self

    def __exit__(self, *exception: object) -> None:
        self._open.close()

    def digests(self, name: str) -> list[tuple[int, bytes]]:
        """What tells two versions of a tensor apart."""
        return [(part.token_id, part.data) for part in self.tensors.get(name, ())]

    def shape(self, name: str) -> tuple[int, ...] | None:
        """Shape of the whole tensor; None where there is no such tensor."""
        found = self.tensors.get(name)
        return (found and (sum(part.shape[0] for part in found), *found[0].shape[1:])) or None

    def tensor(self, name: str) -> np.ndarray:
        """All values of a tensor, flat; 22000 where they are not what was saved."""
        shape = self.shape(name) or (0,)
        resources.require_memory(2 * 4 * prod(shape), f'comparing tensor "{name}"')
        blocks = []
        for part in self.tensors[name]:
            block = self._block(part)
            if len(block) != 4 * prod(part.shape) or tuple(part.shape[1:]) != shape[1:]:
                raise InconsistentData(
                    f'block {part.token_id} of tensor "{name}" has {len(block)} bytes, which do not fit its shape {part.shape}',
                    hint="Rows of llm_param or of a checkpoint were changed by hand. Load another checkpoint.",
                )
            blocks.append(np.frombuffer(block, FLOAT32))
            host.check_interrupts()
        return np.concatenate(blocks)

    def _block(self, part: Part) -> bytes:
        """Weights of a block; those of a checkpoint are compared with their digest."""
        found = self.checkpoint
        if found is not None and found.manifest is not None:
            return checkpoint_files.read_block(self._reader, part, "data", found.id) or b""
        if found is None:
            row = db.row(
                f"SELECT data FROM {store.resolved()} AS p WHERE name = $2 AND token_id = $3",
                ["text", "text", "int4"],
                *(self.model, part.name, part.token_id),
            )
        else:
            row = db.row(
                "SELECT data FROM {schema}.llm_checkpoint_blob WHERE model = $1 AND digest = $2",
                ["text", "bytea"],
                *(found.model, part.data),
            )
        if row is None:
            raise InconsistentData(f'block {part.token_id} of tensor "{part.name}" is missing', hint="Was it deleted?")
        if found is not None and checkpoint_files.sha256(row["data"]) != part.data:
            raise checkpoint_files.damaged(found.id, part.name, part.token_id, "in llm_checkpoint_blob")
        return row["data"]


def diff(a: Snapshot, b: Snapshot) -> Iterator[tuple[str, Difference]]:
    """Each tensor of either, by name."""
    for name in sorted(a.tensors | b.tensors):
        yield name, compare(a, b, name)
        host.check_interrupts()


def compare(a: Snapshot, b: Snapshot, name: str) -> Difference:
    """How a tensor in `b` differs from that in `a`."""
    if a.shape(name) != b.shape(name):
        return Difference(True, None, None, None)
    if a.digests(name) == b.digests(name):
        return Difference(False, 0.0, 0.0, 0.0)
    x, y = a.tensor(name), b.tensor(name)
    largest = squares = norm = 0.0
    for start in range(0, x.size, CHUNK):
        before = x[start : start + CHUNK].astype(np.float64)
        change = y[start : start + CHUNK] - before
        largest = float(np.maximum(largest, np.abs(change).max()))  # max() would lose a NaN
        squares += float(change @ change)
        norm += float(before @ before)
        host.check_interrupts()
    changed = not np.array_equal(x.view(np.uint32), y.view(np.uint32))
    return Difference(changed, largest, squares**0.5, (squares / norm) ** 0.5 if norm else None)


def norm(state: Snapshot, name: str) -> float:
    """L2 norm of a tensor."""
    values = state.tensor(name)
    parts = (values[start : start + CHUNK].astype(np.float64) for start in range(0, values.size, CHUNK))
    return sum(float(part @ part) for part in parts) ** 0.5


# --- history ----------------------------------------------------------------------------------------------------------------

ASKED = "(SELECT model FROM asked)"  # a name, which may be long, is once in the plan

# What happened to a model, in the order of time: training, saving, loading, and what it has now. PL/Python passes a moment on as
# text, which not every DateStyle reads as what was written; that of JSON is read everywhere.
EVENTS = """
    WITH asked AS MATERIALIZED (SELECT $1 AS model), event AS (
        SELECT r.started_at AS at, CASE WHEN r.n_steps IS NULL THEN 'steps by hand' ELSE 'run' END AS event, r.run_id,
               NULL::integer AS checkpoint_id,
               CASE WHEN r.n_steps IS NULL THEN least(r.first_step + 1, l.low) ELSE r.first_step + 1 END AS first_step,
               CASE WHEN r.n_steps IS NULL THEN l.high ELSE r.first_step + l.high END AS last_step
        FROM {schema}.llm_run AS r, LATERAL (
            SELECT min(step) AS low, max(step) AS high FROM {schema}.llm_train_log WHERE run_id = r.run_id
        ) AS l
        WHERE l.high IS NOT NULL
            AND {model} IN (
                SELECT r.model UNION ALL SELECT t ->> 'model' FROM jsonb_array_elements(r.shared) AS t WHERE t ->> 'name' = $2
            )
        UNION ALL
        SELECT created_at, 'checkpoint', run_id, id, NULL, step FROM {schema}.llm_checkpoint WHERE model = {model}
        UNION ALL
        SELECT at, 'load', run_id, checkpoint_id, NULL, step FROM {schema}.llm_checkpoint_restore
        WHERE model = {model} AND checkpoint_id IS NOT NULL
        UNION ALL
        SELECT NULL, 'now', NULL, NULL, NULL, max(step) FROM {rows} AS p HAVING bool_or(name = $2)
    )
    SELECT to_jsonb(at) #>> '{}' AS at, event, run_id, checkpoint_id, first_step, last_step
    FROM event ORDER BY event.at, run_id, checkpoint_id
"""


def history(model: str, name: str) -> Iterator[tuple]:
    """Events of `model` with the norm of a tensor at each that has its values, and its change since the one before."""
    before: Snapshot | None = None
    found = False
    rows = store.trained(store.find_config(model), ASKED)
    for row in db.query(EVENTS.replace("{rows}", rows).replace("{model}", ASKED), ["text", "text"], model, name):
        size = change = relative = changed = None
        if row["event"] in ("checkpoint", "now"):
            saved = checkpoints.find(row["checkpoint_id"]) if row["event"] == "checkpoint" else None
            with Snapshot(saved, model) as state:
                if name in state.tensors:
                    found = True
                    size = norm(state, name)
                    if before is not None:
                        with before:
                            changed, _, change, relative = compare(before, state, name)
                    before = state
        elif row["event"] == "load":
            before = _state_of(row["checkpoint_id"], model) or before
        yield (
            *(row["at"], row["event"], row["run_id"], row["checkpoint_id"], row["first_step"], row["last_step"]),
            *(size, changed, change, relative),
        )
    if not found:
        store.config(model)
        raise UndefinedObject(
            f'model "{model}" has no tensor "{name}", and no checkpoint of it has',
            hint="SELECT DISTINCT name FROM llm_param WHERE model = ... lists the names.",
        )


def _state_of(checkpoint_id: int, model: str) -> Snapshot | None:
    """The state that a load brought back, unless the checkpoint was dropped since."""
    row: Sequence = db.query("SELECT 1 FROM {schema}.llm_checkpoint WHERE id = $1", ["int4"], checkpoint_id)
    return Snapshot(checkpoints.find(checkpoint_id), model) if row else None
