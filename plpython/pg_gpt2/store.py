"""Models as rows: configuration, weights, optimizer state; and the cache of weights by version.

Tables are the truth, memory is a cache of a version. The version is computed from the visible rows under the caller's rights at
every call, so that it follows DML by hand, rollback, savepoints and row-level security; nothing has to be invalidated.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import numpy as np

from . import db, host, resources, weight_file
from .config import GPT2Config
from .errors import (
    DuplicateObject,
    InconsistentData,
    InvalidParameter,
    LockNotAvailable,
    NullNotAllowed,
    UndefinedObject,
    WrongState,
)
from .tensor import FLOAT32, to_bytes

BLOCK_BYTES = 4 << 20  # of data; with grad, m and v a row holds at most 16 MiB
FLUSH_BYTES = 64 << 20  # a statement's worth of blocks: each statement is a subtransaction, and bytea[] ends at 1 GiB
DEFAULT_MODEL = "gpt2-small"

# One text a row that changes whenever the row does. cmin is there for a table that is truncated and filled again in one
# transaction: then ctid and xmin alone repeat.
ROW_VERSION = "concat_ws(' ', p.name, p.token_id, p.ctid, p.xmin, p.cmin)"


def resolved(model: str = "$1") -> str:
    """A table expression: rows of llm_param of `model`, a parameter, with those that it shares in place; source_* say which
    row each is. The view llm_param_resolved has the same, but would be read with its owner's rights."""
    state = "p.shape, p.data, p.grad, p.m, p.v, p.step, p.ctid, p.xmin, p.cmin"
    source = "p.model AS source_model, p.name AS source_name, p.token_id AS source_token_id"
    return (
        f"(SELECT p.model, p.name, p.token_id, {source}, {state} FROM {{schema}}.llm_param AS p WHERE p.model = {model}"
        f" UNION ALL SELECT s.target_model, s.target_name, s.target_token_id, {source}, {state}"
        " FROM {schema}.llm_param_share AS s JOIN {schema}.llm_param AS p"
        " ON p.model = s.source_model AND p.name = s.source_name AND p.token_id = s.source_token_id"
        f" WHERE s.target_model = {model})"
    )


Params = dict[str, np.ndarray]
RowReader = Callable[[int, int], np.ndarray]


@dataclass(frozen=True)
class Model:
    """A model at one version; `params` are read-only arrays, name -> (shape of the configuration)."""

    name: str
    config: GPT2Config
    version: str
    params: Params
    shared: bool = False  # mapped from the file that all sessions use


def model_name(model: str | None) -> str:
    """`model`, else the setting pg_gpt2.model, else gpt2-small."""
    return model if model is not None else db.setting("model", DEFAULT_MODEL) or DEFAULT_MODEL


def require_name(model: str | None, parameter: str = "model") -> None:
    """22004 or 22023 unless `model` can be the name of a new model."""
    if model is None:
        raise NullNotAllowed(f"{parameter} must not be null", hint="Give the new model a name.")
    if not model:
        raise InvalidParameter(f"{parameter} must not be an empty name", hint="Give the new model a name.")


def config(model: str) -> GPT2Config:
    """The configuration of `model`; 42704 when there is none."""
    found = find_config(model)
    if found is None:
        raise UndefinedObject(
            f'model "{model}" does not exist',
            hint="SELECT * FROM llm_models lists the models; llm_init_model and the import functions make one.",
        )
    return found


def find_config(model: str) -> GPT2Config | None:
    """The configuration of `model`, or None."""
    if model is None:
        raise NullNotAllowed(
            "model must not be null", hint="Give the name of a model; SELECT * FROM llm_models lists them."
        )
    row = db.row(
        "SELECT n_layer, n_head, d_model, n_positions, vocab, eos_token_id FROM {schema}.llm_model_config WHERE model = $1",
        ["text"],
        model,
    )
    return GPT2Config(**row) if row else None


def check_overrides(
    known: GPT2Config, n_layer: int | None, n_head: int | None, d_model: int | None, vocab: int | None
) -> None:
    """22023 unless each shape that a caller repeats is null or what the model has."""
    for name, value in (("n_layer", n_layer), ("n_head", n_head), ("d_model", d_model), ("vocab", vocab)):
        if value is not None and value != getattr(known, name):
            raise InvalidParameter(
                f"{name} {value} does not fit the stored model, which has {getattr(known, name)}",
                hint="Leave it out: the shape comes from llm_model_config.",
            )


# One lock a model for all that changes its weights. Readers take none. It is advisory, because a procedure that commits has to
# hold it across its commits.
LOCK = "'{schema}.llm_param'::regclass::oid::integer, hashtext($1)"
BUILD = "'{schema}.llm_model_config'::regclass::oid::integer, hashtext($1)"  # for who writes the file of its weights


def lock(model: str) -> None:
    """Wait until no other session changes `model`, and make others wait until this transaction ends."""
    for name in locked_with(model):
        db.run(f"SELECT pg_advisory_xact_lock({LOCK})", ["text"], name)


def locked_with(model: str) -> list[str]:
    """`model` and those that it shares weights of, in the order in which all take their locks."""
    rows = db.query(
        "SELECT DISTINCT source_model FROM {schema}.llm_param_share WHERE target_model = $1", ["text"], model
    )
    return sorted({model, *(row["source_model"] for row in rows)})


@contextmanager
def session_lock(model: str, wait: bool) -> Iterator[None]:
    """Hold the lock of `model` across commits; 55P03 when another session has it and `wait` is false."""
    with ExitStack() as taken:
        for name in locked_with(model):
            if wait:
                db.run(f"SELECT pg_advisory_lock({LOCK})", ["text"], name)
            elif not (db.row(f"SELECT pg_try_advisory_lock({LOCK}) AS taken", ["text"], name) or {})["taken"]:
                raise LockNotAvailable(
                    f'model "{name}" is being trained by another session',
                    hint="SELECT * FROM llm_train_progress shows it; llm_train_stop ends it; wait => true waits for it.",
                )
            taken.callback(db.run, f"SELECT pg_advisory_unlock({LOCK})", ["text"], name)
        yield


def register(model: str, wanted: GPT2Config) -> None:
    """Insert or replace the configuration of a model that has no weights. A preset that fits stays one."""
    if find_config(model) == wanted:
        return
    db.run(
        "INSERT INTO {schema}.llm_model_config (model, n_layer, n_head, d_model, n_positions, vocab, eos_token_id)"
        " VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (model) DO UPDATE SET (n_layer, n_head, d_model, n_positions, vocab,"
        " eos_token_id) = (excluded.n_layer, excluded.n_head, excluded.d_model, excluded.n_positions, excluded.vocab,"
        " excluded.eos_token_id)",
        ["text", *["int4"] * 6],
        *(model, wanted.n_layer, wanted.n_head, wanted.d_model, wanted.n_positions, wanted.vocab, wanted.eos_token_id),
    )


def no_weights(model: str) -> WrongState:
    """The error for a model that is registered and has no weights."""
    return WrongState(
        f'model "{model}" has no weights',
        hint=f"Load some: pg_llm_import_safetensors('/path/model.safetensors', '{model}') on the server,"
        f" python -m loaders.load_model --model {model} SOURCE as a client, or llm_init_model for random ones.",
    )


def has_weights(model: str) -> bool:
    """Whether any row of `model` is visible in llm_param."""
    return db.row(f"SELECT 1 FROM {resolved()} AS p LIMIT 1", ["text"], model) is not None


def require_no_weights(model: str) -> None:
    """42710 when `model` has weights."""
    if model is None:
        raise NullNotAllowed("model must not be null", hint="Give the new model a name.")
    if has_weights(model):
        raise DuplicateObject(
            f'model "{model}" already has weights', hint="Choose another name, or llm_drop_model it first."
        )


# --- version and cache ------------------------------------------------------------------------------------------------------


class _Cache:
    """Models of this session by (name, version), least recently used first."""

    def __init__(self) -> None:
        self.models: OrderedDict[str, Model] = OrderedDict()

    def get(self, name: str, version: str) -> Model | None:
        found = self.models.get(name)
        if found is None or found.version != version:
            return None
        self.models.move_to_end(name)
        return found

    def make_room(self, name: str, wanted: int, room: int) -> None:
        """Give up an older version of `name`, and others until `wanted` bytes fit into `room`."""
        self.models.pop(name, None)
        while self.models and self.bytes() + wanted > room:
            self.models.popitem(last=False)

    def put(self, model: Model) -> None:
        self.models[model.name] = model

    def bytes(self) -> int:
        """Bytes that only this session holds."""
        return sum(size(model) for model in self.models.values() if not model.shared)


cache = _Cache()


def size(model: Model) -> int:
    """Bytes of a model's weights."""
    return sum(array.nbytes for array in model.params.values())


def last_step(model: str) -> int:
    """AdamW updates that the model has had."""
    row = db.row(f"SELECT max(step) AS step FROM {resolved()} AS p", ["text"], model)
    return (row or {})["step"] or 0


def weights_version(model: str) -> str:
    """Digest of the versions of the visible rows of `model`; that of no rows when it has no weights."""
    row = db.row(
        f"SELECT md5(string_agg({ROW_VERSION}, E'\\n' ORDER BY p.name, p.token_id)) AS version FROM {resolved()} AS p",
        ["text"],
        model,
    )
    return (row or {})["version"] or hashlib.md5(b"").hexdigest()


def load(model: str | None) -> Model:
    """The model at the version that this statement sees, from memory or from its rows. 42704 unknown, 55000 no weights."""
    name = model_name(model)
    wanted = config(name)
    resources.apply_threads()
    version = weights_version(name)
    found = cache.get(name, version)
    if found is None or found.config != wanted:
        cache.make_room(name, 4 * wanted.n_params(), resources.memory_limit())
        found = _load_shared(name, wanted, version) or _load_private(name, wanted)
        cache.put(found)
    return found


def _load_private(name: str, wanted: GPT2Config) -> Model:
    """The model in this session's own memory."""
    return Model(name, wanted, *_read_params(name, wanted))


def _load_shared(name: str, wanted: GPT2Config, version: str) -> Model | None:
    """The model from the file that sessions share, which the first to need a version writes; None where that cannot be.

    A transaction that has written may see rows that are nobody else's business yet.
    """
    folder = weight_file.directory()
    row = db.row(
        "SELECT oid::bigint AS database, pg_current_xact_id_if_assigned() IS NULL AS reads_only"
        " FROM pg_database WHERE datname = current_database()"
    )
    if folder is None or row is None or not row["reads_only"] or 4 * wanted.n_params() < weight_file.LEAST_BYTES:
        return None
    file = weight_file.WeightFile(folder, row["database"], name, version, wanted.param_shapes())
    params = file.attach()
    if params is None:
        with _builder(name):
            params = file.attach() or _build(file, name, wanted, version)
        resources.release_memory()
    return Model(name, wanted, version, params, shared=True) if params else None


def _build(file: weight_file.WeightFile, name: str, wanted: GPT2Config, version: str) -> Params | None:
    read, params = _read_params(name, wanted)
    return file.build(params) if read == version else None


@contextmanager
def _builder(model: str) -> Iterator[None]:
    """Sessions that need a version's file queue here, so that one writes it."""
    db.run(f"SELECT pg_advisory_lock({BUILD})", ["text"], model)
    try:
        yield
    finally:
        db.run(f"SELECT pg_advisory_unlock({BUILD})", ["text"], model)


def _read_params(name: str, wanted: GPT2Config) -> tuple[str, Params]:
    """Version and weights through one cursor, hence of one snapshot."""
    resources.require_memory(4 * wanted.n_params(), f'model "{name}"')
    shapes = wanted.param_shapes()
    rows = db.cursor(
        f"SELECT p.name, p.token_id, p.shape, p.data, {ROW_VERSION} AS version"
        f" FROM {resolved()} AS p ORDER BY p.name, p.token_id",
        ["text"],
        name,
    )
    digest = hashlib.md5()
    assembly = Assembly(name, shapes)
    for count, row in enumerate(rows):
        digest.update((("\n" if count else "") + row["version"]).encode())
        assembly.add(row["name"], row["token_id"], row["shape"], row["data"])
        host.check_interrupts()
    params = assembly.finish()
    for array in params.values():
        array.flags.writeable = False
    return digest.hexdigest(), params


class Assembly:
    """Puts blocks of rows together; what is missing, too much or misshapen is an error that names the tensor."""

    def __init__(self, model: str, shapes: dict[str, tuple[int, ...]]) -> None:
        self.model = model
        self.shapes = shapes
        self.params: Params = {}
        self._rows: dict[str, int] = {}

    def add(self, name: str, first: int, shape: list[int], data: bytes) -> None:
        """Take one block, blocks of a tensor in ascending order."""
        if name not in self.shapes:
            raise self._refusal(
                f'has a tensor "{name}" that its configuration does not', "Delete its rows from llm_param."
            )
        wanted = self.shapes[name]
        if tuple(shape[1:]) != wanted[1:]:
            raise self._refusal(
                f'tensor "{name}" has a block of shape {shape}; its shape is {list(wanted)}', "Import it again."
            )
        if first != self._rows.get(name, 0) or first + shape[0] > wanted[0]:
            raise self._refusal(
                f'tensor "{name}": block {first} of {shape[0]} rows does not follow row {self._rows.get(name, 0)} of {wanted[0]}',
                "The blocks of a tensor must cover its rows without gap or overlap; import it again.",
            )
        if name not in self.params:
            self.params[name] = np.empty(wanted, FLOAT32)
        self.params[name][first : first + shape[0]] = np.frombuffer(data, FLOAT32).reshape(shape)
        self._rows[name] = first + shape[0]

    def finish(self) -> Params:
        """All tensors in the order of the configuration; 55000 when there is none at all."""
        if not self.params:
            raise no_weights(self.model)
        for name, shape in self.shapes.items():
            rows = self._rows.get(name, 0)
            if rows < shape[0]:
                raise self._refusal(f'tensor "{name}" has rows 0 to {rows} of {shape[0]}', "Import the model again.")
        return {name: self.params[name] for name in self.shapes}

    def _refusal(self, problem: str, hint: str) -> InconsistentData:
        return InconsistentData(f'model "{self.model}": {problem}', hint=hint)


# --- writing ----------------------------------------------------------------------------------------------------------------


def row_blocks(shape: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    """First and last + 1 row of each stored block of a tensor of `shape`; a vector is one block."""
    rows = shape[0] if len(shape) == 1 else max(1, BLOCK_BYTES // (4 * shape[1]))
    for start in range(0, shape[0], rows):
        yield start, min(start + rows, shape[0])


def row_reader(array: np.ndarray) -> RowReader:
    """Rows of an array in memory."""
    return lambda start, stop: array[start:stop]


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
