"""llm_init_model, llm_copy_model, llm_drop_model: models as a whole."""

from dataclasses import replace
from math import prod
from typing import Any

from ...core import gpt2
from ...core.config import PRESETS, GPT2Config
from ...errors import FeatureNotSupported, InvalidParameter, NullNotAllowed, WrongState, require
from ...fast import threads
from ...tokenizer.tables import END_OF_TEXT
from .. import db, resources, vocabularies
from ..entry import entry, require_trigger_of
from ..storage import (
    adapters,
    checkpoint_removal,
    checkpoints,
    locks,
    reading,
    sharing,
    store,
    vocabulary_file,
    weights,
)
from ..training import audit


@entry
def config_changed(trigger: dict[str, Any]) -> None:
    """Before a row is inserted into llm_model_config: make room when the name is a preset's. Before it gets another name: refuse
    (0A000), since weights, vocabulary and all else would be left behind. Before a subscription deletes one: refuse (2BP01) while
    adapters of it, or models that share its tensors, are here; all that the publisher's transaction did is undone with that."""
    if trigger["event"] == "UPDATE":
        require_trigger_of(trigger, "BEFORE UPDATE ROW", "llm_model_config")
        old, new = trigger["old"]["model"], trigger["new"]["model"]
        raise FeatureNotSupported(
            f'model "{old}" cannot be renamed: its weights and all else are found by the name',
            hint=f"llm_copy_model('{old}', '{new}') copies it; then llm_drop_model('{old}').",
        )
    if trigger["event"] == "DELETE":
        require_trigger_of(trigger, "BEFORE DELETE ROW", "llm_model_config")
        adapters.refuse_if_base(trigger["old"]["model"])
        sharing.refuse_if_used(trigger["old"]["model"])
        return
    require_trigger_of(trigger, "BEFORE INSERT ROW", "llm_model_config")
    db.run("DELETE FROM {schema}.llm_model_config WHERE model = $1 AND preset", ["text"], trigger["new"]["model"])


@entry
def init_model(
    model: str,
    n_layer: int | None,
    n_head: int | None,
    d_model: int | None,
    n_positions: int | None,
    vocab: int | None,
    seed: int,
) -> None:
    """New random weights; nulls come from the configuration or vocabulary of that name."""
    if seed is None:
        raise NullNotAllowed("seed must not be null", hint="Leave it out for 0.")
    store.require_name(model)
    locks.lock(model)
    store.require_no_weights(model)
    known = store.find_config(model)
    tokens, eos = _vocabulary(model)
    shape = {"n_layer": n_layer, "n_head": n_head, "d_model": d_model, "n_positions": n_positions, "vocab": vocab}
    if vocab is None and tokens:
        shape["vocab"] = tokens
    for name in shape:
        if shape[name] is None and known is not None:
            shape[name] = getattr(known, name)
    architecture = known.architecture() if known is not None else {}
    wanted = GPT2Config(**{name: _given(name, value, model) for name, value in shape.items()}, **architecture)
    if wanted.vocab < tokens:
        raise InvalidParameter(
            f'vocab {wanted.vocab} is smaller than the vocabulary of "{model}", which has {tokens} tokens',
            hint="Leave vocab out to take the vocabulary's size.",
        )
    if eos is None and known is not None and (known.eos_token_id or 0) < wanted.vocab:
        eos = known.eos_token_id
    largest = max(4 * prod(shape) for shape in wanted.param_shapes().values())
    needed = largest + store.writing_bytes(4 * wanted.n_params())
    resources.require_memory(needed, f'making model "{model}"')
    stops = known.stop_token_ids if known is not None else None
    if stops is not None and max(stops, default=0) >= wanted.vocab:
        stops = None
    store.register(model, replace(wanted, eos_token_id=eos, stop_token_ids=stops))
    db.run("UPDATE {schema}.llm_model_config SET init_seed = $2 WHERE model = $1", ["text", "int8"], model, seed)
    tensors = gpt2.init_tensors(wanted, seed, threads.run)
    store.insert_params(model, ((name, array.shape, store.row_reader(array)) for name, array in tensors))
    resources.release_memory()


def _given(name: str, value: int | None, model: str) -> Any:
    if value is None:
        source = "vocabulary" if name == "vocab" else "configuration"
        raise NullNotAllowed(
            f'{name} must be given: there is no {source} of the name "{model}"',
            hint="Example: SELECT llm_init_model('tiny', n_layer => 4, n_head => 4, d_model => 128, n_positions => 64,"
            " vocab => 512).",
        )
    return value


def _vocabulary(model: str) -> tuple[int, int | None]:
    """Number of ids (largest + 1) and end-of-text id of the vocabulary of `model`; 0, None without one."""
    row = db.row(
        "SELECT max(token_id) + 1 AS tokens,"
        " coalesce(max(token_id) FILTER (WHERE 'eos' = ANY (roles)), max(token_id) FILTER (WHERE token = $2)) AS eos"
        " FROM {schema}.llm_bpe_vocab WHERE model = $1",
        ["text", "text"],
        model,
        END_OF_TEXT,
    )
    return ((row or {}).get("tokens") or 0, (row or {}).get("eos"))


@entry
def copy_model(source: str, target: str, checkpoint_id: int | None) -> None:
    """Configuration, weights, optimizer state, now or at a checkpoint, and vocabulary under a new name, all in SQL.

    What stands in grad is of the source's next step, or of the run that goes on with it.
    """
    require(source=source, target=target)
    config = store.config(source)
    saved = None if checkpoint_id is None else checkpoints.find(checkpoint_id, source)
    if saved is None and not store.has_weights(source):
        raise store.no_weights(source)
    store.require_name(target, "target")
    base = locks.lock(target, beside=lambda: adapters.base_of(source))
    if saved is None:
        config = store.config(source)  # as it is now that nobody has to be waited for
        reading.require_whole(source, config)
    else:  # first the lock of the model: see sql/checkpoints.sql
        saved = checkpoints.find(saved.id, source, lock=True)
    if base is None:
        store.require_no_weights(target)
    else:
        adapters.require_new(target)
        adapters.register(target, base, config)
    if saved is not None:
        checkpoints.restore(saved, target)
    else:
        store.register(target, config)
        db.run(
            "INSERT INTO {schema}.llm_param (model, name, token_id, shape, data, m, v, step)"
            f" SELECT $2, name, token_id, shape, data, m, v, step FROM {store.trained(config)} AS p",
            ["text", "text"],
            source,
            target,
        )
    if base is None:
        vocabularies.copy(source, target)
    else:
        vocabularies.copy_chat_template(source, target)


TABLES = (
    *("llm_checkpoint_restore", "llm_train_log", "llm_run", "llm_dataset", "llm_bpe_merges", "llm_bpe_vocab"),
    *("llm_tensor_map", "llm_param"),
)


@entry
def drop_model(model: str) -> None:
    """Delete the rows of `model` from every table; 42704 when there is none."""
    require(model=model)
    locks.lock(model)
    adapters.refuse_if_base(model)
    sharing.refuse_if_used(model)
    sharing.forget_runs(model)
    audit.drop_all(model)
    dropped = adapters.forget(model)
    deleted = {table: db.run(f"DELETE FROM {{schema}}.{table} WHERE model = $1", ["text"], model) for table in TABLES}
    dropped += sum(deleted.values())
    dropped += checkpoint_removal.drop_all(model) + sharing.forget(model)
    dropped += vocabularies.forget_chat_template(model)  # of a preset, whose row stays
    replaced = db.run("DELETE FROM {schema}.llm_model_config WHERE model = $1 AND NOT preset", ["text"], model)
    if replaced and model in PRESETS:
        store.register(model, PRESETS[model])
        db.run("UPDATE {schema}.llm_model_config SET preset = true WHERE model = $1", ["text"], model)
    dropped += replaced
    if not dropped:
        if store.find_config(model) is not None:
            raise WrongState(
                f'model "{model}" is a preset, and has nothing but its configuration',
                hint="DELETE its row from llm_model_config if it shall not be listed.",
            )
        raise store.unknown(model)
    weights.forget_file(model)  # not of a model that the caller does not see
    if deleted["llm_bpe_vocab"]:
        vocabulary_file.forget()
