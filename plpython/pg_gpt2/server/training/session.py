"""A model in training: its state read from rows once, changed in memory by Trainer, and written back.

What a run does with it, and what is recorded of that, is in `runs`.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ... import host
from ...core.config import GPT2Config
from ...errors import Diverged, FeatureNotSupported, InconsistentData
from ...tensor import FLOAT32, to_bytes
from ...training.options import Hyperparameters
from ...training.shards import Shard, Sharded, cut, numbered
from ...training.trainer import Batch, StepMemory, Trainer, evaluate, nothing_counts
from .. import db, resources
from ..storage import reading, store, weights
from ..storage.checksum import Checksum
from . import datasets, environment

KEPT_SHARE = 0.25  # of the memory that is available: what a session may keep of a model that it trained by hand

# Blocks of a statement, each in parameters of its own: joined into one value they would be copied twice more.
SLOTS = 8
# Of a row: model, name, token_id, step; data, m, v, grad.
Block = tuple[str, str, int, int, bytes, bytes, bytes, bytes | None]
UPDATE_TYPES = ["text[]", "text[]", "int4[]", "int8[]", *["bytea"] * (4 * SLOTS)]


def _slot(column: int) -> str:
    """SQL for the value of data, m, v or grad (0 to 3) of the block at `place`."""
    cases = " ".join(f"WHEN {i + 1} THEN ${5 + column * SLOTS + i}" for i in range(SLOTS))
    return f"CASE new.place {cases} END"


UPDATE = (
    f"UPDATE {{schema}}.llm_param AS p SET data = {_slot(0)}, m = {_slot(1)}, v = {_slot(2)}, grad = {_slot(3)}, step = new.step"
    " FROM unnest($1, $2, $3, $4) WITH ORDINALITY AS new (model, name, token_id, step, place)"
    " WHERE p.model = new.model AND p.name = new.name AND p.token_id = new.token_id"
)


@dataclass(frozen=True)
class Settings(Hyperparameters):
    """Hyperparameters of a run. `grad_clip` None = no clipping."""

    def arguments(self) -> dict[str, float | int | None]:
        """What Trainer.step takes beside batches, learning rate and number of the step."""
        values = asdict(self)
        return {name: value for name, value in values.items() if name not in ("lr_max", "warmup", "min_lr")}


class Learner:
    """A model in memory that learns from rows of llm_dataset."""

    def __init__(self, model: str, config: GPT2Config, trainer: Trainer) -> None:
        self.model = model
        self.config = config
        self.trainer = trainer
        self._memory = StepMemory(config)
        self._sharded: Sharded | None = None
        self.workers: dict[str, Any] = {}  # other servers that compute shards, and what they compute with

    @property
    def step(self) -> int:
        """AdamW updates that the model has had."""
        return max(self.trainer.steps.values())

    @property
    def sharded(self) -> Sharded:
        """What adds up the gradients of shards."""
        if self._sharded is None:
            resources.require_memory(4 * self.config.n_trained(), "the sum of the gradients of shards")
            self._sharded = Sharded(self.trainer)
        return self._sharded

    @sharded.setter
    def sharded(self, other: Sharded) -> None:
        self._sharded = other

    def environment(self) -> dict[str, Any]:
        """What steps are computed with, here and on other servers."""
        return environment.current() | ({"workers": self.workers} if self.workers else {})

    def shards(
        self, ids: Sequence[int], shards: int, batch_size: int, dropout_p: float
    ) -> tuple[list[Shard], list[int]]:
        """The rows `ids`, cut into shards, and these into micro-batches of at most `batch_size`; and the digest of each row.

        53200 when a step on them, with dropout of `dropout_p`, needs more memory than there is.
        """
        rows = datasets.rows(ids, self.model, self.config)
        datasets.require_loss(ids, rows)
        parts = [self._micro_batches(rows[part], batch_size, dropout_p) for part in cut(len(rows), shards)]
        return numbered(parts), [row.digest for row in rows]

    def shard(self, ids: Sequence[int], part: slice, batch_size: int, dropout_p: float) -> tuple[Shard, list[int]]:
        """The same for one of them, the rows `part`: its micro-batches are numbered from that of its first row on."""
        rows = datasets.rows(ids[part], self.model, self.config)
        batches = self._micro_batches(rows, batch_size, dropout_p)
        return Shard(tuple(batches), part.start), [row.digest for row in rows]

    def _micro_batches(self, rows: Sequence[datasets.Row], batch_size: int, dropout_p: float) -> list[Batch]:
        found: list[Batch] = []
        for start in range(0, len(rows), batch_size):
            found += datasets.batches(rows[start : start + batch_size])
            host.check_interrupts()
        self._memory.require(found, dropout_p)
        return found

    def digest(self) -> str:
        """SHA-256 of all weights that are trained, tensors in the order of the configuration."""
        return reading.digest_of(self.trainer.params[name] for name in self.config.trained_shapes())


Place = tuple[str, str, int]  # model, name and token_id of a row of llm_param


@dataclass
class LearnerState:
    """Weights and optimizer state of a model at one version, and which rows of llm_param they are; of an adapter its own, beside
    the base as others have it."""

    model: str
    config: GPT2Config
    version: str
    base: weights.Model | None  # of an adapter
    params: reading.Params
    m: reading.Params
    v: reading.Params
    steps: dict[str, int]
    tied: dict[str, str]
    blocks: list[tuple[str, int, int]]  # name, first row, number of rows
    rows: dict[tuple[str, int], Place]  # a shared block is another model's
    sums: dict[Place, bytes]  # checksum of each row as it was read, or written last
    has_grad: bool  # whether any of these has something in grad

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return 12 * self.config.n_trained()


def read_state(model: str, config: GPT2Config, version: str, base: weights.Model | None) -> LearnerState:
    """The state of `model` from its rows."""
    shapes = config.trained_shapes()
    assembly = reading.Assembly(model, shapes)
    m: reading.Params = {}
    v: reading.Params = {}
    steps: dict[str, int] = {}
    blocks: list[tuple[str, int, int]] = []
    places: dict[tuple[str, int], Place] = {}
    sums: dict[Place, bytes] = {}
    has_grad = False
    for place, row in _rows(model, config):
        name, first, rows = row["name"], row["token_id"], row["shape"][0]
        assembly.add(name, first, row["shape"], row["data"])
        for moments, data in ((m, row["m"]), (v, row["v"])):
            if name not in moments:
                moments[name] = np.zeros(shapes[name], FLOAT32)
            if data:
                if len(data) != len(row["data"]):
                    raise InconsistentData(
                        f'm or v of tensor "{name}", block {first}, of model "{model}" has {len(data)} bytes,'
                        f" not {len(row['data'])}",
                        hint="Set m and v to null to start the optimizer anew.",
                    )
                moments[name][first : first + rows] = np.frombuffer(data, FLOAT32).reshape(row["shape"])
        steps[name] = max(row["step"], steps.get(name, 0))
        blocks.append((name, first, rows))
        places[name, first] = place
        sums[place] = _checksum_of(row)
        has_grad |= row["grad"] is not None
    tied, blocks = _tied(model, blocks, places)
    return LearnerState(
        model, config, version, base, assembly.finish(), m, v, steps, tied, blocks, places, sums, has_grad
    )


def _rows(model: str, config: GPT2Config) -> Iterator[tuple[Place, db.Row]]:
    """Each block of `model` that is trained, with the row that it is in."""
    for row in db.cursor(
        "SELECT name, token_id, shape, data, m, v, step, sha256(grad) AS grad, source_model, source_name, source_token_id"
        f" FROM {store.trained(config)} AS p ORDER BY name, token_id",
        ["text"],
        model,
    ):
        yield (row["source_model"], row["source_name"], row["source_token_id"]), row
        host.check_interrupts()


def _checksum_of(row: db.Row) -> bytes:
    return _checksum(row["step"], row["grad"], row["data"], row["m"], row["v"])


def _checksum(step: int, grad: bytes | None, *tensors: bytes | None) -> bytes:
    """Checksum of the contents of a row, wherever it lies; `grad` is the SHA-256 of that. It includes sizes, so that data, m and
    v are told apart."""
    found = Checksum()
    found.update(repr((step, grad, [tensor and len(tensor) for tensor in tensors])).encode())
    for tensor in tensors:
        found.update(tensor or b"")
    return found.digest()


def _tied(model: str, blocks: list, places: dict) -> tuple[dict[str, str], list]:
    """Tensors that share the rows of one before them -> that one; and the blocks that are then written."""
    first: dict[tuple, str] = {}
    tied: dict[str, str] = {}
    for name in dict.fromkeys(name for name, _, _ in blocks):
        rows = tuple((start, places[name, start]) for block, start, _ in blocks if block == name)
        if first.setdefault(rows, name) != name:
            tied[name] = first[rows]
    blocks = [block for block in blocks if block[0] not in tied]
    written = [places[name, start] for name, start, _ in blocks]
    if len(set(written)) < len(written) or any(
        name.rsplit(".", 1)[0] == one.rsplit(".", 1)[0] for name, one in tied.items()
    ):
        raise FeatureNotSupported(
            f'model "{model}" shares a block twice in a way that cannot be trained',
            hint="Tensors that share with one another must share all their blocks, and not be weight and bias of one layer;"
            " llm_unshare_param gives the model copies of its own.",
        )
    return tied, blocks


def with_base(base: weights.Model | None, own: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a Trainer works with: an adapter's own tensors, and those of its base as the base itself has them."""
    return own if base is None else {**base.decoder_weights, **own}


class Session(Learner):
    """A model in memory, from its rows and back to them. The caller holds the model's lock."""

    def __init__(self, model: str, n_threads: int) -> None:
        config = store.config(model)
        resources.apply_settings(n_threads)
        versions, base = reading.versions_of(model, config), None
        state = weights.cache.take_state(model, versions.whole)
        held = 0 if state is None else state.nbytes
        whole, row = 12 * config.n_trained(), 3 * store.BLOCK_BYTES  # weights and moments; a row has a block of each
        writing = 2 * min(whole, store.FLUSH_BYTES + row) + 2 * min(whole, row)
        resources.require_memory(16 * config.n_trained() + writing - held, f'training "{model}"')
        if state is None or state.config != config:
            if config.adapter is not None:
                base, versions = weights.load_base(model, config, versions)
            state = read_state(model, config, versions.whole, base)
        self._state = state
        self._written = dict(state.steps)
        self.outer: Mapping[str, np.ndarray] = {}  # what is to stand in grad: the outer momentum of a run that goes on
        arrays = (with_base(state.base, state.params), state.m, state.v, state.steps)
        super().__init__(model, config, Trainer(config, *arrays, tied=state.tied, chunk=resources.attention_chunk()))

    @property
    def version(self) -> str:
        """Version of the rows that were read, or last written."""
        return self._state.version

    @property
    def base(self) -> weights.Model | None:
        """What is adapted, where the model is an adapter."""
        return self._state.base

    @property
    def content(self) -> str:
        """Digest of what those rows hold, which stays the same where they are moved or restored."""
        held: list = sorted(self._state.sums.items())
        if self.base is not None:
            held.append(self.base.digest)
        return hashlib.md5(repr(held).encode()).hexdigest()

    def keep(self) -> None:
        """Leave the state to the next training of the model in this session, which finds it while the rows are of its version.

        Only what has been written may be left, and as much as the system can easily spare.
        """
        available = resources.available_memory()
        if available is None or self._state.nbytes <= available * KEPT_SHARE:
            self._state.steps = self.trainer.steps
            weights.cache.state = self._state

    def write(self) -> None:
        """Weights, moments and steps of what has changed, into the rows they came from, which nobody else may have changed."""
        state, trainer = self._state, self.trainer
        all_blocks, state.has_grad = state.has_grad and not self.outer, bool(self.outer)
        self._lock_rows()
        versions = reading.versions_of(self.model, self.config)  # by a snapshot after the rows are ours
        if versions.whole != state.version:
            self._require_same_base(versions)
            if not self._only_moved():
                raise self.changed()
        batch: list[Block] = []
        held = 0
        for name, first, rows in state.blocks:
            if trainer.steps[name] == self._written[name] and not all_blocks:
                continue
            part = slice(first, first + rows)
            if not np.isfinite(trainer.params[name][part]).all():  # the last update; the loss of the next would tell
                raise Diverged(
                    f'training diverged: tensor "{name}" is not finite after step {self.step}',
                    hint="Use a smaller lr_max, a longer warmup or a smaller grad_clip.",
                )
            data, m, v = (to_bytes(array[name][part]) for array in (trainer.params, trainer.m, trainer.v))
            grad = to_bytes(self.outer[name][part]) if self.outer else None
            place = state.rows[name, first]
            batch.append((*place, trainer.steps[name], data, m, v, grad))
            state.sums[place] = _checksum(trainer.steps[name], grad and hashlib.sha256(grad).digest(), data, m, v)
            held += (4 if grad else 3) * len(data)
            if held >= store.FLUSH_BYTES or len(batch) == SLOTS:
                self._update(batch)
                batch, held = [], 0
            host.check_interrupts()
        if batch:
            self._update(batch)
        self._written = dict(trainer.steps)
        versions = reading.versions_of(self.model, self.config)
        # A base that has changed since we looked is found at the next look.
        state.version = reading.together(state.base.version, versions.own) if state.base else versions.whole

    def _require_same_base(self, versions: reading.Versions) -> None:
        """Refuse (22000) to write what was learned beside another base; one whose rows were only moved is the same."""
        state = self._state
        if state.base is None or versions.base_version == state.base.version:
            return
        now, _ = weights.load_base(self.model, self.config, versions)
        if now.digest != state.base.digest:
            raise InconsistentData(
                f'"{now.name}", the base of adapter "{self.model}", was changed by somebody else during training',
                hint="Nothing was written. Train the adapter again, on the base as it is now.",
            )
        state.base = now

    def _lock_rows(self) -> None:
        sources = sorted({source for source, _, _ in self._state.rows.values()})
        db.run("SELECT 1 FROM {schema}.llm_param WHERE model = ANY ($1) FOR UPDATE", ["text[]"], sources)

    def _only_moved(self) -> bool:
        """Whether rows of another version hold what these did: after VACUUM FULL, CLUSTER, or what deletes and inserts them."""
        self._lock_rows()  # those that were inserted while the others were waited for
        return {place: _checksum_of(row) for place, row in _rows(self.model, self.config)} == self._state.sums

    def _update(self, batch: list[Block]) -> None:
        models, names, firsts, steps, *tensors = map(list, zip(*batch))
        empty = [None] * (SLOTS - len(batch))
        values = [value for column in tensors for value in [*column, *empty]]
        with db.planned_once(sum(len(row[4]) * (4 if row[-1] else 3) for row in batch)):
            updated = db.run(UPDATE, UPDATE_TYPES, models, names, firsts, steps, *values)
        if updated != len(batch):
            raise self.changed()

    def changed(self) -> InconsistentData:
        """The error for rows that are not as this session read or left them."""
        return InconsistentData(
            f'the weights of model "{self.model}" were changed by somebody else during training',
            hint="Nothing was written. Do not change llm_param while a model is trained; then train again.",
        )


def mean_loss(
    params: Mapping[str, np.ndarray],
    config: GPT2Config,
    model: str,
    ids: np.ndarray,
    batch_size: int,
    chunk: int | None = None,
) -> tuple[float, int]:
    """Weighted mean cross entropy and number of the tokens that count of rows of llm_dataset, without dropout."""
    chunk = resources.attention_chunk() if chunk is None else chunk
    total, count = 0.0, 0
    weights: float = 0
    for start in range(0, len(ids), batch_size):
        for batch in datasets.batches(datasets.rows(ids[start : start + batch_size].tolist(), model, config)):
            loss, weight = evaluate(params, config, batch, chunk=chunk)
            total, weights, count = total + loss, weights + weight, count + batch.counted()
    if not count:
        raise nothing_counts()
    return total / weights, count
