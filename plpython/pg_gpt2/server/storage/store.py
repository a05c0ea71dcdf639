"""Models as rows: names, configurations, and how weights are laid out in blocks.

Tables are the truth; what a session holds of them in memory is in `weights`.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from ... import host
from ...core.config import ARCHITECTURE, Adapter, GPT2Config
from ...errors import DuplicateObject, InvalidParameter, NullNotAllowed, UndefinedObject, WrongState
from ...tensor import to_bytes
from .. import db

BLOCK_BYTES = 4 << 20  # of data; with grad, m and v a row holds at most 16 MiB
FLUSH_BYTES = 16 << 20  # a statement's worth of blocks: each statement is a subtransaction, and in memory three times
DEFAULT_MODEL = "gpt2-small"
NAMED = 5  # models in a hint
SIMILAR = 0.7  # of difflib: two letters of a word of four may have changed places
LONGEST_MEANT = 200  # characters of a name that others are compared with


def resolved(model: str = "$1") -> str:
    """A table expression: rows of llm_param of `model`, a parameter, with those that it shares in place; source_* say which
    row each is. The view llm_param_resolved has the same, without ctid, xmin and cmin."""
    state = "p.shape, p.data, p.grad, p.m, p.v, p.step, p.ctid, p.xmin, p.cmin"
    source = "p.model AS source_model, p.name AS source_name, p.token_id AS source_token_id"
    return (
        f"(SELECT p.model, p.name, p.token_id, {source}, {state} FROM {{schema}}.llm_param AS p WHERE p.model = {model}"
        f" UNION ALL SELECT s.target_model, s.target_name, s.target_token_id, {source}, {state}"
        " FROM {schema}.llm_param_share AS s JOIN {schema}.llm_param AS p"
        " ON p.model = s.source_model AND p.name = s.source_name AND p.token_id = s.source_token_id"
        f" WHERE s.target_model = {model})"
    )


IS_OWN = "LIKE '%.lora__'"  # names of an adapter's own tensors, beside those of its base
# A table expression: the rows of llm_param_share whose tensors the target trains; what an adapter shares with its base is only
# read. It is a join, because NOT EXISTS beside an OR looks so dear to the planner, for a base with many adapters, that it has the
# plan compiled (JIT), which takes seconds.
TRAINED_SHARES = (
    "(SELECT s.* FROM {schema}.llm_param_share AS s LEFT JOIN {schema}.llm_adapter AS a ON a.model = s.target_model"
    f" WHERE s.target_name {IS_OWN} OR a.model IS NULL)"
)


def trained(config: GPT2Config | None, model: str = "$1") -> str:
    """As `resolved`, of the tensors that training changes: of an adapter its own."""
    if config is None or config.adapter is None:
        return resolved(model)
    return f"(SELECT p.* FROM {resolved(model)} AS p WHERE p.name {IS_OWN})"


_told: set[str] = set()  # models of which this session knows that they are meant where none is named

RowReader = Callable[[int, int], np.ndarray]


def model_name(model: str | None) -> str:
    """`model`, else the setting pg_gpt2.model, else gpt2-small."""
    return model if model is not None else db.setting("model", DEFAULT_MODEL) or DEFAULT_MODEL


def only_model(tell: bool = True) -> str | None:
    """The model that is meant where the caller names none, no setting does, and gpt2-small is nothing but a preset: the only
    one that has weights, where there is one; beside a model its adapters do not count. The session is told once, unless `tell`
    is false."""
    if db.setting("model") is not None:
        return None
    row = db.row("SELECT 1 FROM {schema}.llm_bpe_vocab WHERE model = $1 LIMIT 1", ["text"], DEFAULT_MODEL)
    names = _weighted(2, but=IS_BESIDE_ITS_BASE)
    if row is not None or len(names) != 1 or names[0] == DEFAULT_MODEL:
        return None
    if tell and names[0] not in _told:
        _told.add(names[0])
        db.notice(f'no model is named: "{names[0]}" is meant, the only one that has weights (see pg_gpt2.model)')
    return names[0]


IS_BESIDE_ITS_BASE = (
    "EXISTS (SELECT FROM {schema}.llm_adapter AS a JOIN {schema}.llm_model_config AS b ON b.model = a.base"
    " WHERE a.model = c.model)"
)


def _weighted(most: int, but: str = "false") -> list[str]:
    """Names of at most so many models of which the caller sees weights, without those of which `but`, a condition in SQL, holds.
    The inner ORDER BY keeps llm_param from being scanned."""
    rows = db.query(
        "SELECT c.model FROM {schema}.llm_model_config AS c WHERE ((SELECT true FROM {schema}.llm_param AS p"
        " WHERE p.model = c.model ORDER BY p.model, p.name, p.token_id LIMIT 1)"
        " OR EXISTS (SELECT FROM {schema}.llm_param_share AS s WHERE s.target_model = c.model))"
        f" AND NOT {but} ORDER BY c.model LIMIT $1",
        ["int4"],
        most,
    )
    return [row["model"] for row in rows]


def require_name(model: str | None, parameter: str = "model") -> None:
    """Refuse what cannot name a new model: null (22004), or an empty name (22023)."""
    if model is None:
        raise NullNotAllowed(f"{parameter} must not be null", hint="Give the new model a name.")
    if not model:
        raise InvalidParameter(f"{parameter} must not be an empty name", hint="Give the new model a name.")


def config(model: str) -> GPT2Config:
    """The configuration of `model`; 42704 when there is none."""
    found = find_config(model)
    if found is None:
        raise unknown(model)
    return found


def unknown(model: str) -> UndefinedObject:
    """The error for a model that is not there, or that the caller does not see."""
    similar = _similar(model)
    if similar is not None:
        return UndefinedObject(
            f'model "{model}" does not exist',
            hint=f'Perhaps you meant "{similar}". SELECT * FROM llm_models lists the models.',
        )
    return UndefinedObject(
        f'model "{model}" does not exist',
        hint="SELECT * FROM llm_models lists the models; llm_init_model and the import functions make one.",
    )


def _similar(model: str) -> str | None:
    """The name most like `model` among those of models that the caller sees, presets left out; None where none is like it."""
    if len(model) > LONGEST_MEANT:
        return None
    import difflib  # imported here: only a misspelt name needs it

    rows = db.query(
        "SELECT model FROM {schema}.llm_model_config WHERE NOT preset"
        " AND length(model) BETWEEN length($1) / 2 AND 2 * length($1) ORDER BY model LIMIT 1000",
        ["text"],
        model,
    )
    return next(iter(difflib.get_close_matches(model, [row["model"] for row in rows], 1, SIMILAR)), None)


def find_config(model: str) -> GPT2Config | None:
    """The configuration of `model`, or None."""
    if model is None:
        raise NullNotAllowed(
            "model must not be null", hint="Give the name of a model; SELECT * FROM llm_models lists them."
        )
    row = db.row(
        f"SELECT {NAMES}, {ADAPTER_NAMES}"
        " FROM {schema}.llm_model_config LEFT JOIN {schema}.llm_adapter USING (model) WHERE model = $1",
        ["text"],
        model,
    )
    if row is None:
        return None
    r, alpha, targets, dropout_p = (row.pop(name) for name in ADAPTER_FIELDS)
    return GPT2Config(**row, adapter=None if r is None else Adapter(r, alpha, tuple(targets), dropout_p))


COLUMNS = {  # of llm_model_config, beside the name; and their types
    **dict.fromkeys(("n_layer", "n_head", "d_model", "n_positions", "vocab", "eos_token_id"), "int4"),
    "stop_token_ids": "int4[]",
    **dict.fromkeys(ARCHITECTURE, "bool"),
    "activation_function": "text",
    "n_inner": "int4",
    "layer_norm_epsilon": "float8",
}
NAMES, EXCLUDED = ", ".join(COLUMNS), ", ".join(f"excluded.{name}" for name in COLUMNS)
PLACES = ", ".join(f"${place}" for place in range(2, 2 + len(COLUMNS)))
ADAPTER_FIELDS = ("r", "alpha", "targets", "dropout_p")
ADAPTER_NAMES = ", ".join(ADAPTER_FIELDS)


def check_overrides(
    known: GPT2Config, n_layer: int | None, n_head: int | None, d_model: int | None, vocab: int | None
) -> None:
    """Refuse (22023) a shape parameter that is neither null nor what the model has."""
    for name, value in (("n_layer", n_layer), ("n_head", n_head), ("d_model", d_model), ("vocab", vocab)):
        if value is not None and value != getattr(known, name):
            raise InvalidParameter(
                f"{name} {value} does not fit the stored model, which has {getattr(known, name)}",
                hint="Leave it out: the shape comes from llm_model_config.",
            )


def register(model: str, wanted: GPT2Config) -> None:
    """Insert or replace the configuration of a model that has no weights. A preset that fits stays one."""
    if find_config(model) == wanted:
        return
    values = [getattr(wanted, name) for name in COLUMNS]
    db.run(
        f"INSERT INTO {{schema}}.llm_model_config (model, {NAMES}) VALUES ($1, {PLACES})"
        f" ON CONFLICT (model) DO UPDATE SET ({NAMES}) = ({EXCLUDED})",
        ["text", *COLUMNS.values()],
        *(model, *(list(value) if isinstance(value, tuple) else value for value in values)),
    )


def no_weights(model: str) -> WrongState:
    """The error for a model that is registered and has no weights."""
    names = _weighted(NAMED + 1)
    others = ", ".join(f'"{name}"' for name in names[:NAMED]) + (", ..." if len(names) > NAMED else "")
    loaded = f" Those that have some: {others}. SET pg_gpt2.model makes one of them the default." if names else ""
    return WrongState(
        f'model "{model}" has no weights',
        hint=f"Load some: pg_llm_import_safetensors('/path/model.safetensors', '{model}') on the server,"
        f" pg-gpt2 load-model --model {model} SOURCE as a client, or llm_init_model for random ones.{loaded}",
    )


def has_weights(model: str) -> bool:
    """Whether any row of `model` is visible in llm_param; the first by the key, for LIMIT alone may scan the table."""
    return db.row(f"SELECT 1 FROM {resolved()} AS p ORDER BY p.name LIMIT 1", ["text"], model) is not None


def known(models: Sequence[str]) -> set[str]:
    """Those of `models` whose configuration and weights the caller may see. Where nothing hides rows from the caller, that is
    all of them: what a session keeps of a model may outlive it."""
    if not db.may_read("llm_model_config", "llm_param", "llm_param_share"):
        return set()
    rows = db.query(
        "SELECT m.name FROM unnest($1) AS m (name) WHERE NOT (row_security_active('{schema}.llm_model_config')"
        " OR row_security_active('{schema}.llm_param') OR row_security_active('{schema}.llm_param_share'))"
        " OR EXISTS (SELECT FROM {schema}.llm_model_config AS c WHERE c.model = m.name)"
        f" AND EXISTS (SELECT FROM {resolved('m.name')} AS p)",
        ["text[]"],
        list(models),
    )
    return {row["name"] for row in rows}


def require_no_weights(model: str) -> None:
    """Refuse (42710) a `model` that has weights already."""
    if has_weights(model):
        raise DuplicateObject(
            f'model "{model}" already has weights', hint="Choose another name, or llm_drop_model it first."
        )


def last_step(model: str, config: GPT2Config | None) -> int:
    """AdamW updates that the model has had."""
    row = db.row(f"SELECT max(step) AS step FROM {trained(config)} AS p", ["text"], model)
    return (row or {})["step"] or 0


def finish_manual_run(model: str) -> None:
    """The next step of `model` by hand begins another run."""
    db.run(
        "UPDATE {schema}.llm_run SET status = 'finished', finished_at = clock_timestamp()"
        " WHERE model = $1 AND status = 'manual'",
        ["text"],
        model,
    )


# --- writing ----------------------------------------------------------------------------------------------------------------


def row_blocks(shape: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    """First and last + 1 row of each stored block of a tensor of `shape`; a vector is one block."""
    rows = shape[0] if len(shape) == 1 else max(1, BLOCK_BYTES // (4 * shape[1]))
    for start in range(0, shape[0], rows):
        yield start, min(start + rows, shape[0])


def row_reader(array: np.ndarray) -> RowReader:
    """Rows of an array in memory."""
    return lambda start, stop: array[start:stop]


def writing_bytes(total: int) -> int:
    """Memory that writing `total` bytes in blocks takes: those of a statement as they are read, as one value, and in the server;
    and three times a block, which is read, cut out and made a part of a row."""
    return 3 * min(total, FLUSH_BYTES + BLOCK_BYTES) + 3 * min(total, BLOCK_BYTES)


def require_memory_of_batches(total: int) -> None:
    """Refuse (53200) to write `total` bytes for which there is no memory."""
    host.require_memory(writing_bytes(total), "writing a model's weights")


def insert_params(model: str, tensors: Iterable[tuple[str, tuple[int, ...], RowReader]]) -> None:
    """Insert tensors given as (name, shape, reader of rows [start, stop)), a few blocks a statement."""
    batch: list[tuple[str, int, int, int | None, bytes]] = []
    held = 0
    for name, shape, read in tensors:
        for start, stop in row_blocks(shape):
            data = to_bytes(read(start, stop))
            batch.append((name, start, stop - start, shape[1] if len(shape) == 2 else None, data))
            held += len(data)
            if held >= FLUSH_BYTES:
                _insert(model, batch)
                batch, held = [], 0
            host.check_interrupts()
    if batch:
        _insert(model, batch)


def _insert(model: str, batch: list[tuple[str, int, int, int | None, bytes]]) -> None:
    names, firsts, rows, columns, data = map(list, zip(*batch))
    whole, places = joined(data)
    with db.planned_once(len(whole)):
        db.run(
            "INSERT INTO {schema}.llm_param (model, name, token_id, shape, data)"
            " SELECT $1, name, first, CASE WHEN columns IS NULL THEN ARRAY[rows] ELSE ARRAY[rows, columns] END,"
            " substring($7 FROM place FOR 4 * rows * coalesce(columns, 1))"
            " FROM unnest($2, $3, $4, $5, $6) AS block (name, first, rows, columns, place)",
            ["text", "text[]", "int4[]", "int4[]", "int4[]", "int4[]", "bytea"],
            *(model, names, firsts, rows, columns, places, whole),
        )


def joined(parts: list[bytes]) -> tuple[bytes, list[int]]:
    """`parts` as one value, and where each begins in it, from 1: PL/Python keeps the elements of a bytea[] until the
    function ends, which for a whole model is its size once more."""
    places = np.cumsum([1, *map(len, parts)])[:-1]
    return b"".join(parts), places.tolist()


def modules_path() -> str:
    """Path of the table of modules: there until the extension or the database is dropped, which any other database can see.
    Shared files are named after it: where it moves, as by VACUUM FULL, they are made anew."""
    return (db.row("SELECT pg_relation_filepath('{schema}.llm_module'::regclass) AS path") or {})["path"]
