"""Shards of another server's run, computed in this session: no model, no data and no table, only what that run sends.

The session holds weights and gradients of one run, in flat arrays whose places both sides count alike: the tensors that training
changes in the order of the configuration, with sync_every their moments after them, and then those of an adapter's base. A row
of numbers from elsewhere is checked before it is used, and memory is asked for before it is taken.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from math import isfinite, prod
from typing import Any

import numpy as np

from ...core.config import GPT2Config
from ...core.ops import IGNORED
from ...errors import InvalidParameter, WrongState
from ...fast import layout
from ...limits import MOST_STEP_ROWS
from ...op_checks import check_p
from ...options import INT8
from ...tensor import FLOAT32
from ...training.flat import Flat
from ...training.rounds import local_step, state_of
from ...training.shards import Shard
from ...training.trainer import Batch, StepMemory, Trainer
from .. import db, resources
from . import environment, wire

MOST_SENT = 1 << 24  # values at a time
LOOK_FOR_LEADER = "250ms"  # while a shard is computed
ADAMW = ("lr", "beta1", "beta2", "eps", "weight_decay")
KEEPALIVES = {"tcp_keepalives_idle": "10", "tcp_keepalives_interval": "5", "tcp_keepalives_count": "3"}


def unexpected(what: str) -> InvalidParameter:
    """The error for arguments that do not come from a run."""
    return InvalidParameter(
        f"this is not what llm_train_run sends: {what}",
        hint="Functions llm_worker_... are called by llm_train_run, on the servers that its option workers names.",
    )


def _missing(what: str) -> WrongState:
    return WrongState(
        f"this session does not have {what}, to compute a shard",
        hint="llm_train_run calls llm_worker_begin, llm_worker_weights, llm_worker_shard and llm_worker_gradients, in turn.",
    )


def trained_names(config: GPT2Config, tied: Mapping[str, str]) -> list[str]:
    """The tensors that are sent before each step, in order."""
    return [name for name in config.trained_shapes() if name not in tied]


def base_names(config: GPT2Config) -> list[str]:
    """The tensors of an adapter's base, which are sent once."""
    return list(replace(config, adapter=None).param_shapes()) if config.adapter else []


class Work:
    """A run whose shards this session computes; with `learns`, whose replicas."""

    def __init__(self, config: GPT2Config, tied: dict[str, str], learns: bool, role: str) -> None:
        self.config, self.tied, self.learns, self.role = config, tied, learns, role
        shapes = config.param_shapes()
        self._own = {name: shapes[name] for name in trained_names(config, tied)}
        self._base = {name: shapes[name] for name in base_names(config)}
        n_own, self.n_base = (sum(map(prod, some.values())) for some in (self._own, self._base))
        self.n_own = 3 * n_own if learns else n_own  # numbers that are sent, and fetched: with both moments, or without
        # A base is laid out tensor by tensor: the largest is there twice meanwhile. So is a replica, as it was sent and as it is.
        largest, own = max(map(prod, self._base.values()), default=0), 7 * n_own if learns else 2 * n_own
        resources.require_memory(4 * (own + self.n_base + largest), "a model of another server's run")
        self._memory = StepMemory(config)
        self._flat = np.empty(self.n_own, FLOAT32)
        self._flat_base: np.ndarray | None = np.empty(self.n_base, FLOAT32)
        self._next = 0  # place that is awaited of what is sent again and again, and of the base
        self._next_base = self.n_own
        self._frozen: Mapping[str, Any] = {}
        self._made: Trainer | None = None
        self._found: np.ndarray | Flat | None = None
        self._replica: Flat | None = None  # that has begun

    def take(self, first: int, sent: str) -> int:
        """Weights for the places from `first` on, which is the one that is awaited, or 0; the place after them."""
        try:
            values = wire.from_text(sent)
        except ValueError:
            raise unexpected("sent, which is no numbers") from None
        end, self._found, self._replica = first + values.size, None, None
        if not 0 < values.size <= MOST_SENT:
            raise unexpected(f"{values.size} weights")
        if first in (0, self._next) and end <= self.n_own:
            self._flat[first:end], self._next = values, end
        elif first == self._next_base and end <= self.n_own + self.n_base and self._flat_base is not None:
            self._flat_base[first - self.n_own : end - self.n_own], self._next_base = values, end
            if end == self.n_own + self.n_base:
                self._lay_out(self._flat_base)
                self._flat_base = None
        else:
            raise unexpected(f"weights for places {first} to {end}, where place {self._next} is awaited")
        return end

    def _lay_out(self, flat: np.ndarray) -> None:
        """The base as models of this server lie in memory, where that may decide about bits."""
        self._frozen = layout.lay_out(dict(_shaped(flat, self._base)), replace(self.config, adapter=None))

    def _trainer(self) -> Trainer:
        """What computes, once all weights are there; 55000 before. Each replica has arrays of its own."""
        if self._next < self.n_own or self._next_base < self.n_own + self.n_base:
            raise _missing("all of its weights")
        if self._made is None:
            own = dict(_shaped(self._flat.copy() if self.learns else self._flat, self._own))
            params = {**self._frozen, **own}
            params |= {name: params[one] for name, one in self.tied.items()}
            self._made = Trainer(self.config, params, tied=self.tied)
        return self._made

    def compute(self, said: Any) -> list[float]:
        """The loss of a shard, whose gradients are kept; or that of a step of a replica, and the norm of its gradient."""
        self._found = None
        shard, how = _read_shard(said, self.config)
        if self.learns:
            how["update"] = _read_update(said, len(self._own))
        trainer = self._trainer()
        trainer.chunk = how.pop("chunk")
        resources.apply_settings()
        self._memory.require(shard.batches, how["dropout_p"])
        if not shard.counts():
            raise unexpected("a shard without loss")
        if self.learns:
            return self._learn(trainer, shard, how, said["begins"])
        loss, self._found, _ = shard.found(trainer, how)
        return [loss]

    def _learn(self, trainer: Trainer, shard: Shard, how: dict[str, Any], begins: bool) -> list[float]:
        """A step of a replica, which begins as it was sent; one that fails ends it."""
        replica, self._replica = self._replica, None
        if begins:
            replica = state_of(trainer)
            replica.take(self._flat)
        if replica is None:
            raise _missing("a replica that has begun")
        made = local_step(trainer, shard, how)
        self._found = self._replica = replica
        return list(made)

    def gradients(self, first: int, count: int) -> str:
        """`count` of them from place `first` on, as text; of a replica, weights and moments."""
        if self._found is None:
            raise _missing("a shard that was computed with these weights")
        if not (0 <= first < self.n_own and 0 < count <= min(MOST_SENT, self.n_own - first)):
            raise unexpected(f"a call for {count} gradients from place {first} on")
        return wire.to_text(self._found[first : first + count])


def _shaped(flat: np.ndarray, shapes: Mapping[str, Sequence[int]]) -> Iterator[tuple[str, np.ndarray]]:
    """Tensors by name, views of `flat` in turn."""
    start = 0
    for name, shape in shapes.items():
        yield name, flat[start : start + prod(shape)].reshape(shape)
        start += prod(shape)


_work: Work | None = None  # of this session


def begin(said: Any) -> dict[str, Any]:
    """Take on the shards of a run; what its leader wants to know."""
    global _work
    _work = None
    resources.apply_settings()
    resources.release_memory()
    try:
        config = GPT2Config.from_json(said["config"])
        tied, learns = dict(said["tied"]), said.get("learns", False)
        shapes = config.trained_shapes()
        good = all(name != one and one not in tied and shapes[name] == shapes[one] for name, one in tied.items())
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise unexpected(f"run: {error!r}") from None
    if not good:
        raise unexpected("run, whose tied has other shapes")
    if type(learns) is not bool:
        raise unexpected("run, whose learns is neither true nor false")
    _work = Work(config, tied, learns, _role())
    resources.keep_freed_memory()
    _end_with_leader()
    return {"environment": environment.current(), "weights": _work.n_own + _work.n_base}


def _end_with_leader() -> None:
    """Let the server end this session soon after its client has gone, also while it computes."""
    for name, value in {"client_connection_check_interval": LOOK_FOR_LEADER, **KEEPALIVES}.items():
        db.run("SELECT set_config($1, $2, false)", ["text", "text"], name, value)


def current() -> Work:
    """The run of this session, which its role began."""
    if _work is None or _work.role != _role():
        raise _missing("a run")
    return _work


def _role() -> str:
    return (db.row("SELECT current_user AS role") or {})["role"]


def _read_shard(said: Any, config: GPT2Config) -> tuple[Shard, dict[str, Any]]:
    """A shard and how to compute it, from JSON; 22023 where something is not what a run sends."""
    try:
        batches = tuple(_read_batch(one, config) for one in said["batches"])
        numbers = {name: said[name] for name in ("seed", "step_no", "first_part", "chunk")}
        total, dropout_p = float(said["total"]), float(said["dropout_p"])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise unexpected(f"shard: {error!r}") from None
    if not batches or not all(type(number) is int and abs(number) <= INT8 for number in numbers.values()):
        raise unexpected("shard: a number in it")
    first_part, good = numbers.pop("first_part"), 1 <= numbers["chunk"] <= 4096 and numbers["step_no"] >= 1
    if not (good and 0 <= first_part <= MOST_STEP_ROWS and isfinite(total) and total > 0):
        raise unexpected("shard: a number in it")
    check_p(dropout_p)
    return Shard(batches, first_part), {"total": total, "dropout_p": dropout_p, **numbers}


def _read_update(said: Any, n_tensors: int) -> dict[str, Any]:
    """How AdamW is to be called, from JSON; checks what AdamW itself does not."""
    try:
        update = dict(said["update"])
        numbers, counts = {name: float(update[name]) for name in ADAMW}, update["counts"]
        clip = None if update["grad_clip"] is None else float(update["grad_clip"])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise unexpected(f"update: {error!r}") from None
    good = isinstance(counts, list) and len(counts) == n_tensors and isinstance(said.get("begins"), bool)
    if not good or not all(type(count) is int and 0 <= count < INT8 for count in counts):
        raise unexpected("update: how many steps tensors have had")
    return {**numbers, "grad_clip": clip, "counts": counts}


def _read_batch(said: Any, config: GPT2Config) -> Batch:
    """Rows of ids within the vocabulary, as long as each other and no longer than the window."""
    tokens, targets = (_ids(said[name]) for name in ("tokens", "targets"))
    weight = None if said["weight"] is None else np.asarray(said["weight"], np.float64)
    rows, length = tokens.shape
    if targets.shape != tokens.shape or not 0 < rows <= MOST_STEP_ROWS or not 0 < length <= config.n_positions:
        raise ValueError("tokens and targets")
    known = targets[targets != IGNORED]
    if (
        tokens.min() < 0
        or tokens.max() >= config.vocab
        or (known.size and (known.min() < 0 or known.max() >= config.vocab))
    ):
        raise ValueError("an id outside the vocabulary")
    if weight is not None and (weight.shape != (rows,) or not (np.isfinite(weight).all() and (weight > 0).all())):
        raise ValueError("weight")
    return Batch(tokens, targets, weight)


def _ids(rows: Any) -> np.ndarray:
    array = np.asarray(rows)
    if array.ndim != 2 or array.dtype != np.int64:
        raise ValueError("rows of ids")
    return array


def to_json(shard: Shard, chunk: int, how: Mapping[str, Any]) -> dict[str, Any]:
    """A shard as `_read_shard` reads it, and of a replica's step what `_read_update` reads."""
    batches = [
        {
            "tokens": batch.tokens.tolist(),
            "targets": batch.targets.tolist(),
            "weight": None if batch.weight is None else batch.weight.tolist(),
        }
        for batch in shard.batches
    ]
    names = ("seed", "step_no", "total", "dropout_p")
    numbers = {"first_part": shard.first_part, "chunk": chunk}
    learns = {name: how[name] for name in ("update", "begins") if name in how}
    return {"batches": batches, **numbers, **{name: how[name] for name in names}, **learns}
