"""Small models for the tests of decoding."""

from dataclasses import replace

import numpy as np
from pg_gpt2.core import gpt2
from pg_gpt2.core.config import LINEAR_LAYERS, Adapter, GPT2Config
from pg_gpt2.fast import layout
from pg_gpt2.generation.sampling import Sampling

CONFIGS = [
    GPT2Config(n_layer=2, n_head=2, d_model=64, n_positions=160, vocab=701),
    GPT2Config(n_layer=1, n_head=3, d_model=24, n_positions=96, vocab=50),
]
CONFIGS.append(replace(CONFIGS[0], adapter=Adapter(r=5, alpha=4, targets=LINEAR_LAYERS)))
VARIANT = replace(  # another architecture in every way
    CONFIGS[0],
    activation_function="gelu",
    n_inner=100,
    layer_norm_epsilon=1e-3,
    scale_attn_weights=False,
    scale_attn_by_inverse_layer_idx=True,
    tie_word_embeddings=False,
)
CONFIGS += [VARIANT, replace(VARIANT, activation_function="silu", scale_attn_weights=True, adapter=CONFIGS[2].adapter)]
# Whether panels keep the bits of a row whatever its company, with this CPU and BLAS.
KEEPS_BITS = layout.in_panels(CONFIGS[0])
# With weights in rows, and in panels where these are used.
ARRANGED = [
    (config, panels) for config in CONFIGS for panels in (True, False) if layout.in_panels(config) or not panels
]
GREEDY = Sampling(temperature=0)
# Processors that depend on what was read and said, and cuts that choose_surely bounds and does not.
WITH_OPTIONS = [
    Sampling(
        temperature=0,
        no_repeat_ngram_size=9,
        suppress_tokens=(3,),
        bad_words=((4, 5), (6,)),
        sequence_bias=(((1, 2), 2.0),),
        frequency_penalty=0.01,
    ),
    Sampling(presence_penalty=0.5, logit_bias=((7, 3.0),), min_new_tokens=40, epsilon_cutoff=0.001),
    Sampling(temperature=0.5, typical_p=0.9, eta_cutoff=0.001),
]


def name_of(config: GPT2Config) -> str:
    """For the name of a test."""
    return f"d{config.d_model}" + ("-variant" if config.differences() else "") + ("-adapter" if config.adapter else "")


def random_params(config: GPT2Config, seed: int = 0) -> dict[str, np.ndarray]:
    """Weights large enough for logits that differ; of an adapter, as after some training."""
    params = gpt2.init_params(config, seed)
    return {name: array * np.float32(4 if array.ndim == 2 else 1) for name, array in params.items()} | random_adapter(
        config, seed
    )


def random_adapter(config: GPT2Config, seed: int = 0) -> dict[str, np.ndarray]:
    """An adapter's own tensors, large enough for logits that are not its base's."""
    random = np.random.default_rng(seed)
    return {
        name: random.standard_normal(shape, np.float32) * np.float32(0.1)
        for name, shape in config.adapter_shapes().items()
    }
