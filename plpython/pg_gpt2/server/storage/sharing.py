"""Weight sharing: which rows of llm_param stand in for which of another model. Reading resolves them: see store.resolved.

A source is never a target itself, so that resolving is one step. Whatever changes a model locks its sources, too; but an adapter
only reads its base.
"""

from ...errors import InconsistentData, InvalidParameter, StillUsed, UndefinedObject
from .. import db
from . import adapters, locks, publications, store

Block = tuple[str, str, int]  # model, name, token_id

# What an adapter shares with its base is only read. A join: the planner takes a condition for each row of a thousand adapters for
# so much work that it compiles it, which takes a second.
_TRAINED = (
    "(SELECT s.* FROM {schema}.llm_param_share AS s LEFT JOIN {schema}.llm_adapter AS a ON a.model = s.target_model"
    f" WHERE a.model IS NULL OR s.target_name {store.IS_OWN})"
)


def changed_too(model: str = "$1") -> str:
    """An expression: tensors of other models that change with those of `model`, because they are the same rows, as an array of
    {model, name}. They are its sources', its targets', and those of its sources' other targets."""
    return f"""
        (SELECT coalesce(jsonb_agg(to_jsonb(tensor) ORDER BY model, name), '[]') FROM (
            SELECT source_model AS model, source_name AS name FROM {_TRAINED} AS s WHERE target_model = {model}
            UNION SELECT target_model, target_name FROM {_TRAINED} AS s WHERE source_model = {model}
            UNION SELECT o.target_model, o.target_name
            FROM {_TRAINED} AS s JOIN {_TRAINED} AS o USING (source_model, source_name, source_token_id)
            WHERE s.target_model = {model} AND o.target_model <> {model}
        ) AS tensor)
    """


def share(source: str, name: str, token_id: int | None, target: str, as_name: str, as_token_id: int | None) -> int:
    """Share one block, or with `token_id` None all of a tensor; how many."""
    if source == target:
        raise InvalidParameter(
            f'"{source}" cannot share a tensor with itself', hint="Give two models; within one, weights are not tied."
        )
    locks.lock(source, target, beside=lambda: adapters.base_of(source))
    blocks = _blocks(source, name, token_id)
    publications.require_with(target, {row["source_model"]: None for row in blocks})
    _check_target(target, as_name, as_token_id, token_id is None, [row["shape"] for row in blocks], blocks)
    for row in blocks:
        place = row["token_id"] if as_token_id is None else as_token_id
        db.run(
            "INSERT INTO {schema}.llm_param_share VALUES ($1, $2, $3, $4, $5, $6)"
            " ON CONFLICT (target_model, target_name, target_token_id) DO UPDATE SET (source_model, source_name,"
            " source_token_id) = (excluded.source_model, excluded.source_name, excluded.source_token_id)",
            ["text", "text", "int4", "text", "text", "int4"],
            *(row["source_model"], row["source_name"], row["source_token_id"], target, as_name, place),
        )
    record_change(target, source)
    adapters.follow(target)
    return len(blocks)


def _blocks(model: str, name: str, token_id: int | None) -> list[db.Row]:
    """The blocks of a tensor, each with the row that it really is; 42704 when there is none."""
    store.config(model)
    found = db.query(
        "SELECT token_id, shape, source_model, source_name, source_token_id"
        f" FROM {store.resolved()} AS p WHERE name = $2 AND ($3 IS NULL OR token_id = $3) ORDER BY token_id",
        ["text", "text", "int4"],
        *(model, name, token_id),
    )
    if not found:
        raise UndefinedObject(
            f'model "{model}" has no tensor "{name}"' + ("" if token_id is None else f" with token_id {token_id}"),
            hint="SELECT name, token_id, shape FROM llm_param_resolved WHERE model = ... lists them.",
        )
    return found


def _check_target(
    target: str, name: str, token_id: int | None, whole: bool, shapes: list[list[int]], blocks: list[db.Row]
) -> None:
    """Make room for blocks in `target`: 22023 when they do not fit, 2BP01 when another model shares what is there."""
    config = store.config(target)
    wanted = config.param_shapes().get(name)
    if wanted is not None and name not in config.trained_shapes():
        adapters.refuse(target, f'have a "{name}" other than that of its base')
    if wanted is None:
        raise UndefinedObject(
            f'a model of the shape of "{target}" has no tensor "{name}"', hint="Give target_name one of its tensors."
        )
    if token_id is not None and len(blocks) > 1:
        raise InvalidParameter(
            f"target_token_id {token_id} cannot stand for all {len(blocks)} blocks", hint="Leave target_token_id out."
        )
    places = [row["token_id"] if token_id is None else token_id for row in blocks]
    covered = sum(shape[0] for shape in shapes)
    if any(tuple(shape[1:]) != wanted[1:] for shape in shapes) or (whole and (places[0], covered) != (0, wanted[0])):
        raise InvalidParameter(
            f'{"x".join(map(str, [covered, *shapes[0][1:]]))} values do not fit "{name}" of "{target}",'
            f" which is {'x'.join(map(str, wanted))}",
            hint="Only tensors of the same shape can be shared.",
        )
    own = db.query(
        "SELECT token_id, shape FROM {schema}.llm_param WHERE model = $1 AND name = $2", ["text", "text"], target, name
    )
    if not whole and own:
        there = {row["token_id"]: row["shape"] for row in own}
        if there.get(places[0], shapes[0]) != shapes[0] or places[0] not in there:
            raise InvalidParameter(
                f'block {places[0]} of "{name}" of "{target}" is not of shape {shapes[0]}',
                hint="With source_token_id => NULL a tensor is shared whole, whatever its blocks are.",
            )
    refuse_if_used(target, name, None if whole else places[0])
    rest = " AND ($3 IS NULL OR {column} = $3)"
    parameters = (["text", "text", "int4"], target, name, None if whole else places[0])
    db.run(
        "DELETE FROM {schema}.llm_param WHERE model = $1 AND name = $2" + rest.format(column="token_id"), *parameters
    )
    db.run(
        "DELETE FROM {schema}.llm_param_share WHERE target_model = $1 AND target_name = $2"
        + rest.format(column="target_token_id"),
        *parameters,
    )


def refuse_if_used(model: str, name: str | None = None, token_id: int | None = None) -> None:
    """Refuse (2BP01) to touch `model` while other models share its rows; the error names them."""
    row = db.row(
        "SELECT string_agg(DISTINCT format('\"%s\"', target_model), ', ') AS users FROM {schema}.llm_param_share"
        " WHERE source_model = $1 AND ($2 IS NULL OR source_name = $2) AND ($3 IS NULL OR source_token_id = $3)",
        ["text", "text", "int4"],
        *(model, name, token_id),
    )
    if row and row["users"]:
        raise StillUsed(
            f'"{model}" shares tensors with {row["users"]}',
            hint="Drop those models first, or llm_unshare_param(model, tensor, NULL) gives them copies of their own; of an"
            " adapter, llm_adapter_merge makes a model that needs no base.",
        )


def unshare(target: str, name: str, token_id: int | None, copy_optimizer_state: bool) -> int:
    """Put copies in the place of shared blocks; how many."""
    locks.lock(target)
    config = store.find_config(target)
    if config is not None and name in config.param_shapes() and name not in config.trained_shapes():
        adapters.refuse(target, f'have a "{name}" other than that of its base')
    copied = db.run(
        "INSERT INTO {schema}.llm_param (model, name, token_id, shape, data, m, v, step)"
        " SELECT $1, s.target_name, s.target_token_id, p.shape, p.data,"
        " CASE WHEN $4 THEN p.m END, CASE WHEN $4 THEN p.v END, CASE WHEN $4 THEN p.step ELSE 0 END"
        " FROM {schema}.llm_param_share AS s JOIN {schema}.llm_param AS p"
        " ON p.model = s.source_model AND p.name = s.source_name AND p.token_id = s.source_token_id"
        " WHERE s.target_model = $1 AND s.target_name = $2 AND ($3 IS NULL OR s.target_token_id = $3)",
        ["text", "text", "int4", "bool"],
        *(target, name, token_id, copy_optimizer_state),
    )
    if not copied:
        _refuse_lost(target, name, token_id)
        raise UndefinedObject(
            f'model "{target}" does not share tensor "{name}"' + ("" if token_id is None else f", block {token_id}"),
            hint="SELECT * FROM llm_param_share lists what is shared.",
        )
    db.run(
        "DELETE FROM {schema}.llm_param_share"
        " WHERE target_model = $1 AND target_name = $2 AND ($3 IS NULL OR target_token_id = $3)",
        ["text", "text", "int4"],
        *(target, name, token_id),
    )
    if not copy_optimizer_state:
        record_change(target, target)
    adapters.follow(target)
    return copied


def _refuse_lost(target: str, name: str, token_id: int | None) -> None:
    """Refuse (22000) to copy shared blocks of which the source has no row that the caller sees."""
    row = db.row(
        "SELECT source_model, source_name FROM {schema}.llm_param_share WHERE target_model = $1 AND target_name = $2"
        " AND ($3 IS NULL OR target_token_id = $3) ORDER BY target_token_id LIMIT 1",
        ["text", "text", "int4"],
        *(target, name, token_id),
    )
    if row:
        raise InconsistentData(
            f'model "{target}" shares tensor "{row["source_name"]}" of "{row["source_model"]}", of which there are no rows',
            hint="They were deleted, or are hidden from this role. llm_share_param lets it use the tensor of another model.",
        )


def record_change(model: str, source: str) -> None:
    """Enter that `model` has other weights now, which no run of it has left."""
    db.run(
        "INSERT INTO {schema}.llm_checkpoint_restore (model, source, step, after_run)"
        " SELECT $1, $2, $3, coalesce(max(run_id), 0) FROM {schema}.llm_run",
        ["text", "text", "int8"],
        *(model, source, store.last_step(model, store.config(model))),
    )


def others(model: str) -> list[str]:
    """The models of which tensors change with those of `model`."""
    rows = db.query(
        f"SELECT DISTINCT t ->> 'model' AS name FROM jsonb_array_elements({changed_too()}) AS t", ["text"], model
    )
    return sorted(row["name"] for row in rows)


def forget_runs(model: str) -> None:
    """No run of another model has changed `model`, which is dropped."""
    db.run(
        "UPDATE {schema}.llm_run SET shared = (SELECT coalesce(jsonb_agg(t), '[]') FROM jsonb_array_elements(shared) AS t"
        " WHERE t ->> 'model' <> $1)"
        " WHERE EXISTS (SELECT FROM jsonb_array_elements(shared) AS t WHERE t ->> 'model' = $1)",
        ["text"],
        model,
    )


def forget(target: str, which: str = "true") -> int:
    """End all sharing by `target`, or that of tensors of which `which`, a condition in SQL, holds, without making copies, because
    its weights are replaced or dropped; how many it shared."""
    return db.run(f"DELETE FROM {{schema}}.llm_param_share WHERE target_model = $1 AND {which}", ["text"], target)
