"""GPT-2, once: every forward pass, in training, decoding or a single block in SQL, runs these lines over a `Runner`.

Parameters are a dict by checkpoint name: a layer is the entries under `h.{i}.`. Shapes: B sequences of T tokens, width D; the
leading B may be absent. Ids become vectors (`embed`), n blocks add to them what attention and a small network find, and a last
layernorm and the embedding, transposed, give logits. Reference: Radford et al. 2019; pre-LN blocks, tanh gelu, tied embeddings;
GPT-2's relatives have another `Architecture`.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from math import sqrt
from typing import Any

import numpy as np

from ..errors import InvalidParameter
from . import rng
from .config import ACTIVATIONS, LAYER_NORM_EPS, LINEAR_LAYERS, LM_HEAD, Adapter, GPT2Config, block_shapes
from .ops import CHUNK
from .tape import Handle, Runner

Params = Mapping[str, Handle]
Attend = Callable[[int, Handle, float | None], Handle]  # (layer, qkv [.., T, 3D], factor of scores) -> [.., T, D]
Keep = Callable[[Handle], Handle]  # [.., T, D] -> [n, D], some of the rows
Position = int | np.ndarray
RunAll = Callable[[list[Callable[[], object]]], object]  # makes calls, in any order
INIT_STD = 0.02
INIT_PIECE = 1 << 18  # scalars drawn from one address
ADAPTER_SITES = 1 << 31  # the first of dropout of what goes to an adapter: one for each linear layer of each block


def run_in_turn(calls: list[Callable[[], object]]) -> None:
    """Call each of them."""
    for call in calls:
        call()


@dataclass(frozen=True)
class Dropout:
    """Dropout of one forward pass: p, and where its masks are drawn. `part` tells micro-batches of a step apart."""

    p: float
    seed: int = 0
    step: int = 0
    part: int = 0

    def at(self, site: int, p: float | None = None) -> dict[str, Any]:
        """Attributes of the op at that site: 0 is the embedding, then three for each layer; `p` where it is another."""
        address = {"seed": self.seed, "step": self.step, "site": (self.part << 32) + site}
        return {"p": self.p if p is None else p, **address}


@dataclass(frozen=True)
class Pass:
    """What a forward pass may be asked for besides.

    `attend` supplies attention, as over a cache. With `keep`, only those rows leave the last block; `attend` gives only theirs.
    `chunk` is how many query rows of attention the fast form takes at a time.
    """

    drop: Dropout | None = None
    attend: Attend | None = None
    keep: Keep | None = None
    chunk: int = CHUNK

    def dropped(self, run: Runner, x: Handle, site: int) -> Handle:
        """x, after dropout where there is one."""
        return run.apply("dropout", x, **self.drop.at(site)) if self.drop is not None and self.drop.p else x

    def attention(self, run: Runner, qkv: Handle, n_head: int, factor: float | None, layer: int, site: int) -> Handle:
        """[.., T, 3D] -> [.., T, D]."""
        if self.attend is not None:
            return self.attend(layer, qkv, factor)
        attrs = self.drop.at(site) if self.drop is not None and self.drop.p else {}
        if factor is not None:
            attrs["factor"] = factor
        return run.apply("causal_attention", qkv, n_head=n_head, chunk=self.chunk, **attrs)

    def to_adapter(self, run: Runner, x: Handle, p: float, layer: int, target: str) -> Handle:
        """What an adapter's A is given of x: in training, x after a dropout of its own."""
        if self.drop is None or not p:
            return x
        site = ADAPTER_SITES + len(LINEAR_LAYERS) * layer + LINEAR_LAYERS.index(target)
        return run.apply("dropout", x, **self.drop.at(site, p))


def block(
    run: Runner,
    p: Params,
    x: Handle,
    *,
    n_head: int,
    eps: float = LAYER_NORM_EPS,
    activation: str = "gelu",
    factor: float | None = None,
    layer: int = 0,
    adapter: Adapter | None = None,
    how: Pass = Pass(),
) -> Handle:  # [.., T, D] -> [.., T, D] or what `how.keep` gives
    """One transformer block: x + attention(ln_1(x)), then + mlp(ln_2). Names of p lack `h.{i}.`; `factor` is that of scores."""
    site = 1 + 3 * layer
    linear = partial(_linear, run, p, adapter=adapter, layer=layer, how=how)
    normed = run.apply("layernorm", x, p["ln_1.weight"], p["ln_1.bias"], eps=eps)
    qkv = linear("attn.c_attn", normed)
    mixed = how.attention(run, qkv, n_head, factor, layer, site)
    if how.keep is not None:
        x = how.keep(x)
    y = linear("attn.c_proj", mixed)
    x = run.apply("add", x, how.dropped(run, y, site + 1))

    normed = run.apply("layernorm", x, p["ln_2.weight"], p["ln_2.bias"], eps=eps)
    hidden = linear("mlp.c_fc", normed)
    active = run.apply(activation, hidden)
    y = linear("mlp.c_proj", active)
    return run.apply("add", x, how.dropped(run, y, site + 2))


def _linear(
    run: Runner, p: Params, name: str, x: Handle, *, adapter: Adapter | None, layer: int, how: Pass
) -> Handle:  # [.., m] -> [.., n]
    """x W + b; where an adapter has this layer among its targets, + (alpha / r) (x A) B."""
    if adapter is None or name not in adapter.targets:
        return run.apply("linear", x, p[f"{name}.weight"], p[f"{name}.bias"])
    low = run.apply("matmul", how.to_adapter(run, x, adapter.dropout_p, layer, name), p[f"{name}.lora_A"])
    y = run.apply("linear", x, p[f"{name}.weight"], p[f"{name}.bias"])
    return run.apply("addmm", y, low, p[f"{name}.lora_B"], factor=adapter.scale)


def embed(run: Runner, params: Params, ids: np.ndarray, *, position: Position = 0) -> Handle:  # [.., T] -> [.., T, D]
    """wte[ids] + wpe[position ..]; a vector of positions has one for each sequence."""
    tokens = run.apply("embedding", params["wte"], ids=ids)
    places = run.apply("embedding", params["wpe"], ids=np.asarray(position)[..., None] + np.arange(np.shape(ids)[-1]))
    return run.apply("add", tokens, places)


def blocks(
    run: Runner, params: Params, x: Handle, config: GPT2Config, how: Pass = Pass()
) -> Handle:  # [.., T, D] -> [.., T, D] or what `how.keep` gives
    """All blocks and ln_f."""
    last = config.n_layer - 1
    for i in range(config.n_layer):
        here = how if i == last or how.keep is None else replace(how, keep=None)
        x = block_of(run, params, x, config, i, here)
    return last_norm(run, params, x, config)


def block_of(
    run: Runner, params: Params, x: Handle, config: GPT2Config, layer: int, how: Pass = Pass()
) -> Handle:  # [.., T, D] -> [.., T, D] or what `how.keep` gives
    """The block of a layer."""
    return block(
        run,
        layer_params(params, layer, config.adapter),
        x,
        n_head=config.n_head,
        eps=config.layer_norm_epsilon,
        activation=ACTIVATIONS[config.activation_function],
        factor=config.score_factor(layer),
        layer=layer,
        adapter=config.adapter,
        how=how,
    )


def last_norm(run: Runner, params: Params, x: Handle, config: GPT2Config) -> Handle:  # [.., D] -> [.., D]
    """ln_f."""
    return run.apply("layernorm", x, params["ln_f.weight"], params["ln_f.bias"], eps=config.layer_norm_epsilon)


def hidden(
    run: Runner, params: Params, ids: np.ndarray, config: GPT2Config, *, position: Position = 0, **how: Any
) -> Handle:  # [.., T] -> [.., T, D] or what `keep` gives
    """The stream after ln_f. `position` is that of the first id; `how` are the fields of a Pass."""
    check_window(int(np.max(position)) + np.shape(ids)[-1], config)
    asked = Pass(**how)
    return blocks(run, params, asked.dropped(run, embed(run, params, ids, position=position), 0), config, asked)


def layer_params(params: Params, layer: int, adapter: Adapter | None = None) -> dict[str, Handle]:
    """The twelve parameters of a block, and those of its adapter, by their names without `h.{layer}.`."""
    return {name: params[full] for name, full in _block_names(layer, adapter and adapter.targets)}


@lru_cache(maxsize=256)
def _block_names(layer: int, targets: tuple[str, ...] | None) -> list[tuple[str, str]]:
    own = [f"{target}.{matrix}" for target in targets or () for matrix in ("lora_A", "lora_B")]
    return [(name, f"h.{layer}.{name}") for name in (*block_shapes(1), *own)]


def project(run: Runner, params: Params, x: Handle) -> Handle:  # [.., D] -> [.., V]
    """Logits: x @ wte', or with an output layer of its own."""
    return run.apply("lm_head", x, output_table(params))


def output_table(params: Mapping[str, Any]) -> Any:  # -> [V, D]
    """What gives logits: the token embedding, or the tensor of a model that does not tie the two."""
    return params[LM_HEAD] if LM_HEAD in params else params["wte"]


def logits(run: Runner, params: Params, ids: np.ndarray, config: GPT2Config, **options: Any) -> Handle:
    """[.., T] -> [.., T, V]; options are those of `hidden`."""
    return project(run, params, hidden(run, params, ids, config, **options))


def loss(
    run: Runner,
    params: Params,
    ids: np.ndarray,
    targets: np.ndarray,
    config: GPT2Config,
    weight: np.ndarray | None = None,
    **options: Any,
) -> Handle:
    """Mean cross entropy of targets [.., T], with a weight for each sequence; options are those of `hidden`."""
    x = hidden(run, params, ids, config, **options)
    return run.apply("lm_head_loss", x, output_table(params), **loss_attributes(targets, weight))


def loss_attributes(targets: np.ndarray, weight: np.ndarray | None) -> dict[str, Any]:
    """Attributes of the loss: a weight only where there is one."""
    return {"target": targets} | ({} if weight is None else {"weight": weight})


def check_window(length: int, config: GPT2Config) -> None:
    """Refuse (22023) a sequence that is empty or longer than the position embeddings."""
    if not 1 <= length <= config.n_positions:
        raise InvalidParameter(
            f"a sequence of {length} tokens does not fit the model",
            hint=f"It takes 1 to {config.n_positions} tokens (n_positions).",
        )


def init_params(config: GPT2Config, seed: int = 0, run_all: RunAll = run_in_turn) -> dict[str, np.ndarray]:
    """All of `init_tensors`, by name."""
    return dict(init_tensors(config, seed, run_all))


def init_tensors(config: GPT2Config, seed: int = 0, run_all: RunAll = run_in_turn) -> Iterator[tuple[str, np.ndarray]]:
    """N(0, 0.02), residual projections N(0, 0.02 / sqrt(2 n_layer)), LayerNorm ones and zeros, biases zero; an adapter's as
    `init_adapter` has them.

    Name and array of one tensor after the other. Draws depend on (seed, index of the tensor) only; `run_all` calls the
    functions that make them, in any order.
    """
    for index, (name, shape) in enumerate(replace(config, adapter=None).param_shapes().items()):
        tensor = np.zeros(shape, np.float32)
        if tensor.ndim == 2:
            std = INIT_STD / sqrt(2 * config.n_layer) if name.endswith("c_proj.weight") else INIT_STD
            flat = tensor.reshape(-1)
            starts = range(0, flat.size, INIT_PIECE)
            run_all(
                [partial(_draw_normal, flat[i : i + INIT_PIECE], std, seed, index, i // INIT_PIECE) for i in starts]
            )
        elif name.endswith("weight"):
            tensor[:] = 1.0
        yield name, tensor
    yield from init_adapter(config, seed)


def init_adapter(config: GPT2Config, seed: int = 0) -> Iterator[tuple[str, np.ndarray]]:
    """Name and array of an adapter's tensors: A [in, r] uniform within 1 / sqrt(in) of 0, B zero, as PEFT has them.

    Draws depend on (seed, index of the tensor) only.
    """
    for index, (name, shape) in enumerate(config.adapter_shapes().items()):
        tensor = np.zeros(shape, np.float32)
        if name.endswith("lora_A"):
            np.random.Generator(rng.philox(seed, rng.ADAPTER, site=index)).random(out=tensor, dtype=np.float32)
            tensor -= 0.5
            tensor *= 2 / sqrt(shape[0])
        yield name, tensor


def merged(params: Mapping[str, np.ndarray], config: GPT2Config) -> Iterator[tuple[str, np.ndarray]]:
    """Name and array of each tensor of the ordinary model that an adapter and its base make together: W + (alpha / r) A B."""
    scale = np.float32(config.adapter.scale if config.adapter else 0)
    own = config.adapter_shapes()
    for name in replace(config, adapter=None).param_shapes():
        w, layer = params[name], name.removesuffix(".weight")
        if f"{layer}.lora_A" in own:
            change = params[f"{layer}.lora_A"] @ params[f"{layer}.lora_B"]
            change *= scale
            change += w  # in place: `merge` asks for the memory of two tensors
            w = change
        yield name, w


def _draw_normal(out: np.ndarray, std: float, seed: int, index: int, piece: int) -> None:
    source = np.random.Generator(rng.philox(seed, rng.INIT, site=index, row=piece))
    source.standard_normal(out=out, dtype=np.float32)
    out *= std
