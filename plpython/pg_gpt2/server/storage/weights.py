"""Weights in memory: a cache of versions of the rows, one version for a call, shared between sessions where that can be.

The version is computed from the visible rows under the caller's rights at every call, so that it follows DML by hand, rollback,
savepoints and row-level security; nothing has to be invalidated.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from typing import Any, NamedTuple, Protocol

import numpy as np

from ... import host
from ...core.config import GPT2Config
from ...core.op import is_fast
from ...errors import InconsistentData
from ...fast import layout, slices
from ...generation import prefixes
from ...tensor import FLOAT32, PART
from .. import db, resources
from . import store, weight_file

# One text a row that changes whenever the row does. cmin is there for a table that is truncated and filled again in one
# transaction: then ctid and xmin alone repeat.
ROW_VERSION = "concat_ws(' ', p.name, p.token_id, p.ctid, p.xmin, p.cmin)"
NO_ROWS = hashlib.md5(b"").hexdigest()  # version of a model without weights
WHOLE, BASE, OWN = "true", f"p.name NOT {store.IS_OWN}", f"p.name {store.IS_OWN}"  # which rows of a model
READING = 3  # times a row is in memory while it is read: in the server, as bytes, and the one before
WAIT, SLOWEST = 5.0, 50e6  # seconds to wait for a builder, and bytes a second that a slow one reads and writes

Params = dict[str, np.ndarray]


@dataclass(frozen=True)
class Model:
    """A model at one version; its arrays are read-only. An adapter has those of its base, as that is held, and its own."""

    name: str
    config: GPT2Config
    version: str
    decoder_weights: layout.DecoderWeights  # as a Decoder wants them
    shared: bool = False  # mapped from the file that all sessions use
    base: "Model | None" = None  # of an adapter

    @cached_property
    def nbytes(self) -> int:
        """Bytes of its weights, without those of a base."""
        return sum(self.decoder_weights[name].nbytes for name in self.config.trained_shapes())

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all weights, tensors in the order of the configuration."""
        params = self.params
        return digest_of(params[name] for name in self.config.param_shapes())

    @property
    def params(self) -> layout.CheckpointTensors:
        """Name -> array as the checkpoint has it; one from panels is copied when it is asked for."""
        return layout.CheckpointTensors(self.decoder_weights)

    def plain(self) -> dict[str, np.ndarray]:
        """All of `params` at once. 53200 when there is no room for the copies."""
        copied = sum(array.nbytes for array in self.decoder_weights.values() if not isinstance(array, np.ndarray))
        if copied:
            resources.require_memory(copied, f'model "{self.name}" outside its panels')
        return dict(self.params)


class Identity(NamedTuple):
    """Which weights a model has, and for whom: what was computed with them holds as long as this, and is the role's own."""

    name: str
    version: str
    config: GPT2Config
    role: str


class Versions(NamedTuple):
    """Of the visible rows of a model, of those of its base among them, and that base; a model that is no adapter has none."""

    whole: str
    base_version: str = NO_ROWS
    base: str | None = None


class Kept(Protocol):
    """What a training step left behind: weights and moments of a model at one version of its rows."""

    model: str
    version: str

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""


class _Cache:
    """Models of this session by (name, version), least recently used first; and the state of one that it trains by hand."""

    def __init__(self) -> None:
        self.models: OrderedDict[str, Model] = OrderedDict()
        self.state: Kept | None = None

    def take_state(self, name: str, version: str) -> Any:
        """The state of a model at this version, or None; its taker changes it, so that nothing is kept on."""
        found, self.state = self.state, None
        return found if found is not None and (found.model, found.version) == (name, version) else None

    def get(self, name: str, version: str) -> Model | None:
        found = self.models.get(name)
        if found is None or found.version != version:
            return None
        for used in (name, found.base and found.base.name):  # a base is younger than its adapters, and so outlives them
            if used in self.models:
                self.models.move_to_end(used)
        return found

    def make_room(self, name: str, wanted: int, room: int) -> None:
        """Give up an older version of `name`, and others until `wanted` bytes fit into `room`; texts that were read first."""
        self.models.pop(name, None)
        for adapter in [model.name for model in self.models.values() if model.base and model.base.name == name]:
            del self.models[adapter]
        prefixes.session.fit(max(0, room - self.bytes() - wanted))
        if self.state is not None and self.bytes() + wanted > room:
            self.state = None
        while self.models and self.bytes() + wanted > room:
            self.models.popitem(last=False)

    def put(self, model: Model) -> None:
        self.models[model.name] = model

    def bytes(self) -> int:
        """Bytes that only this session holds."""
        state = 0 if self.state is None else self.state.nbytes
        return state + sum(model.nbytes for model in self.models.values() if not model.shared)

    def clear(self) -> None:
        """Give up everything."""
        self.models.clear()
        self.state = None
        prefixes.session.clear()

    def spare(self) -> None:
        """Give up what is only there to save time."""
        self.state = None
        prefixes.session.clear()


cache = _Cache()
resources.spared.append(cache.spare)


def prefix_room() -> int:
    """Bytes that texts which were read may take beside the weights."""
    return resources.prefix_room(cache.bytes())


def version_of(model: str) -> str:
    """Digest of the versions of the visible rows of `model`; that of no rows when it has no weights."""
    return versions_of(model, store.find_config(model)).whole


def versions_of(model: str, config: GPT2Config | None) -> Versions:
    """The versions of the visible rows of `model`, whose configuration is known."""
    return _versions_and_role(model, config)[0]


def _versions_and_role(model: str, config: GPT2Config | None) -> tuple[Versions, str]:
    digest = f"md5(string_agg({ROW_VERSION}, E'\\n' ORDER BY p.name, p.token_id)"
    rows = f"FROM {store.resolved()} AS p"
    if config is None or config.adapter is None:
        row = db.row(f"SELECT {digest}) AS version, current_user AS role {rows}", ["text"], model)
        return Versions((row or {})["version"] or NO_ROWS), (row or {})["role"]
    row = db.row(
        f"SELECT {digest} FILTER (WHERE {BASE})) AS theirs, {digest} FILTER (WHERE {OWN})) AS own, current_user AS role,"
        f" (SELECT base FROM {{schema}}.llm_adapter WHERE model = $1) AS base {rows}",
        ["text"],
        model,
    )
    theirs, own, role, base = (row or {}).values()
    return Versions(_together(theirs or NO_ROWS, own or NO_ROWS), theirs or NO_ROWS, base), role


def _together(base: str, own: str) -> str:
    """The version of an adapter: that of no rows where neither has any."""
    return NO_ROWS if base == own == NO_ROWS else hashlib.md5(f"{base} {own}".encode()).hexdigest()


def load(model: str | None) -> Model:
    """The model at the version that this statement sees, from memory or from its rows. 42704 unknown, 55000 no weights."""
    name = store.model_name(model)
    known = store.find_config(name)
    versions, role = _versions_and_role(name, known)
    if versions.whole == NO_ROWS and model is None and (only := store.only_model()):
        return load(only)
    wanted = known or store.config(name)
    resources.apply_settings()
    found = cache.get(name, versions.whole)
    if found is None or found.config != wanted:
        found = _load_adapter(name, wanted, versions) if wanted.adapter else _load(Rows(name), name, wanted, versions.whole)
        cache.put(found)
    mine = Identity(name, found.version, wanted, role)
    if found.decoder_weights.identity != mine:  # a stream of another role may be open, which goes on with its own
        found = replace(found, decoder_weights=found.decoder_weights.with_identity(mine))
        cache.put(found)
    if is_fast():
        return found
    return replace(found, decoder_weights=layout.DecoderWeights(found.plain(), found.decoder_weights.identity))


class Rows(NamedTuple):
    """Where the rows of a model are read: those of `model`, or a part of them; a base, as one of its adapters sees it."""

    model: str
    part: str = WHOLE


def load_base(adapter: str, config: GPT2Config, versions: Versions) -> Model:
    """The base of an adapter, as this session or the file holds it for itself. It is read through the adapter's rows, so that a
    caller needs to see nothing else of it."""
    base, wanted = str(versions.base), replace(config, adapter=None)
    found = cache.get(base, versions.base_version)
    if found is None or replace(found.config, eos_token_id=wanted.eos_token_id) != wanted:
        found = _load(Rows(adapter, BASE), base, wanted, versions.base_version)
        cache.put(found)
    return found


def _load_adapter(name: str, wanted: GPT2Config, versions: Versions) -> Model:
    """Base and own tensors of an adapter, of one snapshot."""
    while True:
        base = load_base(name, wanted, versions)
        own = 4 * wanted.n_trained()
        cache.make_room(name, own + _reading(own), resources.memory_limit())
        version, params = _read_params(Rows(name, OWN), name, wanted.trained_shapes())
        whole = _together(base.version, version)
        versions = versions_of(name, wanted)  # others where a change was committed between the statements that read
        if whole == versions.whole:
            return Model(name, wanted, whole, base.decoder_weights.with_adapter(params), base=base)


def _load(rows: Rows, name: str, wanted: GPT2Config, version: str) -> Model:
    """A model that is no adapter, from the file that sessions share or in this session's own memory."""
    cache.make_room(name, _loading(wanted), resources.memory_limit())
    return _load_shared(rows, name, wanted, version) or _load_private(rows, name, wanted)


def _load_private(rows: Rows, name: str, wanted: GPT2Config) -> Model:
    """The model in this session's own memory."""
    version, params = _read_params(rows, name, wanted.param_shapes())
    return Model(name, wanted, version, layout.lay_out(params, wanted))


def _load_shared(rows: Rows, name: str, wanted: GPT2Config, version: str) -> Model | None:
    """The model from the file that sessions share, which the first to need a version writes; None where that cannot be.

    A transaction that has written may see rows that are nobody else's business yet.
    """
    file = None if 4 * wanted.n_params() < weight_file.LEAST_BYTES or _has_written() else file_of(name, wanted, version)
    if file is None:
        return None
    stored = file.attach()
    if stored is None:
        with file.lock(WAIT + 4 * wanted.n_params() / SLOWEST) as is_ours:
            stored = file.attach() or (_build(file, rows, name, wanted, version) if is_ours else None)
        resources.release_memory()
    return Model(name, wanted, version, layout.decoder_weights(stored, wanted), shared=True) if stored else None


def _has_written() -> bool:
    return db.row("SELECT 1 WHERE pg_current_xact_id_if_assigned() IS NOT NULL") is not None


def file_of(name: str, wanted: GPT2Config, version: str) -> weight_file.WeightFile | None:
    """The file of a version that sessions share, be it there or not; None where none can be."""
    folder, life = weight_file.directory(), weight_file.incarnation()
    if folder is None or life is None:
        return None
    shapes = layout.stored_shapes(wanted)
    return weight_file.WeightFile(folder, _relation(), name, f"{version} {life}", shapes)


def _build(
    file: weight_file.WeightFile, rows: Rows, name: str, wanted: GPT2Config, version: str
) -> Params | None:
    folder = weight_file.directory() or ""
    weight_file.remove_abandoned(folder)
    models = db.query(
        "SELECT model FROM {schema}.llm_model_config WHERE NOT row_security_active('{schema}.llm_model_config')"
    )
    if models:  # the caller sees all there are
        weight_file.remove_others(folder, _relation(), [row["model"] for row in models])
    digest = hashlib.md5()
    return file.build(_stored(rows, name, wanted, digest), lambda: digest.hexdigest() == version)


def forget_file(name: str) -> None:
    """Remove the file of a model that is dropped; whoever still sees the model, as when that is rolled back, makes it again."""
    if folder := weight_file.directory():
        weight_file.remove(folder, weight_file.stem(_relation(), name))


def forget_files() -> None:
    """Remove the files of all models of this database."""
    if folder := weight_file.directory():
        weight_file.remove(folder, weight_file.family(_relation()))


def _relation() -> str:
    """Path of the table of modules: there until the extension or the database is dropped, which any other database can see.
    Where it moves, as by VACUUM FULL, files are made anew."""
    return (db.row("SELECT pg_relation_filepath('{schema}.llm_module'::regclass) AS path") or {})["path"]


def _largest(shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Bytes of the largest tensor."""
    return max(4 * prod(shape) for shape in shapes.values())


def _loading(wanted: GPT2Config) -> int:
    """Bytes that making a model's arrays takes, themselves included."""
    size = 4 * wanted.n_params()
    return size + _largest(wanted.param_shapes()) + _reading(size)


def _reading(size: int) -> int:
    """Bytes that reading rows of `size` takes, besides the arrays that are made of them."""
    return READING * min(size, store.BLOCK_BYTES)


def _stored(rows: Rows, name: str, wanted: GPT2Config, digest: Any) -> Iterator[tuple[str, np.ndarray]]:
    """The tensors of a model in the layout of the file, one at a time."""
    shapes = wanted.param_shapes()
    resources.require_memory(2 * _largest(shapes) + _reading(4 * wanted.n_params()), f'reading model "{name}"')
    params: Params = {}
    stored = layout.KeptTensors(params, wanted)
    for tensor, array in _tensors(rows, name, shapes, digest):
        params[tensor] = array
        del array
        yield tensor, stored[tensor]
        params.clear()


def _read_params(rows: Rows, name: str, shapes: Mapping[str, tuple[int, ...]]) -> tuple[str, Params]:
    """Version and tensors."""
    size = sum(4 * prod(shape) for shape in shapes.values())
    resources.require_memory(size + _largest(shapes) + _reading(size), f'model "{name}"')
    digest = hashlib.md5()
    params = dict(_tensors(rows, name, shapes, digest))
    return digest.hexdigest(), {name: params[name] for name in shapes}


def _tensors(
    rows: Rows, name: str, shapes: Mapping[str, tuple[int, ...]], digest: Any
) -> Iterator[tuple[str, np.ndarray]]:
    """Each tensor when its last row is read, through one cursor, hence of one snapshot. `digest`, an MD5, gets the version."""
    found = db.cursor(
        f"SELECT p.name, p.token_id, p.shape, p.data, {ROW_VERSION} AS version"
        f" FROM {store.resolved()} AS p WHERE {rows.part} ORDER BY p.name, p.token_id",
        ["text"],
        rows.model,
    )
    assembly = Assembly(name, shapes)
    for count, row in enumerate(found):
        digest.update((("\n" if count else "") + row["version"]).encode())
        if assembly.add(row["name"], row["token_id"], row["shape"], row["data"]):
            yield row["name"], assembly.params.pop(row["name"])
        host.check_interrupts()
    assembly.check()


def digest_of(tensors: Iterable[np.ndarray]) -> str:
    """SHA-256 of tensors, one after the other."""
    found = hashlib.sha256()
    for array in tensors:
        values = np.ascontiguousarray(array, FLOAT32).reshape(-1)
        for part in slices.pieces(values.size, PART):
            found.update(values[part].data)
            host.check_interrupts()
    return found.hexdigest()


class Assembly:
    """Puts blocks of rows together; what is missing, too much or misshapen is an error that names the tensor."""

    def __init__(self, model: str, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.model = model
        self.shapes = shapes
        self.params: Params = {}
        self._rows: dict[str, int] = {}

    def add(self, name: str, first: int, shape: list[int], data: bytes) -> bool:
        """Take one block, blocks of a tensor in ascending order; whether it was the last of its tensor."""
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
        return self._rows[name] == wanted[0]

    def finish(self) -> Params:
        """All tensors, in the order of the configuration; for when none was taken out of `params`."""
        self.check()
        return {name: self.params[name] for name in self.shapes}

    def check(self) -> None:
        """Refuse a model of which a tensor is missing or not complete, or which has no weights at all (55000)."""
        if not self._rows:
            raise store.no_weights(self.model)
        for name, shape in self.shapes.items():
            rows = self._rows.get(name, 0)
            if rows < shape[0]:
                raise self._refusal(f'tensor "{name}" has rows 0 to {rows} of {shape[0]}', "Import the model again.")

    def _refusal(self, problem: str, hint: str) -> InconsistentData:
        return InconsistentData(f'model "{self.model}": {problem}', hint=hint)
