"""Tensors that are one: updated once a step, by the sum of the gradients of all places."""

import numpy as np
from pg_gpt2.core import gpt2
from pg_gpt2.core.config import GPT2Config
from pg_gpt2.training.trainer import Trainer

CONFIG = GPT2Config(2, 2, 8, 16, 20)
NAMES = ("h.0.attn.c_attn.weight", "h.1.attn.c_attn.weight")


def test_a_tied_tensor_gets_the_sum_of_its_gradients():
    rng = np.random.default_rng(1)
    params = {name: np.array(w) for name, w in gpt2.init_params(CONFIG, 3).items()}
    params[NAMES[1]] = params[NAMES[0]].copy()
    batch = rng.integers(0, 20, (2, 5)), rng.integers(0, 20, (2, 5))
    apart = Trainer(CONFIG, params)
    together = Trainer(CONFIG, params, tied={NAMES[1]: NAMES[0]})
    loss, _ = apart.gradients([batch])
    assert together.gradients([batch]) == (loss, 10)
    expected = apart.grads[NAMES[0]] + apart.grads[NAMES[1]]
    np.testing.assert_allclose(together.grads[NAMES[0]], expected, rtol=1e-5, atol=1e-7)
    assert set(apart.grads) - set(together.grads) == {NAMES[1]}
    together.step([batch], lr=0.01, dropout_p=0)
    assert together.params[NAMES[0]] is together.params[NAMES[1]]
    assert together.steps[NAMES[0]] == 1
