"""Small models for the tests of decoding."""

import numpy as np
from pg_gpt2.core import gpt2
from pg_gpt2.core.config import GPT2Config
from pg_gpt2.generation.sampling import Sampling

CONFIGS = [
    GPT2Config(n_layer=2, n_head=2, d_model=64, n_positions=160, vocab=701),
    GPT2Config(n_layer=1, n_head=3, d_model=24, n_positions=96, vocab=50),
]
GREEDY = Sampling(temperature=0)


def random_params(config: GPT2Config, seed: int = 0) -> dict[str, np.ndarray]:
    """Weights large enough for logits that differ."""
    params = gpt2.init_params(config, seed)
    return {name: array * np.float32(4 if array.ndim == 2 else 1) for name, array in params.items()}
