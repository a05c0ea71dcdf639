"""More prompts than streams that go on together: where one ends another begins, and each gets what it gets alone."""

import numpy as np
import pytest
from pg_gpt2.errors import InvalidParameter
from pg_gpt2.fast import layout
from pg_gpt2.generation import batch, decode, generate
from pg_gpt2.generation.generate import Options
from pg_gpt2.generation.sampling import Sampling

from . import batches
from .small_models import ARRANGED, GREEDY, random_params


@pytest.fixture(params=ARRANGED, ids=str)
def model(request, monkeypatch):
    config, panels = request.param
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
    found = batches.outcomes(arranged, config, prompts, options, together)
    assert sorted(found) == list(range(len(prompts)))
    for number, (prompt, option) in enumerate(zip(prompts, options)):
        alone = list(generate.tokens(arranged, config, prompt, option))
        assert [token.id for token in found[number]] == [token.id for token in alone]


@pytest.mark.parametrize("together", [1, 2, 5, 64])
def test_samples_of_a_prompt_are_what_their_seeds_give_and_it_is_read_once(model, together, monkeypatch):
    """Also where they begin one after the other, as rooms get free, and one has passed the window meanwhile."""
    config, arranged = model
    prompts = [[1, 2, 3] * 9, [5], [7] * 40]
    jobs = [prompt for prompt in prompts for _ in range(4)]
    options = [Options(6 + 20 * (seed % 4 == 1), Sampling(), None, seed) for seed in range(len(jobs))]
    rows, begun = [], []
    hidden, begin = decode._hidden, batch.begin_together
    monkeypatch.setattr(decode, "_hidden", lambda *a: (rows.append(a[2].size), hidden(*a))[1])
    monkeypatch.setattr(
        batch, "begin_together", lambda d, texts: (begun.extend({*map(tuple, texts)}), begin(d, texts))[1]
    )
    found = batches.outcomes(arranged, config, jobs, options, together)
    assert sorted(begun) == sorted(map(tuple, prompts))
    if decode.kind_of_cache(arranged) is decode.BlockCache:  # elsewhere some are decoded once more, alone
        assert sum(rows) <= sum(map(len, prompts)) + sum(option.max_tokens for option in options)
    for number, (prompt, option) in enumerate(zip(jobs, options)):
        alone = [token.id for token in generate.tokens(arranged, config, prompt, option)]
        assert [token.id for token in found[number]] == alone


def test_samples_after_those_that_passed_the_window_read_their_prompt_again(model):
    config, arranged = model
    prompt = list(range(20))
    options = [Options(config.n_positions, Sampling(), None, seed) for seed in range(3)]
    found = batches.outcomes(arranged, config, [prompt] * 3, options, 1)
    for number, option in enumerate(options):
        alone = [token.id for token in generate.tokens(arranged, config, prompt, option)]
        assert [token.id for token in found[number]] == alone


def test_where_one_text_ends_another_begins_so_that_passes_stay_full(model, monkeypatch):
    config, arranged = model
    options = [Options(1 + (7 * seed) % 23, GREEDY) for seed in range(60)]
    together = []
    step = batch.step_together
    monkeypatch.setattr(batch, "step_together", lambda d, tokens: (together.append(len(d)), step(d, tokens))[1])
    batches.outcomes(arranged, config, [[1, 2]] * 60, options, 8)
    assert sum(together) == sum(option.max_tokens - 1 for option in options)
    tokens, longest = sum(option.max_tokens for option in options), max(option.max_tokens for option in options)
    assert len(together) <= tokens / 8 + longest, "eight texts say something at each step, until none waits"


def test_texts_that_come_while_others_go_on_are_what_they_are_alone(model):
    config, arranged = model
    random = np.random.default_rng(4)
    prompts = [random.integers(0, config.vocab, n).tolist() for n in (4, 70, 1, 30, 9, 60)]
    options = [Options(5 + 6 * (seed % 3), Sampling(), None, seed) for seed in range(len(prompts))]
    several, found = batch.Batch(arranged, config), {}
    for number, (prompt, option) in enumerate(zip(prompts, options)):
        several.add(number, prompt, option, never)
        found |= several.step()
    while len(several):
        found |= several.step()
    for number, (prompt, option) in enumerate(zip(prompts, options)):
        alone = [token.id for token in generate.tokens(arranged, config, prompt, option)]
        assert [token.id for token in found[number]] == alone


def test_what_is_wrong_with_one_prompt_ends_that_one_only(model):
    config, arranged = model
    prompts = [[1, 2], [3], [4, 5, 6]]
    every = tuple(range(config.vocab))
    options = [Options(5, GREEDY), Options(5, Sampling(suppress_tokens=every)), Options(5, GREEDY)]
    found = batches.outcomes(arranged, config, prompts, options, 2)
    assert isinstance(found[1], InvalidParameter)
    assert [len(found[number]) for number in (0, 2)] == [5, 5]
    with pytest.raises(InvalidParameter, match="exclude every token"):
        batches.texts(arranged, config, prompts, options)
