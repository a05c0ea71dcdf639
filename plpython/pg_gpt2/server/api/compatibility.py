"""Names of an earlier attempt: parameters as handles, and their gradients brought back to the rows."""

from math import prod

from ...errors import InvalidParameter, UndefinedObject, require, require_positive
from ...tensor import check_shape, from_bytes
from .. import db
from ..arrays import received
from ..entry import entry
from ..storage import locks, store, weights
from ..tape import recording, tape_rows
from ..tape.recording import Recorder
from ..tape.tape_rows import own_tape


@entry
def enabled() -> bool:
    """Whether recording is on."""
    return recording.enabled()


@entry
@received(shape="integer")
def map_param(model: str, name: str, token_id: int, tensor: bytes, shape: list[int] | None) -> int:
    """A handle for one row of llm_param."""
    require(model=model, name=name, token_id=token_id, tensor=tensor)
    row = db.row(
        f"SELECT shape FROM {store.resolved()} AS p WHERE name = $2 AND token_id = $3",
        ["text", "text", "int4"],
        *(model, name, token_id),
    )
    if row is None:
        raise UndefinedObject(
            f'model "{model}" has no parameter "{name}" with token_id {token_id}',
            hint="SELECT name, token_id FROM llm_param WHERE model = ... lists them.",
        )
    array = from_bytes(tensor, shape or row["shape"], name="tensor")
    check_shape(row["shape"], name=f'parameter "{name}"')
    if array.size != prod(row["shape"]):
        raise InvalidParameter(
            f'shape {shape} does not fit parameter "{name}", whose block has shape {row["shape"]}',
            hint="Leave shape out to take the parameter's.",
        )
    recorder = Recorder(room=1)
    handle = recorder.leaf(array, _is_trained(model, name)).id
    recorder.flush()
    db.run(
        "INSERT INTO {schema}.llm_tensor_map (tape_id, model, name, token_id, tensor_id) VALUES ($1, $2, $3, $4, $5)"
        " ON CONFLICT (tape_id, model, name, token_id) DO UPDATE SET tensor_id = excluded.tensor_id",
        ["int8", "text", "text", "int4", "int8"],
        *(own_tape(), model, name, token_id, handle),
    )
    return handle


def _is_trained(model: str, name: str) -> bool:
    """Whether training changes a parameter: not where it belongs to the base of an adapter."""
    config = store.find_config(model)
    return config is None or config.adapter is None or name in config.adapter_shapes()


@entry
def materialize_params(model: str) -> int:
    """New handles for all parameters, in place of those mapped before; their number."""
    require(model=model)
    loaded = weights.load(model)
    db.run("DELETE FROM {schema}.llm_tensor_map WHERE tape_id = $1 AND model = $2", ["int8", "text"], own_tape(), model)
    return len(recording.materialize(Recorder(), loaded, list(loaded.params)))


@entry
def accumulate_grads(model: str, workers: int) -> int:
    """Add gradients of mapped handles to llm_param.grad; the number of rows."""
    require(model=model)
    require_positive(workers=workers)
    config = store.config(model)  # a misspelt name would seem to have no gradients
    locks.lock(model)
    total, turn, trained = 0, 1, store.trained(config, "$2")
    # A row shared as several tensors gets the gradient of each in its turn.
    while updated := _accumulate(model, trained, turn):
        total, turn = total + updated, turn + 1
    return total


def _accumulate(model: str, trained: str, turn: int) -> int:
    """Add to each row of `trained`, a table expression, the gradient of the `turn`-th tensor that it stands for; the number of
    rows."""
    return db.run(
        "UPDATE {schema}.llm_param AS p SET grad ="
        " CASE WHEN p.grad IS NULL THEN new.part ELSE {schema}.pg_llm_add(p.grad, new.part) END"
        " FROM (SELECT q.source_model, q.source_name, q.source_token_id, row_number() OVER ("
        "                  PARTITION BY q.source_model, q.source_name, q.source_token_id ORDER BY q.name) AS turn,"
        "              substring(t.grad FROM 1 + m.first * 4 * coalesce(q.shape[2], 1)"
        "                                                   FOR octet_length(q.data)) AS part"
        "       FROM (SELECT name, token_id, tensor_id, token_id - min(token_id) OVER (PARTITION BY tensor_id) AS first"
        "             FROM {schema}.llm_tensor_map WHERE tape_id = $1 AND model = $2) AS m"
        "       JOIN {schema}.llm_tensor_rt AS t ON t.id = m.tensor_id AND t.tape_id = $1"
        f"       JOIN {trained} AS q ON (q.name, q.token_id) = (m.name, m.token_id)"
        "       WHERE t.grad IS NOT NULL OFFSET 0) AS new"
        " WHERE p.model = new.source_model AND p.name = new.source_name AND p.token_id = new.source_token_id"
        " AND new.turn = $3",
        ["int8", "text", "int8"],
        *(own_tape(), model, turn),
    )


@entry
def prune(workers: int) -> int:
    """Drop the caller's tape; the number of its values."""
    require_positive(workers=workers)
    return tape_rows.drop([own_tape()])
