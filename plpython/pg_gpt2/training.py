"""A model in training: its state read from rows once, changed in memory by Trainer, and written back.

What a run does with it, and what is recorded of that, is in `runs`.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from . import datasets, db, host, resources, store, weights
from .config import GPT2Config
from .errors import FeatureNotSupported, InconsistentData, InvalidParameter, NullNotAllowed
from .ops.dropout import check_p
from .optim import check_adamw
from .tensor import FLOAT32, to_bytes
from .trainer import Diverged, Trainer, estimate_step_bytes, evaluate


@dataclass(frozen=True)
class Settings:
    """The optimizer's side of a run. `grad_clip` None = no clipping."""

    dropout_p: float
    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    lr_max: float
    warmup: int
    min_lr: float
    grad_clip: float | None
    seed: int

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value is None and name != "grad_clip":
                raise NullNotAllowed(f"{name} must not be null", hint="Leave it out to get its default.")
        for name in ("lr_max", "warmup", "min_lr"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise InvalidParameter(
                    f"{name} must be 0 or more, not {getattr(self, name)}", hint="Leave it out to get its default."
                )
        if self.grad_clip is not None and not 0 < self.grad_clip < float("inf"):
            raise InvalidParameter(f"grad_clip must be above 0, not {self.grad_clip}", hint="null = no clipping.")
        check_p(self.dropout_p)
        check_adamw(self.lr_max, self.beta1, self.beta2, self.eps, self.weight_decay, step=1)

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
        self._granted = 0  # bytes beside the state that steps may use

    @property
    def step(self) -> int:
        """AdamW updates that the model has had."""
        return max(self.trainer.steps.values())

    def batches(self, ids: Sequence[int], batch_size: int) -> tuple[list[datasets.Batch], list[int]]:
        """The rows `ids`, cut into micro-batches of at most `batch_size`; and the digest of each row."""
        rows = datasets.rows(ids, self.model, self.config)
        found = []
        for start in range(0, len(rows), batch_size):
            found += datasets.batches(rows[start : start + batch_size])
        self._require_memory(max(len(tokens) for tokens, _ in found), max(tokens.shape[1] for tokens, _ in found))
        return found, [row.digest for row in rows]

    def _require_memory(self, rows: int, length: int) -> None:
        """53200 when a batch needs more than there is; asked again only of a larger one, for the step keeps its memory."""
        wanted = estimate_step_bytes(self.config, rows, length) - 16 * self.config.n_params()
        if wanted > self._granted:
            resources.require_memory(wanted - self._granted, f"a batch of {rows} x {length} tokens")
            self._granted = wanted

    def digest(self) -> str:
        """SHA-256 of all weights, tensors in the order of the configuration."""
        found = hashlib.sha256()
        for array in self.trainer.params.values():
            found.update(to_bytes(array))
            host.check_interrupts()
        return found.hexdigest()


class Session(Learner):
    """A model in memory, from its rows and back to them. The caller holds the model's lock."""

    def __init__(self, model: str, workers: int) -> None:
        config = store.config(model)
        resources.apply_threads(workers)
        resources.require_memory(16 * config.n_params(), f'training "{model}"')
        self.version = weights.version_of(model)
        self._blocks: list[tuple[str, int, int]] = []
        self._rows: dict[tuple[str, int], tuple[str, str, int]] = {}  # of llm_param: a shared block is another model's
        super().__init__(model, config, self._read(model, config))

    def _read(self, model: str, config: GPT2Config) -> Trainer:
        assembly = weights.Assembly(model, config.param_shapes())
        m: weights.Params = {}
        v: weights.Params = {}
        steps: dict[str, int] = {}
        for row in db.cursor(
            "SELECT name, token_id, shape, data, m, v, step, source_model, source_name, source_token_id"
            f" FROM {store.resolved()} AS p ORDER BY name, token_id",
            ["text"],
            model,
        ):
            name, first, rows = row["name"], row["token_id"], row["shape"][0]
            assembly.add(name, first, row["shape"], row["data"])
            for moments, data in ((m, row["m"]), (v, row["v"])):
                if name not in moments:
                    moments[name] = np.zeros(config.param_shapes()[name], FLOAT32)
                if data:
                    if len(data) != len(row["data"]):
                        raise InconsistentData(
                            f'm or v of tensor "{name}", block {first}, of model "{model}" has {len(data)} bytes,'
                            f" not {len(row['data'])}",
                            hint="Set m and v to null to start the optimizer anew.",
                        )
                    moments[name][first : first + rows] = np.frombuffer(data, FLOAT32).reshape(row["shape"])
            steps[name] = max(row["step"], steps.get(name, 0))
            self._blocks.append((name, first, rows))
            self._rows[name, first] = row["source_model"], row["source_name"], row["source_token_id"]
            host.check_interrupts()
        params = assembly.finish()
        return Trainer(config, params, m, v, steps, tied=self._tied(model), chunk=resources.attention_chunk())

    def _tied(self, model: str) -> dict[str, str]:
        """Tensors that share the rows of one before them -> that one. Their blocks are then no longer written themselves."""
        first: dict[tuple, str] = {}
        tied: dict[str, str] = {}
        for name in dict.fromkeys(name for name, _, _ in self._blocks):
            rows = tuple((start, self._rows[name, start]) for block, start, _ in self._blocks if block == name)
            if first.setdefault(rows, name) != name:
                tied[name] = first[rows]
        self._blocks = [block for block in self._blocks if block[0] not in tied]
        places = [self._rows[name, start] for name, start, _ in self._blocks]
        if len(set(places)) < len(places) or any(
            name.rsplit(".", 1)[0] == one.rsplit(".", 1)[0] for name, one in tied.items()
        ):
            raise FeatureNotSupported(
                f'model "{model}" shares a block twice in a way that cannot be trained',
                hint="Tensors that share with one another must share all their blocks, and not be weight and bias of one layer;"
                " llm_unshare_param gives the model copies of its own.",
            )
        return tied

    def write(self) -> None:
        """Weights, moments and steps back into the rows they came from, which nobody else may have changed."""
        sources = sorted({source for source, _, _ in self._rows.values()})
        db.run("SELECT 1 FROM {schema}.llm_param WHERE model = ANY ($1) FOR UPDATE", ["text[]"], sources)
        if weights.version_of(self.model) != self.version:  # by a snapshot after the rows are ours
            raise self._changed()
        batch: list[tuple[str, int, bytes, bytes, bytes, int]] = []
        held = 0
        trainer = self.trainer
        for name, first, rows in self._blocks:
            part = slice(first, first + rows)
            if not np.isfinite(trainer.params[name][part]).all():  # the last update; the loss of the next would tell
                raise Diverged(
                    f'training diverged: tensor "{name}" is not finite after step {self.step}',
                    hint="Use a smaller lr_max, a longer warmup or a smaller grad_clip.",
                )
            data, m, v = (to_bytes(array[name][part]) for array in (trainer.params, trainer.m, trainer.v))
            batch.append((name, first, data, m, v, trainer.steps[name]))
            held += 3 * len(data)
            if held >= store.FLUSH_BYTES:
                self._update(batch)
                batch, held = [], 0
            host.check_interrupts()
        if batch:
            self._update(batch)
        self.version = weights.version_of(self.model)

    def _update(self, batch: list[tuple[str, int, bytes, bytes, bytes, int]]) -> None:
        names, firsts, data, m, v, steps = map(list, zip(*batch))
        models, names, firsts = map(list, zip(*(self._rows[key] for key in zip(names, firsts))))
        whole, places = store.joined(data)
        updated = db.run(
            "UPDATE {schema}.llm_param AS p SET data = substring($5 FROM place FOR size),"
            " m = substring($6 FROM place FOR size), v = substring($7 FROM place FOR size), step = new.step, grad = NULL"
            " FROM unnest($1, $2, $3, $4, $8, $9) AS new (model, name, token_id, place, size, step)"
            " WHERE p.model = new.model AND p.name = new.name AND p.token_id = new.token_id",
            ["text[]", "text[]", "int4[]", "int4[]", "bytea", "bytea", "bytea", "int4[]", "int8[]"],
            *(models, names, firsts, places, whole, store.joined(m)[0], store.joined(v)[0]),
            *(list(map(len, data)), steps),
        )
        if updated != len(batch):
            raise self._changed()

    def _changed(self) -> InconsistentData:
        return InconsistentData(
            f'the weights of model "{self.model}" were changed by somebody else during training',
            hint="Nothing was written. Do not change llm_param while a model is trained; then train again.",
        )


def mean_loss(
    params: weights.Params, config: GPT2Config, model: str, ids: np.ndarray, batch_size: int, chunk: int | None = None
) -> tuple[float, int]:
    """Mean cross entropy and number of tokens of rows of llm_dataset, without dropout."""
    chunk = resources.attention_chunk() if chunk is None else chunk
    total, count = 0.0, 0
    for start in range(0, len(ids), batch_size):
        for tokens, targets in datasets.batches(datasets.rows(ids[start : start + batch_size].tolist(), model, config)):
            loss, n = evaluate(params, config, tokens, targets, chunk=chunk)
            total, count = total + loss, count + n
    return total / count, count
