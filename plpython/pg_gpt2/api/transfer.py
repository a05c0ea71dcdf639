"""Import and export of weights: files of the server, or bytes."""

import io
from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import BinaryIO

import numpy as np

from .. import db, host
from ..config import GPT2Config
from ..db import entry
from ..errors import InconsistentData, UndefinedObject, require
from ..formats import Checkpoint, hub_metadata, hub_name, open_npz, open_safetensors, write_npz, write_safetensors
from ..storage import server_files, sharing, store
from ..tensor import FLOAT32


@entry
def import_safetensors_file(path: str, model: str, replace: bool | None) -> int:
    """A safetensors file of the server -> rows."""
    store.require_name(model)
    return _import(open_safetensors(server_files.open_to_read(path)), model, replace)


@entry
def import_npz_file(path: str, model: str, replace: bool | None) -> int:
    """A .npz file of the server -> rows."""
    store.require_name(model)
    file = server_files.open_to_read(path)
    store.lock(model)  # so that the configuration is still there when the tensors are
    return _import(open_npz(file, store.find_config(model)), model, replace)


@entry
def import_safetensors(data: bytes, model: str, replace: bool | None) -> int:
    """Bytes of a safetensors file -> rows."""
    require(data=data)
    store.require_name(model)
    return _import(open_safetensors(io.BytesIO(data)), model, replace)


def _import(opened: Checkpoint, model: str, replace: bool | None) -> int:
    """Check and store a checkpoint's tensors; their number."""
    with opened as checkpoint:
        store.lock(model)
        known = store.find_config(model)
        config = known or checkpoint.config()
        if config is None:
            raise UndefinedObject(
                f'model "{model}" has no configuration, and the file does not say how many heads it has',
                hint="INSERT INTO llm_model_config (model, n_layer, n_head, d_model, n_positions, vocab) VALUES (...) first,"
                " or use pg-gpt2 load-model, which reads config.json.",
            )
        if replace:
            db.run("DELETE FROM {schema}.llm_param WHERE model = $1", ["text"], model)
            sharing.forget(model)
        else:
            store.require_no_weights(model)
        if known is None:
            store.register(model, config)
        store.insert_params(model, checkpoint.tensors(config))
        return len(config.param_shapes())


@entry
def export_safetensors_file(path: str, model: str) -> int:
    """Rows -> a safetensors file of the server; its size."""
    real = server_files.to_write(path)
    config = store.config(model)

    def fill(file: BinaryIO) -> None:
        for chunk in _safetensors(config, model):
            file.write(chunk)
            host.check_interrupts()

    return server_files.write(real, fill)


@entry
def export_npz_file(path: str, model: str) -> int:
    """Rows -> a .npz file of the server; its size."""
    real = server_files.to_write(path)
    config = store.config(model)
    stored = _Stored(model, config)
    return server_files.write(real, lambda file: write_npz(file, stored.shapes, stored.blocks, hub_metadata(config)))


@entry
def export_safetensors(model: str) -> Iterator[bytes]:
    """Chunks of a safetensors file."""
    return _safetensors(store.config(model), model)


def _safetensors(config: GPT2Config, model: str) -> Iterator[bytes]:
    stored = _Stored(model, config)
    ours = {hub_name(name): name for name in stored.shapes}
    shapes = {theirs: stored.shapes[name] for theirs, name in ours.items()}
    return write_safetensors(shapes, lambda name: stored.blocks(ours[name]), hub_metadata(config))


class _Stored:
    """The stored tensors of a model, read once in the order of their names, through one cursor and hence of one snapshot."""

    def __init__(self, model: str, config: GPT2Config) -> None:
        self.shapes = dict(sorted(config.param_shapes().items()))
        self._model = model
        self._check()
        rows = db.cursor(
            f'SELECT name, shape, data FROM {store.resolved()} AS p ORDER BY name COLLATE "C", token_id',
            ["text"],
            model,
        )
        self._tensors = groupby(rows, lambda row: row["name"])

    def _check(self) -> None:
        """55000 or 22000 before the first chunk: of an error between the rows of a set, PL/Python hides the message."""
        found: dict[str, tuple[int, ...]] = {
            row["name"]: (row["rows"], row["columns"]) if row["columns"] else (row["rows"],)
            for row in db.query(
                "SELECT name, sum(shape[1]) AS rows, max(shape[2]) AS columns"
                f" FROM {store.resolved()} AS p GROUP BY name",
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
