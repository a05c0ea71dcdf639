"""GPT-2, once: every forward pass, training, decoding or a single block in SQL, runs these lines over a `Runner`.

Parameters are a dict by checkpoint name: a layer is the entries under `h.{i}.`. Shapes: B sequences of T tokens, width
D; the leading B may be absent. Reference: Radford et al. 2019; pre-LN blocks, tanh gelu, tied embeddings.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import sqrt
from typing import Any

import numpy as np

from .. import host
from ..errors import InvalidParameter
from ..fast import threads
from ..fast.attend import CHUNK
from ..fast.products import run_all
from . import rng
from .config import LAYER_NORM_EPS, GPT2Config, block_shapes
from .tape import Handle, Runner

Params = Mapping[str, Handle]
Attend = Callable[[int, Handle], Handle]  # (layer, qkv [.., T, 3D]) -> [.., T, D]
Keep = Callable[[Handle], Handle]  # [.., T, D] -> [n, D], some of the rows
Position = int | np.ndarray
INIT_STD = 0.02
INIT_PIECE = 1 << 18  # scalars drawn from one address


@dataclass(frozen=True)
class Dropout:
    """Dropout of one forward pass: p, and where its masks are drawn. `part` tells micro-batches of a step apart."""

    p: float
    seed: int = 0
    step: int = 0
    part: int = 0

    def at(self, site: int) -> dict[str, Any]:
        """Attributes of the op at that site: 0 is the embedding, then three for each layer."""
        return {"p": self.p, "seed": self.seed, "step": self.step, "site": (self.part << 32) + site}


def _dropped(run: Runner, x: Handle, drop: Dropout | None, site: int) -> Handle:
    if drop is None or not drop.p:
        return x
    y = run.apply("dropout", x, **drop.at(site))
    run.forget(x)
    return y


def block(
    run: Runner,
    p: Params,
    x: Handle,
    *,
    n_head: int,
    eps: float = LAYER_NORM_EPS,
    chunk: int = CHUNK,
    drop: Dropout | None = None,
    attend: Attend | None = None,
    keep: Keep | None = None,
    layer: int = 0,
) -> Handle:  # [.., T, D] -> [.., T, D] or what `keep` gives
    """One transformer block: x + attention(ln_1(x)), then + mlp(ln_2). Names of p lack `h.{i}.`.

    With `keep`, only those rows of x go on after attention, and `attend` returns only theirs.
    """
    site = 1 + 3 * layer
    normed = run.apply("layernorm", x, p["ln_1.weight"], p["ln_1.bias"], eps=eps)
    qkv = run.apply("linear", normed, p["attn.c_attn.weight"], p["attn.c_attn.bias"])
    run.forget(normed)
    if attend is not None:
        mixed = attend(layer, qkv)
    else:
        attrs = drop.at(site) if drop is not None and drop.p else {}
        mixed = run.apply("causal_attention", qkv, n_head=n_head, chunk=chunk, **attrs)
    if keep is not None:
        x = keep(x)
    x = _residual(run, x, mixed, p["attn.c_proj.weight"], p["attn.c_proj.bias"], drop, site + 1)

    normed = run.apply("layernorm", x, p["ln_2.weight"], p["ln_2.bias"], eps=eps)
    hidden = run.apply("linear", normed, p["mlp.c_fc.weight"], p["mlp.c_fc.bias"])
    run.forget(normed)
    active = run.apply("gelu", hidden)
    x = _residual(run, x, active, p["mlp.c_proj.weight"], p["mlp.c_proj.bias"], drop, site + 2)
    run.forget(active)
    return x


def _residual(run: Runner, x: Handle, y: Handle, w: Handle, b: Handle, drop: Dropout | None, site: int) -> Handle:
    """x + dropout(y @ w + b)."""
    y = _dropped(run, run.apply("linear", y, w, b), drop, site)
    total = run.apply("add", x, y)
    run.forget(y)
    return total


def embed(run: Runner, params: Params, ids: np.ndarray, *, position: Position = 0) -> Handle:  # [.., T] -> [.., T, D]
    """wte[ids] + wpe[position ..]; a vector of positions has one for each sequence."""
    tokens = run.apply("embedding", params["wte"], ids=ids)
    places = run.apply("embedding", params["wpe"], ids=np.asarray(position)[..., None] + np.arange(np.shape(ids)[-1]))
    x = run.apply("add", tokens, places)
    run.forget(tokens)
    run.forget(places)
    return x


def hidden(
    run: Runner,
    params: Params,
    ids: np.ndarray,
    config: GPT2Config,
    *,
    position: Position = 0,
    attend: Attend | None = None,
    keep: Keep | None = None,
    drop: Dropout | None = None,
    chunk: int = CHUNK,
) -> Handle:  # [.., T] -> [.., T, D] or what `keep` gives
    """The stream after ln_f. `position` is that of the first id; with `attend` a cache supplies the earlier keys.

    With `keep`, only those rows of the stream leave the last block: see `block`.
    """
    check_window(int(np.max(position)) + np.shape(ids)[-1], config)
    x = embed(run, params, ids, position=position)
    return blocks(run, params, _dropped(run, x, drop, 0), config, attend=attend, keep=keep, drop=drop, chunk=chunk)


def blocks(
    run: Runner,
    params: Params,
    x: Handle,
    config: GPT2Config,
    *,
    attend: Attend | None = None,
    keep: Keep | None = None,
    drop: Dropout | None = None,
    chunk: int = CHUNK,
) -> Handle:  # [.., T, D] -> [.., T, D] or what `keep` gives
    """All blocks and ln_f."""
    for i in range(config.n_layer):
        p, kept = layer_params(params, i), keep if i == config.n_layer - 1 else None
        x = block(run, p, x, n_head=config.n_head, chunk=chunk, drop=drop, attend=attend, keep=kept, layer=i)
    return run.apply("layernorm", x, params["ln_f.weight"], params["ln_f.bias"], eps=LAYER_NORM_EPS)


def layer_params(params: Params, layer: int) -> dict[str, Handle]:
    """The twelve parameters of a block, by their names without `h.{layer}.`."""
    return {name: params[full] for name, full in _block_names(layer)}


@lru_cache(maxsize=256)
def _block_names(layer: int) -> list[tuple[str, str]]:
    return [(name, f"h.{layer}.{name}") for name in block_shapes(1)]


def project(run: Runner, params: Params, x: Handle) -> Handle:  # [.., D] -> [.., V]
    """Logits: x @ wte'."""
    return run.apply("lm_head", x, params["wte"])


def logits(run: Runner, params: Params, ids: np.ndarray, config: GPT2Config, **options: Any) -> Handle:
    """[.., T] -> [.., T, V]; options are those of `hidden`."""
    return project(run, params, hidden(run, params, ids, config, **options))


def loss(
    run: Runner, params: Params, ids: np.ndarray, targets: np.ndarray, config: GPT2Config, **options: Any
) -> Handle:
    """Mean cross entropy of targets [.., T]; options are those of `hidden`."""
    x = hidden(run, params, ids, config, **options)
    return run.apply("lm_head_loss", x, params["wte"], target=targets)


def check_window(length: int, config: GPT2Config) -> None:
    """22023 when a sequence is empty or longer than the position embeddings."""
    if not 1 <= length <= config.n_positions:
        raise InvalidParameter(
            f"a sequence of {length} tokens does not fit the model",
            hint=f"It takes 1 to {config.n_positions} tokens (n_positions).",
        )


def init_params(config: GPT2Config, seed: int = 0) -> dict[str, np.ndarray]:
    """All of `init_tensors`, by name."""
    return dict(init_tensors(config, seed))


def init_tensors(config: GPT2Config, seed: int = 0) -> Iterator[tuple[str, np.ndarray]]:
    """N(0, 0.02), residual projections N(0, 0.02 / sqrt(2 n_layer)), LayerNorm ones and zeros, biases zero.

    Name and array of one tensor after the other. Draws depend on (seed, index of the tensor) only.
    """
    for index, (name, shape) in enumerate(config.param_shapes().items()):
        tensor = np.zeros(shape, np.float32)
        if tensor.ndim == 2:
            std = INIT_STD / sqrt(2 * config.n_layer) if name.endswith("c_proj.weight") else INIT_STD
            _draw_normal(tensor.reshape(-1), std, seed, index)
            host.check_interrupts()
        elif name.endswith("weight"):
            tensor[:] = 1.0
        yield name, tensor


def _draw_normal(flat: np.ndarray, std: float, seed: int, index: int) -> None:
    def piece(part: slice) -> None:
        source = np.random.Generator(rng.philox(seed, rng.INIT, site=index, row=part.start // INIT_PIECE))
        source.standard_normal(out=flat[part], dtype=np.float32)
        flat[part] *= std

    run_all([lambda part=part: piece(part) for part in threads.pieces(flat.size, INIT_PIECE)])  # type: ignore[misc]
