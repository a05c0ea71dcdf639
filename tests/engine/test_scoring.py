"""Scoring a text, against logits of whole passes."""

from itertools import pairwise

import numpy as np
import pytest
from pg_gpt2.core import gpt2
from pg_gpt2.core.config import GPT2Config
from pg_gpt2.core.tape import Eager
from pg_gpt2.fast import layout
from pg_gpt2.generation import scoring


def test_with_one_position_each_token_is_predicted_from_the_one_before():
    config = GPT2Config(n_layer=2, n_head=2, d_model=16, n_positions=1, vocab=50)
    params = gpt2.init_params(config, 3)
    ids = np.random.default_rng(1).integers(0, 50, 9).tolist()
    found, ranks = scoring.token_scores(layout.lay_out(dict(params), config), config, ids)
    for place, (before, token) in enumerate(pairwise(ids)):
        logits = np.asarray(gpt2.logits(Eager(), params, np.asarray([[before]]), config)).reshape(-1)
        expected = logits[token] - np.log(np.exp(logits.astype(np.float64)).sum())
        assert found[place] == pytest.approx(expected, abs=1e-5)
        assert ranks[place] == 1 + (logits > logits[token]).sum()


@pytest.mark.parametrize("width", [2, 3, 7, 16])
@pytest.mark.parametrize("n", [1, 2, 3, 15, 16, 17, 40])
def test_every_token_but_the_first_is_scored_once(n, width):
    scored = [token for _, first, stop in scoring.windows(n, width) for token in range(first, stop)]
    assert scored == list(range(1, n))
    assert all(start < first for start, first, _ in scoring.windows(n, width)), "with something before it"
