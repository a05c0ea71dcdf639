"""A forward pass with everything it computes on the way, under names that say where it belongs.

The pass is that of `gpt2`, run by a `Runner` that keeps what goes by: names follow from the parameters that an op takes. Two
things that the ops never form are added for the reader: q, k and v of each head, and the attention matrix.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import host
from ..core import gpt2
from ..core.config import ACTIVATIONS, GPT2Config
from ..core.tape import Eager
from ..fast.attend import factor_of
from ..fast.attention import split_qkv
from ..fast.ops import lookup
from .decode import checked

Params = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Step:
    """One intermediate value. `layer` is None outside the blocks."""

    layer: int | None
    op: str
    name: str
    data: np.ndarray


class Tracer:
    """Runs ops and keeps every result. An array of `params` is known by its identity."""

    def __init__(self, params: Params, n_head: int) -> None:
        self.steps: list[Step] = []
        self._names = {id(array): name for name, array in params.items()}
        self._known = frozenset(params)
        self._n_head = n_head
        self._layer: int | None = None

    def leaf(self, data: np.ndarray, requires_grad: bool = False) -> np.ndarray:
        """data."""
        return data

    def apply(self, name: str, *inputs: np.ndarray, **attrs: Any) -> np.ndarray:
        """The op's result."""
        host.check_interrupts()
        y = lookup(name)(*inputs, **attrs)
        parameter = next((self._names[id(array)] for array in inputs if id(array) in self._names), None)
        if parameter is not None:
            self._layer = int(parameter.split(".")[1]) if parameter.startswith("h.") else None
        if name == "causal_attention":
            self._keep("softmax", "attn.weights", attention_weights(inputs[0], self._n_head, attrs.get("factor")))
        short = self._name(name, parameter)
        self._keep(name, short, y)
        if short == "attn.c_attn":
            for part, heads in zip("qkv", split_qkv(y[None], self._n_head), strict=True):
                self._keep("slice", f"attn.{part}", heads[0])
        return y

    def _name(self, op: str, parameter: str | None) -> str:
        """The name without `h.{i}.`."""
        if op == "lm_head":
            return "logits"
        if parameter is not None:
            return self._name_by(parameter).removeprefix(f"h.{self._layer}.")
        if op != "add":
            return "attn.heads" if op == "causal_attention" else f"mlp.{op}" if op in ACTIVATIONS.values() else op
        if self._layer is None:
            return "embeddings"
        return "attn.residual" if self.steps[-1].name.endswith("attn.c_proj") else "output"

    def _name_by(self, parameter: str) -> str:
        """That of the layer, for its result; with an adapter the terms of that have names of their own, as in PEFT."""
        layer, _, part = parameter.rpartition(".")
        if part == "weight" and f"{layer}.lora_A" in self._known:
            return f"{layer}.base_layer"
        return layer if part in ("weight", "lora_B") else parameter

    def _keep(self, op: str, name: str, data: np.ndarray) -> None:
        full = name if self._layer is None else f"h.{self._layer}.{name}"
        self.steps.append(Step(self._layer, op, full, data))


def attention_weights(qkv: np.ndarray, n_head: int, factor: float | None = None) -> np.ndarray:  # [T, 3D] -> [H, T, T]
    """softmax(factor q k') of each head, 0 where the key comes after the query; no factor = 1 / sqrt(d)."""
    q, k, _ = split_qkv(qkv[None], n_head)
    t = q.shape[-2]
    after = np.triu(np.full((t, t), -np.inf, q.dtype), 1)
    weights = np.empty((n_head, t, t), q.dtype)
    for head in range(n_head):
        host.check_interrupts()
        scores = (q[0, head] * factor_of(q.shape[-1], factor)) @ k[0, head].swapaxes(-1, -2)
        scores += after
        weights[head] = lookup("softmax")(scores)
    return weights


def trace(params: Params, config: GPT2Config, ids: Sequence[int]) -> list[Step]:
    """Every intermediate value of a forward pass over `ids`, logits and probabilities included."""
    run = Tracer(params, config.n_head)
    logits = gpt2.logits(run, params, np.asarray(ids, np.int64), config)
    run.steps.append(Step(None, "softmax", "probabilities", lookup("softmax")(logits)))
    return run.steps


def layer_attention(params: Params, config: GPT2Config, ids: Sequence[int], layer: int) -> np.ndarray:  # -> [H, T, T]
    """The attention matrices of one layer."""
    run = Tracer(params, config.n_head)
    gpt2.hidden(run, params, np.asarray(ids, np.int64), config)
    return next(step.data for step in run.steps if step.name == f"h.{layer}.attn.weights")


def logit_lens(params: Params, config: GPT2Config, ids: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
    """(layer, probabilities [V] of the next token), as if the blocks ended there; layer 0 is the embeddings.

    22000 at the first layer whose logits are not finite."""
    run = Tracer(params, config.n_head)
    gpt2.hidden(run, params, np.asarray(ids, np.int64), config)
    ends = ["embeddings", *(f"h.{i}.output" for i in range(config.n_layer))]
    streams = [step.data[-1:] for step in run.steps if step.name in ends]
    for layer, x in enumerate(streams):
        logits = gpt2.project(Eager(), params, gpt2.last_norm(Eager(), params, x, config))
        yield layer, lookup("softmax")(checked(logits, f"the model's logits after {layer} blocks"))[0]
