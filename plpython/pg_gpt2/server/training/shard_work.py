"""Shards of another server's run, computed in this session: no model, no data and no table, only what that run sends.

The session holds weights and gradients of one run, in flat arrays whose places both sides count alike: the tensors that training
changes in the order of the configuration, then those of an adapter's base. A row of numbers from elsewhere is checked before it
is used, and memory is asked for before it is taken.
"""

import binascii
from collections.abc import Mapping
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
from ...training.shards import Found, Shard, Sharded
from ...training.trainer import Batch, Trainer, estimate_step_bytes
from .. import db, resources
from . import environment

MOST_SENT = 1 << 24  # values at a time
LOOK_FOR_LEADER = "250ms"  # while a shard is computed
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
    """A run whose shards this session computes."""

    def __init__(self, config: GPT2Config, tied: dict[str, str], role: str) -> None:
        self.config, self.tied, self.role = config, tied, role
        shapes = config.param_shapes()
        self._own = {name: shapes[name] for name in trained_names(config, tied)}
        self._base = {name: shapes[name] for name in base_names(config)}
        self.n_own, self.n_base = (sum(map(prod, some.values())) for some in (self._own, self._base))
        # A base is laid out tensor by tensor: the largest is there twice meanwhile.
        largest = max(map(prod, self._base.values()), default=0)
        resources.require_memory(4 * (2 * self.n_own + self.n_base + largest), "a model of another server's run")
        self._granted = 0
        self._flat = np.empty(self.n_own, FLOAT32)
        self._flat_base: np.ndarray | None = np.empty(self.n_base, FLOAT32)
        self._next = 0  # place that is awaited of the weights that are trained, and of the base's
        self._next_base = self.n_own
        self._frozen: Mapping[str, Any] = {}
        self._sharded: Sharded | None = None
        self._found: Found | None = None

    def take(self, first: int, sent: str) -> int:
        """Weights for the places from `first` on, which is the one that is awaited, or 0; the place after them."""
        try:
            data = binascii.a2b_base64(sent)  # which passes over whatever is none of its letters
            values = np.frombuffer(data, FLOAT32)
        except ValueError:
            raise unexpected("sent, which is no float32 in base64") from None
        if len(sent) != -(-len(data) // 3) * 4:
            raise unexpected("sent, which has more than base64")
        end, self._found = first + values.size, None
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
        params, start = {}, 0
        for name, shape in self._base.items():
            params[name] = flat[start : start + prod(shape)].reshape(shape)
            start += prod(shape)
        self._frozen = layout.lay_out(params, replace(self.config, adapter=None))

    def _ready(self) -> Sharded:
        """What computes, once all weights are there; 55000 before."""
        if self._next < self.n_own or self._next_base < self.n_own + self.n_base:
            raise _missing("all of its weights")
        if self._sharded is None:
            params, start = dict(self._frozen), 0
            for name, shape in self._own.items():
                params[name] = self._flat[start : start + prod(shape)].reshape(shape)
                start += prod(shape)
            params |= {name: params[one] for name, one in self.tied.items()}
            self._sharded = Sharded(Trainer(self.config, params, tied=self.tied))
        return self._sharded

    def compute(self, said: Any) -> float:
        """The loss of a shard, whose gradients are kept."""
        self._found = None
        shard, how = _read_shard(said, self.config)
        sharded = self._ready()
        sharded.trainer.chunk = how.pop("chunk")
        resources.apply_settings()
        for rows, length in {batch.tokens.shape for batch in shard.batches}:
            self._require_memory(rows, length, how["dropout_p"])
        self._found = sharded.compute(shard, how)
        if self._found is None:
            raise unexpected("a shard without loss")
        return self._found.loss

    def _require_memory(self, rows: int, length: int, dropout_p: float) -> None:
        wanted = estimate_step_bytes(self.config, rows, length, dropout_p) - 16 * self.config.n_trained()
        if wanted > self._granted:
            resources.require_memory(wanted - self._granted, f"a batch of {rows} x {length} tokens")
            self._granted = wanted

    def gradients(self, first: int, count: int) -> bytes:
        """`count` of them from place `first` on."""
        if self._found is None:
            raise _missing("a shard that was computed with these weights")
        if not (0 <= first < self.n_own and 0 < count <= min(MOST_SENT, self.n_own - first)):
            raise unexpected(f"a call for {count} gradients from place {first} on")
        return self._found.gradients[first : first + count].tobytes()


_work: Work | None = None  # of this session


def begin(said: Any) -> dict[str, Any]:
    """Take on the shards of a run; what its leader wants to know."""
    global _work
    _work = None
    resources.apply_settings()
    resources.release_memory()
    try:
        config = GPT2Config.from_json(said["config"])
        tied = dict(said["tied"])
        shapes = config.trained_shapes()
        good = all(name != one and one not in tied and shapes[name] == shapes[one] for name, one in tied.items())
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise unexpected(f"run: {error!r}") from None
    if not good:
        raise unexpected("run, whose tied has other shapes")
    _work = Work(config, tied, _role())
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
    """A shard as `_read_shard` reads it."""
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
    return {"batches": batches, **numbers, **{name: how[name] for name in names}}
