"""Adapters as rows: which model each adapts, and the sharing by which it uses that model's tensors.

An adapter has a row of llm_model_config, one of llm_adapter, its own tensors in llm_param, and for each block of its base a row
of llm_param_share. What it is made of in memory is in `weights`; what it computes, in core/gpt2.py.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from ...core.config import Adapter, GPT2Config
from ...errors import DuplicateObject, FeatureNotSupported, StillUsed, WrongState
from .. import db
from . import publications, store


def base_of(model: str) -> str | None:
    """The model that `model` adapts; None where it is no adapter."""
    row = db.row("SELECT base FROM {schema}.llm_adapter WHERE model = $1", ["text"], model)
    return row["base"] if row else None


def refuse(model: str, what: str) -> None:
    """Refuse (55000) to do `what` with an adapter."""
    base = base_of(model)
    if base is not None:
        raise WrongState(
            f'"{model}" is an adapter of "{base}" and cannot {what}',
            hint="Do it with the base, or llm_adapter_merge(model, target) makes an ordinary model of the two.",
        )


def require_base(base: str) -> GPT2Config:
    """The configuration of a model that can be adapted; 42704 unknown, 0A000 itself an adapter, 55000 without weights."""
    config = store.config(base)
    if config.adapter is not None:
        raise FeatureNotSupported(
            f'"{base}" is an adapter, of which there are no adapters',
            hint=f"SELECT llm_adapter_merge('{base}', target) makes a model of it that can be adapted.",
        )
    if not store.has_weights(base):
        raise store.no_weights(base)
    return config


def require_new(model: str) -> None:
    """Refuse (42710) the name of a model that is there already, with weights or without."""
    store.require_no_weights(model)
    if store.find_config(model) is not None:
        raise DuplicateObject(f'model "{model}" already exists', hint="Choose another name.")


def register(model: str, base: str, config: GPT2Config, seed: int | None = None) -> None:
    """Enter a model without weights as an adapter of `base`, whose tensors are then its own. The caller has both locks."""
    adapter = config.adapter
    if adapter is None:
        raise ValueError("no adapter")
    store.register(model, replace(config, adapter=None))
    publications.require_with(model, [base])  # a name of which there was a model
    db.run(
        "INSERT INTO {schema}.llm_adapter (model, base, r, alpha, targets, dropout_p, seed)"
        " VALUES ($1, $2, $3, $4, $5, $6, $7)",
        ["text", "text", "int4", "float8", "text[]", "float8", "int8"],
        *(model, base, adapter.r, adapter.alpha, list(adapter.targets), adapter.dropout_p, seed),
    )
    _share(base, [model])


def change(model: str, adapter: Adapter) -> None:
    """Another rank, scale, targets or dropout for an adapter, whose own tensors are being replaced."""
    db.run(
        "UPDATE {schema}.llm_adapter SET (r, alpha, targets, dropout_p) = ($2, $3, $4, $5) WHERE model = $1",
        ["text", "int4", "float8", "text[]", "float8"],
        *(model, adapter.r, adapter.alpha, list(adapter.targets), adapter.dropout_p),
    )


def insert(model: str, tensors: Iterable[tuple[str, np.ndarray]]) -> None:
    """Insert tensors that are in memory."""
    store.insert_params(model, ((name, array.shape, store.row_reader(array)) for name, array in tensors))


def follow(base: str, coming: Sequence[tuple[str, int]] | None = None) -> None:
    """Give the adapters of a model whose rows were replaced the blocks that it has now, or the rows of its own that are `coming`,
    by name and token_id. The caller has the model's lock."""
    if db.row("SELECT 1 FROM {schema}.llm_adapter WHERE base = $1 LIMIT 1", ["text"], base) is None:
        return  # before the lock, which takes a right that reading does not
    # An adapter that is being dropped is waited for: its row of llm_adapter goes first.
    rows = db.query(
        "SELECT model FROM {schema}.llm_adapter WHERE base = $1 ORDER BY model FOR KEY SHARE", ["text"], base
    )
    db.run(
        "DELETE FROM {schema}.llm_param_share WHERE target_model IN"
        f" (SELECT model FROM {{schema}}.llm_adapter WHERE base = $1) AND NOT target_name {store.IS_OWN}",
        ["text"],
        base,
    )
    models = [row["model"] for row in rows]
    if coming is None:
        _share(base, models)
    else:
        names, firsts = map(list, zip(*coming))
        db.run(
            "INSERT INTO {schema}.llm_param_share SELECT $1, name, first, adapter, name, first"
            " FROM unnest($2, $3) AS block (name, first), unnest($4) AS adapter",
            ["text", "text[]", "int4[]", "text[]"],
            *(base, names, firsts, models),
        )


def _share(base: str, adapters: list[str]) -> None:
    db.run(
        "INSERT INTO {schema}.llm_param_share"
        " SELECT source_model, source_name, source_token_id, a.model, p.name, p.token_id"
        f" FROM {store.resolved()} AS p, {{schema}}.llm_adapter AS a WHERE a.model = ANY ($2)",
        ["text", "text[]"],
        base,
        adapters,
    )


def refuse_if_base(model: str) -> None:
    """Refuse (2BP01) to drop a model that has adapters; the error names them."""
    row = db.row(
        "SELECT string_agg(format('\"%s\"', model), ', ' ORDER BY model) AS names FROM {schema}.llm_adapter WHERE base = $1",
        ["text"],
        model,
    )
    if row and row["names"]:
        raise StillUsed(
            f'"{model}" is the base of {row["names"]}',
            hint="Drop its adapters first; llm_adapter_merge(adapter, target) makes a model that needs no base.",
        )


def forget(model: str) -> int:
    """`model` is no adapter any more; 1 where it was one."""
    return db.run("DELETE FROM {schema}.llm_adapter WHERE model = $1", ["text"], model)
