"""Drafts: guesses of what follows from what occurred before, which a pass verifies and which change no token."""

from collections.abc import Callable

import numpy as np
import pytest
from pg_gpt2.core.config import GPT2Config
from pg_gpt2.fast import layout
from pg_gpt2.generation import generate as generation
from pg_gpt2.generation.decode import Decoder
from pg_gpt2.generation.generate import Options
from pg_gpt2.generation.lookup import LONG, NGRAMS, PATIENCE, Drafts
from pg_gpt2.generation.sampling import Sampling

from tests.engine.small_models import CONFIGS, GREEDY, WITH_OPTIONS, name_of, random_params


def copying_params(config: GPT2Config) -> dict[str, np.ndarray]:
    """Weights whose greedy continuations soon repeat themselves."""
    params = random_params(config, 3)
    return {
        name: array * np.float32(0.2) if name.endswith("c_proj.weight") else array for name, array in params.items()
    }


@pytest.mark.parametrize("config", CONFIGS, ids=name_of)
@pytest.mark.parametrize(
    "sampling",
    [GREEDY, Sampling(temperature=0, repetition_penalty=1.1), Sampling(topk=3, temperature=0.2), *WITH_OPTIONS],
)
@pytest.mark.parametrize("weights", [copying_params, random_params])
def test_drafts_do_not_change_a_token(
    config: GPT2Config, sampling: Sampling, weights: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also past the window, at the end of max_tokens and at a stop."""
    monkeypatch.setattr(layout, "use_panels", True)
    arranged = layout.lay_out(weights(config), config)
    passes = 0

    def counted(decoder: Decoder, ids: list[int]) -> np.ndarray:
        nonlocal passes
        passes += 1
        return feed_all(decoder, ids)

    feed_all = Decoder.feed_all
    monkeypatch.setattr(Decoder, "feed_all", counted)
    prompt = [5, 6, 7, 8] * 6
    found = {}
    for on in (False, True):
        for length in (1, 2, 7, 250):
            passes = 0
            found[on, length] = list(
                generation.tokens(
                    arranged, config, prompt, Options(length, sampling, seed=4, logprobs=True, look_up=on)
                )
            )
            assert len(found[on, length]) == length
            assert [token.finish for token in found[on, length]] == [None] * (length - 1) + ["length"]
        found[on, "passes"] = passes
        eos = found[False, 250][60].id
        found[on, "eos"] = list(
            generation.tokens(arranged, config, prompt, Options(250, sampling, eos, seed=4, logprobs=True, look_up=on))
        )
        assert found[on, "eos"][-1].finish == "stop"
    for case in (1, 2, 7, 250, "eos"):
        assert [token.id for token in found[True, case]] == [token.id for token in found[False, case]]
        np.testing.assert_allclose(
            [token.logprob for token in found[True, case]], [token.logprob for token in found[False, case]], atol=1e-4
        )
    if weights is copying_params and sampling is GREEDY and not config.differences():  # they repeat themselves in GPT-2
        assert found[True, "passes"] < found[False, "passes"] / 2


def test_a_draft_is_what_followed_the_same_tokens() -> None:
    drafts = Drafts()
    assert drafts.propose([1, 2, 3, 4, 5], 9) == []
    assert drafts.propose([1, 2, 3, 4, 5, 1, 2, 3], 9) == [4, 5, 1]
    assert drafts.propose([1, 2, 3, 4, 5, 1, 2, 3, 4], 2) == [5, 1]
    assert Drafts().propose([8, 8], 9) == [8, 8, 8]
    assert Drafts().propose([8, 8], 0) == []
    assert Drafts().propose([1, 2, 8, 2, 3, 1, 2], 1) == [8]  # two tokens are better evidence than the last alone


def test_a_long_draft_follows_from_the_longest_evidence_only() -> None:
    drafts = Drafts()
    drafts.propose([8] * 10, 99)
    drafts.report(3, 3)
    assert len(drafts.propose([8] * 10 + [1, 2, 8], 99)) == 3
    assert len(drafts.propose([8] * 10 + [1, 2, 8, 8, 8], 99)) == 7


def test_drafts_that_come_true_grow_and_others_become_rare() -> None:
    drafts, seen = Drafts(), [8] * 10
    sizes = []
    for _ in range(4):
        sizes.append(len(drafts.propose(seen, 99)))
        drafts.report(sizes[-1], sizes[-1])
    assert sizes == [3, 7, LONG, LONG]
    drafts.report(LONG, 4)
    assert len(drafts.propose(seen, 99)) == 3
    proposed = 0
    for _ in range(1000):
        draft = drafts.propose(seen, 99)
        proposed += bool(draft)
        drafts.report(len(draft), 0)
    assert proposed < len(NGRAMS) * (1000 / PATIENCE + 10)
