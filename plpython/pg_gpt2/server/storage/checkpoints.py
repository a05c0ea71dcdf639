"""Checkpoints: a model's whole state at one moment, as rows that share equal blocks, or as a file with its manifest.

What is saved into the database is read by one statement: of one snapshot, whatever is committed beside it, and no weight passes
through Python. A block is stored under its model and its SHA-256, and compared with that when it is loaded. The order of locks
is in sql/checkpoints.sql.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from ...core.config import ARCHITECTURE, GPT2Config
from ...errors import DuplicateObject, InconsistentData, InvalidParameter, StillUsed, UndefinedObject, WrongState
from .. import db
from . import adapters, checkpoint_files, locks, server_files, sharing, store
from .checkpoint_files import Part

# The run that last changed a model, its own or of a model that shares tensors with it: the latest one that began after the latest
# load, else that of what was loaded. One that is interrupted or abandoned may have kept no step.
LAST_RUN = """
    SELECT coalesce(
        (SELECT max(run_id) FROM {schema}.llm_run AS r
         WHERE (r.model = $1 OR EXISTS (SELECT FROM jsonb_array_elements(r.shared) AS t WHERE t ->> 'model' = $1))
           AND r.run_id > coalesce(load.after_run, 0)
           AND (r.status NOT IN ('running', 'abandoned')
                OR EXISTS (SELECT FROM {schema}.llm_train_log AS l WHERE l.run_id = r.run_id))),
        load.run_id)
    FROM (VALUES (1)) AS always
    LEFT JOIN (
        SELECT after_run, run_id FROM {schema}.llm_checkpoint_restore WHERE model = $1 ORDER BY id DESC LIMIT 1
    ) AS load ON true
"""
DEFAULTS = json.dumps(ARCHITECTURE)
CONFIG = f"""
    (SELECT jsonb_object_agg(key, value) FROM jsonb_each(to_jsonb(c) - 'model' - 'preset' - 'init_seed' - 'chat_template')
     WHERE NOT '{DEFAULTS}'::jsonb @> jsonb_build_object(key, value)) || coalesce(
        (SELECT jsonb_build_object('adapter', to_jsonb(a) - 'model' - 'base' - 'seed') FROM {{schema}}.llm_adapter AS a
         WHERE a.model = c.model), '{{}}')
"""
# The advisory lock of the blocks of model $1: shared by those who save checkpoints of it, held alone by who removes blocks that
# none has (checkpoint_removal.sweep).
BLOCKS = "'{schema}.llm_checkpoint_blob'::regclass::oid::integer, hashtext($1)"
MOMENTS = "coalesce(octet_length(m), 0) + coalesce(octet_length(v), 0)"


@dataclass(frozen=True)
class Checkpoint:
    """A row of llm_checkpoint; `manifest` is that of a file, else None."""

    id: int
    model: str
    step: int
    run_id: int | None
    config: GPT2Config
    file_path: str | None
    manifest: list[Part] | None


def find(checkpoint_id: int, model: str | None = None, lock: bool = False) -> Checkpoint:
    """The checkpoint; 42704 when there is none, 22023 when it is not of `model`. `lock` keeps it from being dropped."""
    row = db.row(
        "SELECT id, model, step, run_id, config, file_path, manifest FROM {schema}.llm_checkpoint WHERE id = $1"
        + (" FOR KEY SHARE" if lock else ""),
        ["int4"],
        checkpoint_id,
    )
    if row is None:
        raise UndefinedObject(
            f"checkpoint {checkpoint_id} does not exist", hint="SELECT * FROM llm_checkpoint_list() lists them."
        )
    if model is not None and row["model"] != model:
        raise InvalidParameter(
            f'checkpoint {checkpoint_id} is of model "{row["model"]}", not of "{model}"',
            hint="llm_copy_model(source, target, checkpoint_id) makes another model from a checkpoint.",
        )
    try:
        manifest = row["manifest"] and [Part.from_json(values) for values in json.loads(row["manifest"])]
        config = GPT2Config.from_json(json.loads(row["config"]))
    except (KeyError, TypeError, ValueError, RecursionError, AttributeError, InvalidParameter):
        raise InconsistentData(
            f"llm_checkpoint row {checkpoint_id}: config or manifest is not what a checkpoint has",
            hint="The row was changed by hand; DELETE it from llm_checkpoint.",
        ) from None
    return Checkpoint(row["id"], row["model"], row["step"], row["run_id"], config, row["file_path"], manifest)


def last_run(model: str) -> int | None:
    """The run that last changed `model`."""
    row = db.row(f"SELECT ({LAST_RUN}) AS run_id", ["text"], model)
    return (row or {})["run_id"]


def parts(checkpoint: Checkpoint) -> list[Part]:
    """The blocks of a checkpoint, ordered by name and first row."""
    if checkpoint.manifest is not None:
        return checkpoint.manifest
    rows = db.query(
        "SELECT name, token_id, shape, step, data, m, v FROM {schema}.llm_checkpoint_part WHERE checkpoint_id = $1"
        ' ORDER BY name COLLATE "C", token_id',
        ["int4"],
        checkpoint.id,
    )
    return [Part(**row) for row in rows]


def current_parts(model: str, config: GPT2Config | None) -> list[Part]:
    """As `parts`, of what `model` has now."""
    rows = db.query(
        "SELECT name, token_id, shape, step, sha256(data) AS data, sha256(m) AS m, sha256(v) AS v"
        f' FROM {store.trained(config)} AS p ORDER BY name COLLATE "C", token_id',
        ["text"],
        model,
    )
    return [Part(**row) for row in rows]


def check_layout(model: str, config: GPT2Config, found: Iterable[Part]) -> None:
    """Refuse (22000) blocks that do not cover exactly the tensors of `config`: only what can be loaded is saved."""
    name = checkpoint_files.misfit(config, found)
    if name is not None:
        raise InconsistentData(
            f'model "{model}": the rows of tensor "{name}" in llm_param do not fit llm_model_config',
            hint="Import the model again, or llm_checkpoint_load an earlier state.",
        )


def blocks(saved: Checkpoint) -> Iterator[tuple[str, Part, bytes]]:
    """("data", "m" or "v", block, its bytes) of all of a checkpoint, moments that are null left out; 22000 where the bytes are
    not what was saved."""
    if saved.manifest is None:
        for kind in checkpoint_files.KINDS:
            yield from _stored_blocks(saved, kind)
        return
    reader = checkpoint_files.open_file(str(saved.file_path), saved.id, saved.config, saved.manifest)
    try:
        for kind in checkpoint_files.KINDS:
            for part in saved.manifest:
                data = checkpoint_files.read_block(reader, part, kind, saved.id)
                if data is not None:
                    yield kind, part, data
    finally:
        reader.close()


def _stored(kind: str, model: str) -> str:
    """An expression: the "data", "m" or "v" of the row c of llm_checkpoint_part, of a checkpoint of `model`; null where they are
    missing. They are looked up by the key: in a join the planner may go through all blocks of the model for each row."""
    return f"(SELECT b.data FROM {{schema}}.llm_checkpoint_blob AS b WHERE b.model = {model} AND b.digest = c.{kind})"


def _stored_blocks(saved: Checkpoint, kind: str) -> Iterator[tuple[str, Part, bytes]]:
    found = {(part.name, part.token_id): part for part in parts(saved) if part.digest(kind) is not None}
    for row in db.cursor(
        f"SELECT c.name, c.token_id, {_stored(kind, '$2')} AS data FROM {{schema}}.llm_checkpoint_part AS c"
        f' WHERE c.checkpoint_id = $1 AND c.{kind} IS NOT NULL ORDER BY c.name COLLATE "C", c.token_id',
        ["int4", "text"],
        *(saved.id, saved.model),
    ):
        part = found[row["name"], row["token_id"]]
        if row["data"] is None or checkpoint_files.sha256(row["data"]) != part.digest(kind):
            raise checkpoint_files.damaged(saved.id, part.name, part.token_id, "in llm_checkpoint_blob")
        yield kind, part, row["data"]


# --- saving -----------------------------------------------------------------------------------------------------------------


@db.exact_floats()  # for config
def save(model: str, note: str) -> int:
    """The state of `model` into the database; the id."""
    config = store.config(model)
    db.run(f"SELECT pg_advisory_xact_lock_shared({BLOCKS})", ["text"], model)  # before the snapshot
    begun = db.row(  # first the row: a policy then sees whose checkpoint the parts are of
        "INSERT INTO {schema}.llm_checkpoint (model, step, note, n_params, bytes, config)"
        " VALUES ($1, 0, $2, 0, 0, '{}') RETURNING id",
        ["text", "text"],
        *(model, note),
    )
    row = db.row(
        f"""
        WITH state AS MATERIALIZED (
            SELECT name, token_id, shape, step, data, m, v,
                   sha256(data) AS data_digest, sha256(m) AS m_digest, sha256(v) AS v_digest
            FROM {store.trained(config)} AS p
        ), new AS (
            UPDATE {{schema}}.llm_checkpoint AS saved
            SET step = t.step, run_id = ({LAST_RUN}), n_params = t.data / 4, bytes = t.data + t.moments, config = {CONFIG}
            FROM {{schema}}.llm_model_config AS c, (
                SELECT max(step) AS step, sum(octet_length(data)) AS data, sum({MOMENTS}) AS moments FROM state
            ) AS t
            WHERE saved.id = $2 AND c.model = $1 AND t.step IS NOT NULL
            RETURNING saved.id
        ), blobs AS (
            INSERT INTO {{schema}}.llm_checkpoint_blob (model, digest, data)
            SELECT DISTINCT ON (digest) $1, digest, data
            FROM (
                SELECT data_digest, data FROM state
                UNION ALL SELECT m_digest, m FROM state WHERE m IS NOT NULL
                UNION ALL SELECT v_digest, v FROM state WHERE v IS NOT NULL
            ) AS block (digest, data)
            ORDER BY digest -- of those who insert the same blocks, one waits for the other
            ON CONFLICT DO NOTHING
        ), parts AS (
            INSERT INTO {{schema}}.llm_checkpoint_part (checkpoint_id, name, token_id, shape, step, data, m, v)
            SELECT new.id, name, token_id, shape, step, data_digest, m_digest, v_digest FROM state, new
        )
        SELECT id FROM new
        """,
        ["text", "int4"],
        *(model, (begun or {})["id"]),
    )
    if row is None:
        raise store.no_weights(model)
    saved = find(row["id"])
    check_layout(model, config, parts(saved))
    return saved.id


@db.exact_floats()
def save_file(model: str, note: str, path: str) -> int:
    """The state of `model` into a file of the server; the id."""
    real = _new_path(server_files.to_write(path))
    config = store.config(model)
    manifest = current_parts(model, config)
    if not manifest:
        raise store.no_weights(model)
    check_layout(model, config, manifest)
    # First the row: whoever saves to the same path meanwhile waits for the unique index, and then fails before writing.
    row = db.row(
        f"""
        INSERT INTO {{schema}}.llm_checkpoint (model, step, run_id, note, n_params, bytes, config, file_path, manifest)
        SELECT $1, $4, ({LAST_RUN}), $2, $5, $6, {CONFIG}, $3, $7 FROM {{schema}}.llm_model_config AS c WHERE model = $1
        RETURNING id
        """,
        ["text", "text", "text", "int8", "int8", "int8", "jsonb"],
        *(model, note, real, max(part.step for part in manifest), config.n_trained()),
        sum(part.nbytes() for part in manifest),
        json.dumps([part.to_json() for part in manifest]),
    )
    saved = find((row or {})["id"])
    checkpoint_files.write(real, saved.id, model, config, manifest)
    return saved.id


def attach(path: str, model: str | None) -> int:
    """The checkpoint in a file that another database wrote, or that this one has forgotten, as one of `model`; the id."""
    real = _new_path(server_files.to_read(path))
    name, config, manifest = checkpoint_files.survey(real)
    store.require_name(name if model is None else model)
    row = db.row(
        "INSERT INTO {schema}.llm_checkpoint (model, step, note, n_params, bytes, config, file_path, manifest)"
        " VALUES ($1, $2, $3, $4, $5, $6, $7, $8) RETURNING id",
        ["text", "int8", "text", "int8", "int8", "jsonb", "text", "jsonb"],
        *(name if model is None else model, max(part.step for part in manifest), f'attached, saved of model "{name}"'),
        *(config.n_trained(), sum(part.nbytes() for part in manifest), json.dumps(config.to_json()), real),
        json.dumps([part.to_json() for part in manifest]),
    )
    return (row or {})["id"]


def _new_path(real: str) -> str:
    """A path whose links are resolved; 22023 when its name says no format, 42710 when a checkpoint is there."""
    checkpoint_files.require_suffix(real)
    if db.row("SELECT 1 FROM {schema}.llm_checkpoint WHERE file_path = $1", ["text"], real):
        raise DuplicateObject(
            f'"{real}" already holds a checkpoint',
            hint="Choose another path, or llm_checkpoint_drop that one; to save here again, remove its file as well.",
        )
    return real


# --- loading ----------------------------------------------------------------------------------------------------------------


def go_back(model: str, checkpoint_id: int) -> Checkpoint:
    """Put `model` back to a checkpoint of its own."""
    locks.lock(model)
    saved = find(checkpoint_id, model, lock=True)
    restore(saved, model)
    return saved


def restore(saved: Checkpoint, model: str) -> None:
    """Configuration, weights and optimizer state of `saved` as those of `model`; 22000 when a block is not what was saved. Of an
    adapter these are its own: `model` must be an adapter of such a base."""
    if saved.manifest is None and (name := checkpoint_files.misfit(saved.config, parts(saved))) is not None:
        raise InconsistentData(
            f'checkpoint {saved.id} is damaged: the blocks of tensor "{name}" are not those of a model of its configuration',
            hint="Rows of llm_checkpoint or llm_checkpoint_part were changed by hand. Load another checkpoint.",
        )
    if adapters.base_of(model) is None and saved.config.adapter is None:
        _refuse_misfit(saved, model)
        sharing.forget(model)
        store.register(model, saved.config)
    else:
        sharing.forget(model, f"target_name {store.IS_OWN}")
        _restore_adapter(saved, model)
    if saved.manifest is None:
        _restore_rows(saved, model)
    else:
        db.run("DELETE FROM {schema}.llm_param WHERE model = $1", ["text"], model)
        checkpoint_files.read_into(model, str(saved.file_path), saved.id, saved.config, saved.manifest)
    # A manual run logs under the model's own step, which goes back: the next step by hand begins another.
    store.finish_manual_run(model)
    db.run(
        "INSERT INTO {schema}.llm_checkpoint_restore (model, checkpoint_id, source, step, run_id, after_run)"
        " SELECT $1, $2, $3, $4, $5, coalesce(max(run_id), 0) FROM {schema}.llm_run",
        ["text", "int4", "text", "int8", "int8"],
        *(model, saved.id, saved.model, saved.step, saved.run_id),
    )
    sharing.record_change_too(model)
    adapters.follow(model)


def _refuse_misfit(saved: Checkpoint, model: str) -> None:
    """Refuse (2BP01) a checkpoint that the adapters of `model`, or models that share its tensors, could not use: one that was
    attached, of another shape."""
    now = store.find_config(model)
    if now is None or now.plain() == saved.config.plain():
        return
    shapes = saved.config.param_shapes()
    try:
        adapters.refuse_if_base(model)
        for name, shape in now.param_shapes().items():
            if shapes.get(name) != shape:
                sharing.refuse_if_used(model, name)
    except StillUsed as error:
        raise StillUsed(
            f"checkpoint {saved.id} is of another shape, and {error.message}",
            hint=f"llm_copy_model(source, target, {saved.id}) makes a model of its own from the checkpoint. {error.hint}",
        ) from None


def _restore_adapter(saved: Checkpoint, model: str) -> None:
    """What `saved` says of the adapter `model`; 55000 where one of the two is none, 22000 where the base has another shape."""
    now = store.config(model)
    if now.adapter is None or saved.config.adapter is None:
        what = "an adapter" if saved.config.adapter else "no adapter"
        raise WrongState(
            f'checkpoint {saved.id} is of {what}, and "{model}" is {"one" if now.adapter else "none"}',
            hint="A checkpoint of an adapter has its own tensors only. Make it first, with the same targets:"
            " llm_adapter_create(model, base, ...); then llm_checkpoint_load puts them there.",
        )
    if saved.config.plain() != now.plain():
        raise InconsistentData(
            f'checkpoint {saved.id} is of an adapter of another shape than the base of "{model}" has',
            hint="Make an adapter of the base that it is for, and load it there.",
        )
    if now.adapter != saved.config.adapter:
        adapters.change(model, saved.config.adapter)


def _restore_rows(saved: Checkpoint, model: str) -> None:
    """Rows that are as saved stay; the others are replaced, and then compared with their digests."""
    as_saved = (
        "c.checkpoint_id = $2 AND c.name = p.name AND c.token_id = p.token_id AND c.shape = p.shape AND c.step = p.step"
        " AND c.data = sha256(p.data) AND c.m IS NOT DISTINCT FROM sha256(p.m) AND c.v IS NOT DISTINCT FROM sha256(p.v)"
    )
    db.run(
        "DELETE FROM {schema}.llm_param AS p WHERE model = $1 AND (grad IS NOT NULL"
        f" OR NOT EXISTS (SELECT FROM {{schema}}.llm_checkpoint_part AS c WHERE {as_saved}))",
        ["text", "int4"],
        *(model, saved.id),
    )
    db.run(
        "INSERT INTO {schema}.llm_param (model, name, token_id, shape, step, data, m, v)"
        f" SELECT $1, c.name, c.token_id, c.shape, c.step, stored.data, {_stored('m', '$3')}, {_stored('v', '$3')}"
        " FROM {schema}.llm_checkpoint_part AS c"
        f" CROSS JOIN LATERAL (SELECT {_stored('data', '$3')} AS data OFFSET 0) AS stored"
        " WHERE c.checkpoint_id = $2"
        " AND octet_length(stored.data) = 4::bigint * c.shape[1] * coalesce(c.shape[2], 1)"  # else llm_param would refuse it
        " AND NOT EXISTS (SELECT FROM {schema}.llm_param AS p WHERE p.model = $1 AND p.name = c.name AND p.token_id = c.token_id)"
        ' ORDER BY c.name COLLATE "C", c.token_id',
        ["text", "int4", "text"],
        *(model, saved.id, saved.model),
    )
    wrong = db.row(
        "SELECT c.name, c.token_id FROM {schema}.llm_checkpoint_part AS c"
        " LEFT JOIN {schema}.llm_param AS p ON p.model = $1 AND p.name = c.name AND p.token_id = c.token_id"
        f" WHERE c.checkpoint_id = $2 AND ({as_saved}) IS NOT TRUE"
        ' ORDER BY c.name COLLATE "C", c.token_id LIMIT 1',
        ["text", "int4"],
        *(model, saved.id),
    )
    if wrong:
        raise checkpoint_files.damaged(saved.id, wrong["name"], wrong["token_id"], "in llm_checkpoint_blob")
