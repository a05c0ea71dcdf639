"""Weights in memory: a cache of versions of the rows, one version for a call, shared between sessions where that can be.

The version is computed from the visible rows under the caller's rights at every call, so that it follows DML by hand, rollback,
savepoints and row-level security; nothing has to be invalidated.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import numpy as np

from ...core.config import GPT2Config
from ...core.op import is_fast
from ...errors import InconsistentData
from ...fast import layout
from ...generation import prefixes
from ...tensor import FLOAT32
from .. import db, resources
from . import mapped, reading, shared_folder, store
from .shared_file import Kind, SharedFile

LEAST_BYTES = 8 << 20  # a smaller model loads as fast from its rows
WAIT, SLOWEST = 5.0, 50e6  # seconds to wait for a builder, and bytes a second that a slow one reads and writes


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
        return reading.digest_of(params[name] for name in self.config.param_shapes())

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
        self.put(found)
        return found

    def make_room(self, name: str, wanted: int, room: int) -> None:
        """Give up an older version of `name` with its adapters, and others until `wanted` bytes fit into `room`; texts that were
        read first."""
        self.models.pop(name, None)
        for adapter in [model.name for model in self.models.values() if model.base and model.base.name == name]:
            del self.models[adapter]
        prefixes.session.fit(max(0, room - self.bytes() - wanted))
        if self.state is not None and self.bytes() + wanted > room:
            self.state = None
        while self.models and self.bytes() + wanted > room:
            self.models.popitem(last=False)

    def put(self, model: Model) -> None:
        """Keep a model, as the one used last; but a base stays younger than its adapters, and so outlives them."""
        self.models[model.name] = model
        self.models.move_to_end(model.name)
        if model.base is not None and model.base.name in self.models:
            self.models.move_to_end(model.base.name)

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


def load(model: str | None) -> Model:
    """The model at the version that this statement sees, from memory or from its rows. 42704 unknown, 55000 no weights."""
    name = store.model_name(model)
    known = store.find_config(name)
    versions, role = reading.versions_and_role(name, known)
    if versions.whole == reading.NO_ROWS and model is None and (only := store.only_model()):
        return load(only)
    wanted = known or store.config(name)
    if known is None and wanted.adapter is not None:  # made since: its rows are told apart
        versions, role = reading.versions_and_role(name, wanted)
    resources.apply_settings()
    found = cache.get(name, versions.whole)
    if found is None or found.config != wanted:
        if wanted.adapter is None:
            found = _load(reading.Rows(name), name, wanted, versions.whole)
        else:
            found = _load_adapter(name, wanted, versions)
        cache.put(found)
    mine = Identity(name, found.version, wanted, role)
    if found.decoder_weights.identity != mine:  # a stream of another role may be open, which goes on with its own
        found = replace(found, decoder_weights=found.decoder_weights.with_identity(mine))
        cache.put(found)
    if is_fast():
        return found
    return replace(found, decoder_weights=layout.DecoderWeights(found.plain(), found.decoder_weights.identity))


def load_base(adapter: str, config: GPT2Config, versions: reading.Versions) -> tuple[Model, reading.Versions]:
    """The base of an adapter, and the versions that its rows have with it: those that are given, unless they change meanwhile."""
    while True:
        base = _find_base(adapter, config, versions)
        if base.version == versions.base_version:
            return base, versions
        versions = reading.versions_of(adapter, config)


def _find_base(adapter: str, config: GPT2Config, versions: reading.Versions) -> Model:
    """The base of an adapter, as this session or the file holds it for itself. It is read through the adapter's rows, so that a
    caller needs to see nothing else of it."""
    base, wanted = versions.base, replace(config, adapter=None)
    if base is None:  # else any rows could be made to pass for those of a base that the caller does not see
        raise InconsistentData(
            f'adapter "{adapter}" finds no row of its base in llm_param',
            hint="Either they were deleted, or this role may not read them: SELECT base FROM llm_models says whose they are.",
        )
    found = cache.get(base, versions.base_version)
    if found is None or found.config.plain() != wanted.plain():
        found = _load(reading.Rows(adapter, reading.BASE), base, wanted, versions.base_version)
        cache.put(found)
    return found


def _load_adapter(name: str, wanted: GPT2Config, versions: reading.Versions) -> Model:
    """Base and own tensors of an adapter, of one snapshot."""
    while True:
        base, versions = load_base(name, wanted, versions)
        own = 4 * wanted.n_trained()
        cache.make_room(name, own + reading.reading_bytes(own), resources.memory_limit())
        version, params = reading.read_params(reading.Rows(name, reading.OWN), name, wanted.trained_shapes())
        whole = reading.together(base.version, version)
        versions = reading.versions_of(name, wanted)  # others where a change was committed between these statements
        if whole == versions.whole:
            return Model(name, wanted, whole, base.decoder_weights.with_adapter(params), base=base)


def _load(rows: reading.Rows, name: str, wanted: GPT2Config, version: str) -> Model:
    """A model that is no adapter, from the file that sessions share or in this session's own memory."""
    cache.make_room(name, _loading(wanted), resources.memory_limit())
    return _load_shared(rows, name, wanted, version) or _load_private(rows, name, wanted)


def _load_private(rows: reading.Rows, name: str, wanted: GPT2Config) -> Model:
    """The model in this session's own memory."""
    version, params = reading.read_params(rows, name, wanted.param_shapes())
    return Model(name, wanted, version, layout.lay_out(params, wanted))


def _load_shared(rows: reading.Rows, name: str, wanted: GPT2Config, version: str) -> Model | None:
    """The model from the file that sessions share, which the first to need a version writes; None where that cannot be.

    A transaction that has written may see rows that are nobody else's business yet: it writes no file.
    """
    file = file_of(name, version) if 4 * wanted.n_params() >= LEAST_BYTES else None
    if file is None:
        return None
    stored = _attached(file, wanted)
    if stored is None and not db.has_written():
        with file.lock(WAIT + 4 * wanted.n_params() / SLOWEST) as is_ours:
            stored = _attached(file, wanted) or (_build(file, rows, name, wanted, version) if is_ours else None)
        resources.release_memory()
    return Model(name, wanted, version, layout.decoder_weights(stored, wanted), shared=True) if stored else None


def _attached(file: SharedFile, wanted: GPT2Config) -> reading.Params | None:
    """The model from a file that is there, in the layout that its writer chose: all sessions of a server choose the same, but
    each would need 20 ms to find out. One that code with other layouts has written, before an update, is not taken."""
    stored = file.attach()
    is_ours = stored and {name: array.shape for name, array in stored.items()} in layout.both_shapes(wanted)
    return stored if is_ours else None


def file_of(name: str, version: str) -> SharedFile | None:
    """The file of a version that sessions share, be it there or not; None where none can be."""
    folder, life = shared_folder.directory(), shared_folder.incarnation()
    if folder is None or life is None:
        return None
    # Another NumPy, put in place under a running server, may have other products: it finds out about the layout itself.
    stem = shared_folder.stem(store.modules_path(), name)
    return SharedFile(folder, stem, f"{version} {life} {np.__version__}")


def _build(file: SharedFile, rows: reading.Rows, name: str, wanted: GPT2Config, version: str) -> reading.Params | None:
    folder = shared_folder.directory() or ""
    shared_folder.remove_abandoned(folder)
    models = db.query(
        "SELECT model FROM {schema}.llm_model_config WHERE NOT row_security_active('{schema}.llm_model_config')"
    )
    if models:  # the caller sees all there are
        shared_folder.remove_others(folder, store.modules_path(), [row["model"] for row in models])
    digest = hashlib.md5()
    kinds = {tensor: Kind(FLOAT32.str, shape) for tensor, shape in layout.stored_shapes(wanted).items()}
    return file.build(kinds, _stored(rows, name, wanted, digest), lambda: digest.hexdigest() == version)


def forget_file(name: str) -> None:
    """Remove the file of a model that is dropped; whoever still sees the model, as when that is rolled back, makes it again."""
    if folder := shared_folder.directory():
        shared_folder.remove(folder, shared_folder.stem(store.modules_path(), name))


def forget_files() -> None:
    """Remove the files of all models and vocabularies of this database."""
    if folder := shared_folder.directory():
        shared_folder.remove(folder, shared_folder.family(store.modules_path()))


def sessions() -> Iterator[tuple[str, int]]:
    """(model, pid) of sessions of this database that map the weights of a model which the caller may see."""
    models = db.query("SELECT model FROM {schema}.llm_model_config") if db.may_read("llm_model_config") else []
    pids = db.query(
        "SELECT pid FROM pg_stat_activity AS a JOIN pg_database AS d ON d.oid = a.datid"
        " WHERE d.datname = current_database() ORDER BY pid"
    )
    relation = store.modules_path()
    return mapped.sessions([r["pid"] for r in pids], relation, store.known([r["model"] for r in models]))


def _loading(wanted: GPT2Config) -> int:
    """Bytes that making a model's arrays takes, themselves included."""
    size = 4 * wanted.n_params()
    return size + reading.largest(wanted.param_shapes()) + reading.reading_bytes(size)


def _stored(rows: reading.Rows, name: str, wanted: GPT2Config, digest: Any) -> Iterator[tuple[str, np.ndarray]]:
    """The tensors of a model in the layout of the file, one at a time."""
    shapes = wanted.param_shapes()
    needed = 2 * reading.largest(shapes) + reading.reading_bytes(4 * wanted.n_params())
    resources.require_memory(needed, f'reading model "{name}"')
    params: reading.Params = {}
    stored = layout.KeptTensors(params, wanted)
    for tensor, array in reading.tensors(rows, name, shapes, digest):
        params[tensor] = array
        del array
        yield tensor, stored[tensor]
        params.clear()
