"""A model in training: its state read from rows once, changed in memory by Trainer, and written back.

What a run does with it, and what is recorded of that, is in `runs`.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from . import datasets, db, host, resources, store
from .config import GPT2Config
from .errors import FeatureNotSupported, InconsistentData, InvalidParameter, NullNotAllowed
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

    def arguments(self) -> dict[str, float | int | None]:
        """What Trainer.step takes beside batches, learning rate and number of the step."""
        values = asdict(self)
        return {name: value for name, value in values.items() if name not in ("lr_max", "warmup", "min_lr")}


class Session:
    """A model's state in memory, from its rows and back to them. The caller holds the model's lock."""

    def __init__(self, model: str, workers: int) -> None:
        self.model = model
        self.config = store.config(model)
        resources.apply_threads(workers)
        resources.require_memory(16 * self.config.n_params(), f'training "{model}"')
        self.version = store.weights_version(model)
        self._granted = 0  # bytes beside the state that steps may use
        self._blocks: list[tuple[str, int, int]] = []
        self._rows: dict[tuple[str, int], tuple[str, str, int]] = {}  # of llm_param: a shared block is another model's
        self.trainer = self._read()

    @property
    def step(self) -> int:
        """AdamW updates that the model has had."""
        return max(self.trainer.steps.values())

    def _read(self) -> Trainer:
        assembly = store.Assembly(self.model, self.config.param_shapes())
        m: store.Params = {}
        v: store.Params = {}
        steps: dict[str, int] = {}
        for row in db.cursor(
            "SELECT name, token_id, shape, data, m, v, step, source_model, source_name, source_token_id"
            f" FROM {store.resolved()} AS p ORDER BY name, token_id",
            ["text"],
            self.model,
        ):
            name, first, rows = row["name"], row["token_id"], row["shape"][0]
            assembly.add(name, first, row["shape"], row["data"])
            for moments, data in ((m, row["m"]), (v, row["v"])):
                if name not in moments:
                    moments[name] = np.zeros(self.config.param_shapes()[name], FLOAT32)
                if data:
                    if len(data) != len(row["data"]):
                        raise InconsistentData(
                            f'm or v of tensor "{name}", block {first}, of model "{self.model}" has {len(data)} bytes,'
                            f" not {len(row['data'])}",
                            hint="Set m and v to null to start the optimizer anew.",
                        )
                    moments[name][first : first + rows] = np.frombuffer(data, FLOAT32).reshape(row["shape"])
            steps[name] = max(row["step"], steps.get(name, 0))
            self._blocks.append((name, first, rows))
            self._rows[name, first] = row["source_model"], row["source_name"], row["source_token_id"]
            host.check_interrupts()
        params = assembly.finish()
        return Trainer(self.config, params, m, v, steps, tied=self._tied(), chunk=resources.attention_chunk())

    def _tied(self) -> dict[str, str]:
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
                f'model "{self.model}" shares a block twice in a way that cannot be trained',
                hint="Tensors that share with one another must share all their blocks, and not be weight and bias of one layer;"
                " llm_unshare_param gives the model copies of its own.",
            )
        return tied

    def batches(self, ids: Sequence[int], batch_size: int) -> list[datasets.Batch]:
        """The rows `ids`, cut into micro-batches of at most `batch_size`."""
        found = []
        for start in range(0, len(ids), batch_size):
            found += datasets.batches(ids[start : start + batch_size], self.model, self.config)
        self._require_memory(max(len(tokens) for tokens, _ in found), max(tokens.shape[1] for tokens, _ in found))
        return found

    def _require_memory(self, rows: int, length: int) -> None:
        """53200 when a batch needs more than there is; asked again only of a larger one, for the step keeps its memory."""
        wanted = estimate_step_bytes(self.config, rows, length) - 16 * self.config.n_params()
        if wanted > self._granted:
            resources.require_memory(wanted - self._granted, f"a batch of {rows} x {length} tokens")
            self._granted = wanted

    def write(self) -> None:
        """Weights, moments and steps back into the rows they came from, which nobody else may have changed."""
        if store.weights_version(self.model) != self.version:
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
        self.version = store.weights_version(self.model)

    def digest(self) -> str:
        """SHA-256 of all weights, tensors in the order of the configuration."""
        found = hashlib.sha256()
        for array in self.trainer.params.values():
            found.update(to_bytes(array))
            host.check_interrupts()
        return found.hexdigest()

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
    params: store.Params, config: GPT2Config, model: str, ids: np.ndarray, batch_size: int
) -> tuple[float, int]:
    """Mean cross entropy and number of tokens of rows of llm_dataset, without dropout."""
    total, count = 0.0, 0
    for start in range(0, len(ids), batch_size):
        for tokens, targets in datasets.batches(ids[start : start + batch_size].tolist(), model, config):
            loss, n = evaluate(params, config, tokens, targets, chunk=resources.attention_chunk())
            total, count = total + loss, count + n
    return total / count, count
