"""More prompts than streams that go on together: where one ends another begins, and each gets what it gets alone."""

import numpy as np
import pytest
from pg_gpt2.errors import InvalidParameter
from pg_gpt2.fast import layout
from pg_gpt2.generation import batch, decode, generate
from pg_gpt2.generation.generate import Options
from pg_gpt2.generation.sampling import Sampling

from .small_models import CONFIGS, GREEDY, random_params


@pytest.fixture(params=[(config, panels) for config in CONFIGS for panels in (True, False)], ids=str)
def model(request, monkeypatch):
    config, panels = request.param
    if panels and not layout.in_panels(config):
        pytest.skip("panels are of no use here")
    monkeypatch.setattr(layout, "use_panels", panels)
    return config, layout.lay_out(random_params(config), config)


def never(token: int) -> bool:
    return False


@pytest.mark.parametrize("together", [1, 3, 7, 64])
def test_each_prompt_gets_what_it_gets_alone(model, together):
    config, arranged = model
    random = np.random.default_rng(2)
    prompts = [random.integers(0, config.vocab, n).tolist() for n in (3, 1, 90, 40, 5, 60, 2, 8, 30)]
    options = [Options(7 + 9 * (seed % 3), Sampling(), seed, seed) for seed in range(len(prompts))]
    options[4] = Options(0)
    found = dict(batch.generate_each(arranged, config, prompts, options, [never] * len(prompts), together))
    assert sorted(found) == list(range(len(prompts)))
    for number, (prompt, option) in enumerate(zip(prompts, options)):
        alone = list(generate.tokens(arranged, config, prompt, option))
        assert [token.id for token in found[number]] == [token.id for token in alone]


@pytest.mark.parametrize("together", [2, 5, 64])
def test_samples_of_a_prompt_are_what_their_seeds_give_and_it_is_read_once(model, together, monkeypatch):
    config, arranged = model
    prompts = [[1, 2, 3] * 9, [5], [7] * 40]
    jobs = [prompt for prompt in prompts for _ in range(4)]
    options = [Options(6, Sampling(), None, seed) for seed in range(len(jobs))]
    rows = []
    hidden = decode._hidden
    monkeypatch.setattr(decode, "_hidden", lambda *a: (rows.append(a[2].size), hidden(*a))[1])
    found = dict(batch.generate_each(arranged, config, jobs, options, [never] * len(jobs), together))
    times = -(-4 // min(together, 4))  # each prompt is read by so many groups of samples
    if decode.kind_of_cache(arranged) is decode.BlockCache:  # elsewhere some are decoded once more, alone
        assert sum(rows) <= times * sum(map(len, prompts)) + len(jobs) * 6
    for number, (prompt, option) in enumerate(zip(jobs, options)):
        alone = [token.id for token in generate.tokens(arranged, config, prompt, option)]
        assert [token.id for token in found[number]] == alone


def test_what_is_wrong_with_one_prompt_ends_that_one_only(model):
    config, arranged = model
    prompts = [[1, 2], [3], [4, 5, 6]]
    every = tuple(range(config.vocab))
    options = [Options(5, GREEDY), Options(5, Sampling(suppress_tokens=every)), Options(5, GREEDY)]
    found = dict(batch.generate_each(arranged, config, prompts, options, [never] * 3, 2))
    assert isinstance(found[1], InvalidParameter)
    assert [len(found[number]) for number in (0, 2)] == [5, 5]
    with pytest.raises(InvalidParameter, match="exclude every token"):
        batch.generate_batch(arranged, config, prompts, options, [never] * 3)
