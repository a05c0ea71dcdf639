"""A training step in memory: forward and backward of each micro-batch on a tape, clipping, AdamW in place.

Holds the arrays of a model and its optimizer; reads no table and knows no schedule. Gradients live in one arena and
activations in a pool, both allocated once.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, prod
from typing import NamedTuple

import numpy as np

from .. import host
from ..core import gpt2
from ..core.config import ACTIVATIONS, LINEAR_LAYERS, GPT2Config
from ..core.op import Sink, is_fast
from ..core.ops import CHUNK, IGNORED
from ..core.tape import Eager
from ..core.tape import Tape as PlainTape
from ..errors import Diverged, InvalidParameter
from ..fast import activations, buffers, losses
from ..fast.attention import mask_shape
from ..fast.layout import plain
from ..fast.tape import Audit, Tape, Value
from ..op_checks import check_p
from . import optim

NAMED = 5  # rows in an error
MOST_KEPT = 1 << 27  # bytes of activations that could be recomputed: beyond it, they are


class Batch(NamedTuple):
    """A micro-batch: tokens [B, T], targets [B, T] of which IGNORED ones carry no loss, and a weight for each row; None = 1."""

    tokens: np.ndarray
    targets: np.ndarray
    weight: np.ndarray | None = None  # [B]

    def counted(self) -> int:
        """Number of targets that carry loss."""
        return int(np.size(self.targets) - np.count_nonzero(np.equal(self.targets, IGNORED)))

    def total(self) -> int | float:
        """Sum of their weights."""
        if self.weight is None:
            return self.counted()
        return float((np.not_equal(self.targets, IGNORED).sum(axis=1) * self.weight).sum())


@dataclass(frozen=True)
class StepResult:
    """Loss before the update (mean over tokens), norm of the gradient before clipping, and number of tokens that counted."""

    loss: float
    grad_norm: float
    tokens: int


class Trainer:
    """Parameters, AdamW's moments and step counts of one model, all changed in place by `step`."""

    def __init__(
        self,
        config: GPT2Config,
        params: Mapping[str, np.ndarray],
        m: Mapping[str, np.ndarray] | None = None,
        v: Mapping[str, np.ndarray] | None = None,
        steps: Mapping[str, int] | None = None,
        *,
        tied: Mapping[str, str] | None = None,
        chunk: int = CHUNK,
    ) -> None:
        """Arrays are float32 and contiguous, by checkpoint name; missing moments and steps are 0.

        Those that training changes are writable. An adapter's base stays as it is, and may be in panels. `tied` says which names
        are the same tensor as another: it is updated once, by the sum of their gradients.
        """
        self.config = config
        self.tied = dict(tied or {})
        self.params = {name: params[self.tied.get(name, name)] for name in params}
        own = {name: self.params[name] for name in config.trained_shapes() if name not in self.tied}
        self.chunk = chunk
        self.m = {name: _moment(m, name, w) for name, w in own.items()}
        self.v = {name: _moment(v, name, w) for name, w in own.items()}
        self.steps = {name: (steps or {}).get(name, 0) for name in own}
        self._arena = np.empty(sum(w.size for w in own.values()), np.float32)
        self._sinks: dict[str, Sink] = {}
        start = 0
        for name, w in own.items():
            self._sinks[name] = Sink(self._arena[start : start + w.size].reshape(w.shape))
            start += w.size
        self._unused = self._beside(config.output_table)
        self._pool = buffers.BufferPool()
        self._shape: tuple[int, ...] = ()  # of the micro-batch whose buffers the pool has

    def _sink(self, name: str) -> Sink | None:
        """Where the gradient of a tensor is collected; None for one that stays as it is."""
        return self._sinks.get(self.tied.get(name, name))

    def _beside(self, table: str) -> np.ndarray | None:
        """The larger part of the arena beside the gradients of a table. These come first in a step, so logits can lie where
        the others will. None where the table learns nothing."""
        sink = self._sink(table)
        if sink is None:
            return None
        start = (sink.array.ctypes.data - self._arena.ctypes.data) // self._arena.itemsize
        return max(self._arena[:start], self._arena[start + sink.array.size :], key=len)

    def _learns(self, name: str) -> bool:
        """Whether training changes a tensor."""
        return self._sink(name) is not None

    @property
    def sinks(self) -> Mapping[str, Sink]:
        """Where gradients are collected, by name."""
        return self._sinks

    @property
    def grads(self) -> dict[str, np.ndarray]:
        """Gradients of the last step by name, before clipping; a parameter without gradient is absent."""
        return {name: sink.array for name, sink in self._sinks.items() if sink.filled}

    @property
    def flat_gradients(self) -> np.ndarray:  # [n]
        """The gradients of the last step, tensors in the order of the configuration without those that are another's.

        What has none has zeros. They may be written.
        """
        for sink in self._sinks.values():
            if not sink.filled:
                sink.array[...], sink.filled = 0, True
        return self._arena

    def step(
        self,
        batches: Sequence[Batch],
        *,
        lr: float,
        beta1: float = 0.9,
        beta2: float = 0.999,
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        grad_clip: float | None = None,
        dropout_p: float = 0.1,
        seed: int = 0,
        step_no: int = 1,
        audit: Audit | None = None,
        gradients: Callable[..., tuple[float, int]] | None = None,
    ) -> StepResult:
        """One update from micro-batches: each target counts with the weight of its row, in whatever micro-batch it is.

        `gradients` fills the gradients in the place of this object's own function of that name, for which it has the arguments.
        An error or interrupt before the update changes nothing; an interrupt within it leaves arrays to throw away.
        """
        optim.check_adamw(lr, beta1, beta2, eps, weight_decay, 1)
        fill = gradients or self.gradients
        loss, tokens = fill(batches, dropout_p=dropout_p, seed=seed, step_no=step_no, audit=audit)
        norm = self.grad_norm()
        if not (isfinite(loss) and isfinite(norm)):
            raise Diverged(
                f"training diverged at step {step_no}: loss {loss}, gradient norm {norm}",
                hint="Use a smaller lr_max, a longer warmup or a smaller grad_clip.",
            )
        self.update(
            lr=lr,
            beta1=beta1,
            beta2=beta2,
            eps=eps,
            weight_decay=weight_decay,
            grad_scale=optim.clip_scale(norm, grad_clip),
        )
        return StepResult(loss, norm, tokens)

    def gradients(
        self,
        batches: Sequence[Batch],
        *,
        dropout_p: float = 0.0,
        seed: int = 0,
        step_no: int = 1,
        audit: Audit | None = None,
        first_part: int = 0,
        total: float | None = None,
    ) -> tuple[float, int]:
        """Fill `grads` with those of the weighted mean loss over all tokens that count; (loss, tokens).

        Of a shard of a step, `total` is the sum of weights of all of it, which the mean is over, and `first_part` the number
        in the step of its first micro-batch, which decides about dropout. Losses and gradients of shards add up to the step's.
        """
        check_p(dropout_p)
        batches = [Batch(*batch) for batch in batches]
        if not batches:
            raise InvalidParameter(
                "a training step needs at least one micro-batch", hint="Load data with llm_dataset_load."
            )
        for sink in self._sinks.values():
            sink.filled = False
        n_tokens = sum(batch.counted() for batch in batches)
        total = sum(batch.total() for batch in batches) if total is None else total
        if not n_tokens:
            raise nothing_counts()
        loss = 0.0
        params = self.params if is_fast() else dict(plain(self.params))
        leaves = {name: Value(w, self._learns(name), sink=self._sink(name)) for name, w in params.items()}
        with buffers.reusing(self._pool):
            for part, batch in enumerate(batches, first_part):
                host.check_interrupts()
                share, drop = batch.total() / total, gpt2.Dropout(dropout_p, seed, step_no, part)
                if is_fast() or audit:
                    with buffers.lending(self._unused if part == first_part else None):
                        loss += share * self._fast_gradients(leaves, batch, drop, share, audit)
                else:
                    loss += share * self._plain_gradients(params, batch, drop, share)
        return loss, n_tokens

    def _fast_gradients(
        self, leaves: Mapping[str, Value], batch: Batch, drop: gpt2.Dropout, share: float, audit: Audit | None
    ) -> float:
        """The loss of a micro-batch; its gradients times `share` are added to the sinks."""
        tokens, targets, weight = batch
        if np.shape(tokens) != self._shape:
            self._pool.clear()  # else every length that the data have would keep buffers of its own
            self._shape = np.shape(tokens)
        tape = Tape(keep=False, recompute=_recomputes(self.config, np.size(tokens)), audit=audit)
        x = gpt2.hidden(tape, leaves, tokens, self.config, drop=drop, chunk=self.chunk)
        attrs = gpt2.loss_attributes(targets, weight)
        value = tape.finish("lm_head_loss", x, gpt2.output_table(leaves), seed=share, **attrs)
        return float(value.data)  # type: ignore[arg-type]

    def _plain_gradients(self, params: gpt2.Params, batch: Batch, drop: gpt2.Dropout, share: float) -> float:
        """The same by the tape of `core`. Each use of a parameter adds to what its sink has, in the order of the other tape, by
        which audited steps go: sums in another order have other bits."""
        tape = PlainTape()
        handles = {name: tape.leaf(w, self._learns(name)) for name, w in params.items() if name not in self.tied}
        handles |= {name: handles[one] for name, one in self.tied.items()}
        for name, sink in self._sinks.items():
            handles[name].grad = sink.array if sink.filled else None
        tokens, targets, weight = batch
        loss = gpt2.loss(tape, handles, tokens, targets, self.config, weight, drop=drop, chunk=self.chunk)
        tape.backward(loss, share)
        for name, sink in self._sinks.items():
            grad = handles[name].grad
            if grad is not None:
                sink.array[...], sink.filled = grad, True
        return float(loss.data)

    def grad_norm(self) -> float:
        """Norm of all gradients together."""
        filled = all(sink.filled for sink in self._sinks.values())
        return optim.global_norm([self._arena] if filled else list(self.grads.values()))

    def update(
        self, *, lr: float, beta1: float, beta2: float, eps: float, weight_decay: float, grad_scale: float = 1.0
    ) -> None:
        """AdamW on every parameter that has a gradient, each counting its own steps."""
        grads = self.grads
        for name in grads:
            self.steps[name] += 1
        optim.step_all(
            self.params,
            grads,
            self.m,
            self.v,
            self.steps,
            lr=lr,
            beta1=beta1,
            beta2=beta2,
            eps=eps,
            weight_decay=weight_decay,
            grad_scale=grad_scale,
        )


def evaluate(
    params: Mapping[str, np.ndarray], config: GPT2Config, batch: Batch, *, chunk: int = CHUNK
) -> tuple[float, float]:
    """(weighted sum of the losses of the tokens that count, sum of the weights) of a batch, without dropout."""
    tokens, targets, weight = batch
    params = params if is_fast() else plain(params)
    return float(
        gpt2.loss(Eager(), params, tokens, targets, config, weight, chunk=chunk)
    ) * batch.total(), batch.total()


def nothing_counts(ids: Sequence[int] = ()) -> InvalidParameter:
    """The error for data without a loss; `ids` of llm_dataset, where they are its rows."""
    named = ", ".join(map(str, ids[:NAMED])) + (", ..." if len(ids) > NAMED else "")
    rows = f"row{'s' * (len(ids) > 1)} {named} of llm_dataset" if named else "these rows"
    return InvalidParameter(
        f"no target of {rows} carries loss: all are {IGNORED}", hint="A row needs a target that is a token id."
    )


def _moment(given: Mapping[str, np.ndarray] | None, name: str, w: np.ndarray) -> np.ndarray:
    array = (given or {}).get(name)
    return np.zeros(w.shape, w.dtype) if array is None else array


def _values_kept(config: GPT2Config) -> tuple[int, int]:
    """What a backward pass looks at of a token in a layer: how many values are kept, and how many are cheap to recompute.

    Kept: two residuals, q k v, hidden units before gelu; attention's result, if the weights after it learn. Cheap: what gelu
    multiplied with, and others that do so; normalised rows and active hidden units, if the weights after them learn.
    """
    learn, d, inner = LINEAR_LAYERS if config.adapter is None else config.adapter.targets, config.d_model, config.inner
    gated = ACTIVATIONS[config.activation_function] in activations.GATED
    kept, cheap = (2 + 3 + ("attn.c_proj" in learn)) * d + inner, (gated + ("mlp.c_proj" in learn)) * inner
    return kept, cheap + (("attn.c_attn" in learn) + ("mlp.c_fc" in learn)) * d


def _recomputes(config: GPT2Config, n_tokens: int) -> bool:
    """Whether what is cheap to recompute is not kept."""
    return 4 * _values_kept(config)[1] * n_tokens * config.n_layer > MOST_KEPT


def estimate_step_bytes(config: GPT2Config, batch: int, length: int, dropout_p: float = 0.0) -> int:
    """Memory of a training step on micro-batches [batch, length]: state, activations, and a group of logits.

    An adapter's base is not counted: it is there already, for others too.
    """
    n, d = batch * length, config.d_model
    state = 4 * config.n_trained()  # weights, gradients, two moments
    values, cheap = _values_kept(config)
    kept = (values if _recomputes(config, n) else values + cheap) * n * config.n_layer
    passing = n * (8 * d + 4 * config.inner)  # of one layer at a time: recomputed values and gradients
    rows = losses.group_rows(n, config.vocab)
    head = rows * config.vocab + rows * d * losses.TURN  # of further micro-batches; the first finds room elsewhere
    masks = 0
    if dropout_p:  # of the embeddings, and in each layer of the probabilities and twice of what is added to the stream
        masks = n * d + config.n_layer * (prod(mask_shape(batch, config.n_head, length)) + 2 * n * d)
    if config.adapter is not None:  # the rows between its two matrices; what goes to them, and its masks
        passing += 4 * n * d if config.adapter.dropout_p else 0
        for name, (width, rank) in config.adapter_shapes().items():
            kept += n * rank if name.endswith("lora_A") else 0
            masks += n * width if name.endswith("lora_A") and config.adapter.dropout_p else 0
    return 4 * (state + kept + passing + head) + masks


class StepMemory:
    """The memory of a model's steps beside its state. It is asked for again only for a larger batch: the steps keep it."""

    def __init__(self, config: GPT2Config) -> None:
        self._config, self._granted = config, 0

    def require(self, batches: Iterable[Batch], dropout_p: float) -> None:
        """Refuse (53200) batches for which there is no memory."""
        for rows, length in {batch.tokens.shape for batch in batches}:
            wanted = estimate_step_bytes(self._config, rows, length, dropout_p) - 16 * self._config.n_trained()
            if wanted > self._granted:
                host.require_memory(wanted - self._granted, f"a batch of {rows} x {length} tokens")
                self._granted = wanted
