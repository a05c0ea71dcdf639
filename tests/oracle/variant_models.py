"""Random members of the GPT-2 family, and transformers' models of them."""

from functools import lru_cache
from math import log

import numpy as np
import torch
from pg_gpt2.core import gpt2
from pg_gpt2.core.config import ACTIVATIONS, ARCHITECTURE, GPT2Config
from transformers import GPT2Config as TheirConfig
from transformers import GPT2LMHeadModel

COUNT = 64
WIDTHS = (1, 2, 3, 5, 7, 8, 11, 16, 20, 33, 64)  # of heads
WIDEST = 140
MOST_LAYERS, MOST_TOKENS = 20, 70_000
# The ends of what is drawn: by their places among the configurations.
ENDS = {0: {"vocab": 2}, 1: {"vocab": MOST_TOKENS}, 2: {"n_layer": MOST_LAYERS}, 3: {"n_layer": 1}}


def drawn(number: int) -> GPT2Config:
    """A configuration; eight that follow each other have all activation functions."""
    draw = np.random.default_rng(number)
    n_head = int(draw.integers(1, 8))
    d_head = int(draw.choice([width for width in WIDTHS if 4 <= n_head * width <= WIDEST]))

    def between(low: float, high: float) -> float:  # all sizes alike
        return float(np.exp(draw.uniform(log(low), log(high))))

    sizes = {
        "n_layer": int(between(1, MOST_LAYERS + 1)),
        "n_head": n_head,
        "d_model": n_head * d_head,
        "n_positions": int(draw.integers(24, 90)),
        "vocab": int(between(2, MOST_TOKENS)),
    }
    return GPT2Config(
        **(sizes | ENDS.get(number, {})),
        activation_function=list(ACTIVATIONS)[number % len(ACTIVATIONS)],
        n_inner=None if draw.random() < 0.3 else int(between(1, 600)),
        layer_norm_epsilon=between(1e-6, 1e-3),
        scale_attn_weights=bool(draw.random() < 0.6),
        scale_attn_by_inverse_layer_idx=bool(draw.random() < 0.5),
        reorder_and_upcast_attn=bool(draw.random() < 0.5),
        tie_word_embeddings=bool(draw.random() < 0.5),
    )


def random_params(config: GPT2Config, seed: int = 0) -> dict[str, np.ndarray]:
    """Weights of which none is 0 or 1, and none too small to matter."""
    draw = np.random.default_rng(seed)
    spread = 0.7 / config.d_model**0.5
    return {
        name: w + (spread if w.ndim == 2 else 0.1) * draw.standard_normal(w.shape, np.float32)
        for name, w in gpt2.init_params(config, seed).items()
    }


def their_config(config: GPT2Config) -> TheirConfig:
    """What config.json says of it."""
    return TheirConfig(
        n_layer=config.n_layer,
        n_head=config.n_head,
        n_embd=config.d_model,
        n_positions=config.n_positions,
        vocab_size=config.vocab,
        bos_token_id=config.vocab - 1,
        eos_token_id=config.vocab - 1,
        attn_implementation="eager",  # which looks at reorder_and_upcast_attn
        **{name: getattr(config, name) for name in ARCHITECTURE},
        **dict.fromkeys(("embd_pdrop", "attn_pdrop", "resid_pdrop"), 0.0),
    )


def their_model(config: GPT2Config, params: dict[str, np.ndarray]) -> GPT2LMHeadModel:
    """GPT2LMHeadModel with copies of these weights."""
    with torch.device("meta"):
        model = GPT2LMHeadModel(their_config(config))
    model = model.to_empty(device="cpu").eval()
    model.tie_weights()
    own = by_our_names(model)
    assert own.keys() == params.keys()
    with torch.no_grad():
        for name, p in own.items():
            p.copy_(torch.from_numpy(params[name]))
    return model


def by_our_names(model: GPT2LMHeadModel) -> dict[str, torch.nn.Parameter]:
    """Its parameters under our names; a tied one is there once."""
    names = {"transformer.wte.weight": "wte", "transformer.wpe.weight": "wpe"}
    return {names.get(full, full.removeprefix("transformer.")): p for full, p in model.named_parameters()}


@lru_cache(maxsize=COUNT)
def member(number: int) -> tuple[GPT2Config, dict[str, np.ndarray], GPT2LMHeadModel]:
    """A configuration, weights, and the model of transformers; to be left as they are."""
    config = drawn(number)
    params = random_params(config, number)
    return config, params, their_model(config, params)


def random_ids(config: GPT2Config, *shape: int, seed: int = 0) -> np.ndarray:
    """Ids of the vocabulary."""
    return np.random.default_rng(seed).integers(0, config.vocab, shape)
