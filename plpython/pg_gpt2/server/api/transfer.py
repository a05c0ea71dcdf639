"""Import and export of weights: files of the server, bytes, or rows that a client inserts."""

import dataclasses
import io
import json
import os
from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Any, BinaryIO

import numpy as np

from ... import host
from ...core.config import ENDS, PRESETS, Adapter, GPT2Config, in_words
from ...errors import InconsistentData, InvalidParameter, UndefinedFile, UndefinedObject, WrongState, require
from ...formats import (
    MAX_CONFIG_BYTES,
    Checkpoint,
    agreed,
    hub_metadata,
    hub_name,
    open_npz,
    open_safetensors,
    read_config,
    write_npz,
    write_safetensors,
)
from ...formats.checkpoint import COUNTS
from ...tensor import FLOAT32
from .. import db
from ..entry import entry
from ..storage import adapters, locks, server_files, sharing, store

ROW_BYTES = 400  # of Python's objects that say which row of llm_param is meant


@entry
def import_safetensors_file(path: str, model: str, replace: bool | None) -> int:
    """A safetensors file of the server -> rows."""
    store.require_name(model)
    with server_files.open_to_read(path) as file:
        return _import(open_safetensors(file), model, replace, _config_beside(path))


@entry
def import_npz_file(path: str, model: str, replace: bool | None) -> int:
    """A .npz file of the server -> rows."""
    store.require_name(model)
    with server_files.open_to_read(path) as file:
        beside = _config_beside(path)
        locks.lock(model)  # so that the configuration is still there when the tensors are
        return _import(open_npz(file, store.find_config(model) or beside), model, replace, beside)


@entry
def import_safetensors(data: bytes, model: str, replace: bool | None) -> int:
    """Bytes of a safetensors file -> rows."""
    require(data=data)
    store.require_name(model)
    return _import(open_safetensors(io.BytesIO(data)), model, replace, None)


def _config_beside(path: str) -> GPT2Config | None:
    """What the config.json in the directory of a file says, and the generation_config.json beside it; None when there is none."""
    beside = os.path.join(os.path.dirname(path), "config.json")
    data = _content(beside)
    if data is None:
        return None
    return read_config(data, f'"{beside}"', _content(os.path.join(os.path.dirname(path), "generation_config.json")))


def _content(path: str) -> bytes | None:
    """What is in a small file; None when there is none."""
    try:
        return server_files.read(path, MAX_CONFIG_BYTES)
    except UndefinedFile:
        return None


def _import(opened: Checkpoint, model: str, replace: bool | None, beside: GPT2Config | None) -> int:
    """Check and store a checkpoint's tensors; their number. `beside`: the configuration that came with it."""
    with opened as checkpoint:
        locks.lock(model)
        if not replace:
            store.require_no_weights(model)
        known = store.find_config(model)
        config = _configuration(checkpoint, model, known, beside)
        store.require_memory_of_batches(4 * config.n_trained())
        _make_room(model, config, replace)
        store.insert_params(model, checkpoint.tensors(config))
        adapters.follow(model)
        return len(config.trained_shapes())


def _make_room(model: str, config: GPT2Config, replace: bool | None) -> None:
    """Register the configuration, unless it is an adapter's, and remove the weights that are replaced. No run is then
    the last to have changed the model, or one that shares its tensors."""
    if replace:
        removed = db.run("DELETE FROM {schema}.llm_param WHERE model = $1", ["text"], model)
        removed += sharing.forget(model, "true" if config.adapter is None else f"target_name {store.IS_OWN}")
        if removed:
            sharing.record_change(model, model)
    sharing.record_change_too(model)
    if config.adapter is None:
        store.register(model, config)


def _configuration(
    checkpoint: Checkpoint, model: str, known: GPT2Config | None, beside: GPT2Config | None
) -> GPT2Config:
    """The one that llm_model_config, config.json and the file's metadata agree on, as far as each of them says anything."""
    config = known or beside or checkpoint.config()
    if config is None:
        raise UndefinedObject(
            f'model "{model}" has no configuration, and the file does not say how many heads it has',
            hint="Put its config.json beside it, INSERT INTO llm_model_config (model, n_layer, n_head, d_model, n_positions,"
            " vocab) VALUES (...) first, or use pg-gpt2 load-model.",
        )
    said = checkpoint.said()
    if beside is not None:
        config = agreed(model, config, beside.to_json() | beside.architecture(), "config.json")
    elif "n_head" not in said:
        host.notice(
            f"the file does not say how it computes, and has no config.json beside it: taken for a GPT-2 of {config.n_head}"
            f" heads as in llm_model_config, with {in_words(config.architecture())}"
        )
    return agreed(model, config, said, "the file's metadata")


@entry
def import_begin(model: str, config: str, replace: bool | None) -> list[tuple[str, int, list[int]]]:
    """The rows of llm_param, without their data, that the caller inserts next in its transaction."""
    store.require_name(model)
    require(config=config)
    base, said = _described(config)
    locks.lock(model)
    if not replace:
        store.require_no_weights(model)
    wanted = _as_model(model, said, replace) if isinstance(said, GPT2Config) else _as_adapter(model, base, said)
    rows = list(_rows(wanted))
    _make_room(model, wanted, replace)
    adapters.follow(model, [(name, start) for name, start, _ in rows])
    return rows


def _rows(config: GPT2Config) -> Iterator[tuple[str, int, list[int]]]:
    """Name, token_id and shape of each row that holds the model, of an adapter its own."""
    # All rows of a tensor but the last are more than half full.
    count = 2 * 4 * config.n_trained() // store.BLOCK_BYTES
    host.require_memory(ROW_BYTES * count, f"a list of {count} rows of llm_param")
    for name, shape in config.trained_shapes().items():
        for start, stop in store.row_blocks(shape):
            host.check_interrupts()
            yield name, start, [stop - start, *shape[1:]]


def _described(config: str) -> tuple[str | None, GPT2Config | Adapter]:
    """What an object of JSON describes: a model, or an adapter, and of that the name of its base. 22023 where it is neither."""
    try:
        said: dict[str, Any] = json.loads(config)
        if not isinstance(said, dict):
            raise ValueError("it is no object")
        base = said.pop("base", None)
        if not isinstance(base, str | None):
            raise ValueError("base is no name")
        if unknown := said.keys() - (store.COLUMNS.keys() if base is None else store.ADAPTER_FIELDS):
            raise ValueError(f"{min(unknown):.80} is no such column")
        if base is None:
            return None, GPT2Config(**{**dict.fromkeys(COUNTS), **said})
        if "targets" in said:
            said["targets"] = tuple(said["targets"])
        return base, Adapter(**said)
    except (ValueError, TypeError, RecursionError) as error:
        raise InvalidParameter(
            f"config is that of neither a model nor an adapter: {error}",
            hint="Give columns of llm_model_config by their names, or of llm_adapter, with its base.",
        ) from None


def _as_model(model: str, said: GPT2Config, replace: bool | None) -> GPT2Config:
    """The configuration of `model`, with which `said` agrees, or with `replace` but for the tokens that end texts, which it then
    has as `said`; `said`, where it has none or is a preset without weights."""
    adapters.refuse(model, "become another model")
    known = store.find_config(model)
    if known is None or (known == PRESETS.get(model) and not store.has_weights(model)):
        return said
    if replace:
        known = dataclasses.replace(known, **{name: getattr(said, name) for name in ENDS})
    return agreed(model, known, said.to_json() | said.architecture(), "config")


def _as_adapter(model: str, base: str | None, said: Adapter) -> GPT2Config:
    """The configuration of an adapter of `base`, which becomes `said`; 55000 where `model` is none."""
    known, found = store.config(model), adapters.base_of(model)
    if found is None or found != base:
        raise WrongState(
            f'"{model}" is no adapter of "{base}"',
            hint=f"llm_adapter_create('{model}', '{base}') makes one, once llm_drop_model has dropped what has the name.",
        )
    adapters.change(model, said)
    db.run("UPDATE {schema}.llm_adapter SET seed = NULL WHERE model = $1", ["text"], model)
    return dataclasses.replace(known, adapter=said)


@entry
def export_safetensors_file(path: str, model: str) -> int:
    """Rows -> a safetensors file of the server; its size."""
    real = server_files.to_write(path)
    config = store.config(model)
    stored = _Stored(model, config, _through_cursor(model, config))

    def fill(file: BinaryIO) -> None:
        for chunk in _safetensors(config, stored):
            file.write(chunk)
            host.check_interrupts()

    return server_files.write(real, fill)


@entry
def export_npz_file(path: str, model: str) -> int:
    """Rows -> a .npz file of the server; its size."""
    real = server_files.to_write(path)
    config = store.config(model)
    stored = _Stored(model, config, _through_cursor(model, config))
    return server_files.write(real, lambda file: write_npz(file, stored.shapes, stored.blocks, hub_metadata(config)))


@entry
def export_safetensors(model: str) -> Iterator[bytes]:
    """Chunks of a safetensors file. The function is stable, so that all its queries have one snapshot."""
    config = store.config(model)
    return _safetensors(config, _Stored(model, config, _one_by_one(model, config)))


def _safetensors(config: GPT2Config, stored: "_Stored") -> Iterator[bytes]:
    ours = {hub_name(name): name for name in stored.shapes}
    shapes = {theirs: stored.shapes[name] for theirs, name in ours.items()}
    return write_safetensors(shapes, lambda name: stored.blocks(ours[name]), hub_metadata(config))


IN_ORDER = 'ORDER BY name COLLATE "C", token_id'


def _through_cursor(model: str, config: GPT2Config) -> Iterator[db.Row]:
    """Blocks of a model in the order of their names, through one cursor, hence of one snapshot."""
    yield from db.cursor(f"SELECT name, shape, data FROM {store.trained(config)} AS p {IN_ORDER}", ["text"], model)


def _one_by_one(model: str, config: GPT2Config) -> Iterator[db.Row]:
    """The same by a query each, for the rows of a set, between which no cursor may be open."""
    for key in db.query(f"SELECT name, token_id FROM {store.trained(config)} AS p {IN_ORDER}", ["text"], model):
        row = db.row(
            f"SELECT name, shape, data FROM {store.resolved()} AS p WHERE name = $2 AND token_id = $3",
            ["text", "text", "int4"],
            *(model, key["name"], key["token_id"]),
        )
        if row is not None:
            yield row


class _Stored:
    """The stored tensors of a model, of an adapter its own, read once in the order of their names, from rows of one snapshot."""

    def __init__(self, model: str, config: GPT2Config, rows: Iterator[db.Row]) -> None:
        self.shapes = dict(sorted(config.trained_shapes().items()))
        self._model, self._config = model, config
        self._check()
        self._tensors = groupby(rows, lambda row: row["name"])

    def _check(self) -> None:
        """Refuse a model without weights (55000), or whose tensors do not fit its configuration (22000).

        Before the first chunk, because PL/Python hides the message of an error that comes between the rows of a set.
        """
        found: dict[str, tuple[int, ...]] = {
            row["name"]: (row["rows"], row["columns"]) if row["columns"] else (row["rows"],)
            for row in db.query(
                "SELECT name, sum(shape[1]) AS rows, max(shape[2]) AS columns"
                f" FROM {store.trained(self._config)} AS p GROUP BY name",
                ["text"],
                self._model,
            )
        }
        if not found:
            raise store.no_weights(self._model)
        for name in sorted(found.keys() | self.shapes.keys()):
            if found.get(name) != self.shapes.get(name):
                raise InconsistentData(
                    f'model "{self._model}": tensor "{name}" has shape {_shape(found.get(name))} in llm_param and'
                    f" {_shape(self.shapes.get(name))} by llm_model_config",
                    hint="Import the model again, or llm_checkpoint_load an earlier state.",
                )

    def blocks(self, name: str) -> Iterable[np.ndarray]:
        """Blocks of the next tensor, which must be `name`."""
        found, rows = next(self._tensors, (None, iter(())))
        if found != name:
            raise InconsistentData(
                f'model "{self._model}" has {found or "no tensor"} where "{name}" should follow',
                hint="Compare llm_param with llm_model_config.",
            )
        for row in rows:
            host.check_interrupts()
            yield np.frombuffer(row["data"], FLOAT32).reshape(row["shape"])


def _shape(shape: tuple[int, ...] | None) -> str:
    return "none" if shape is None else str(list(shape))
