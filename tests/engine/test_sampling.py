"""Sampling without an oracle: draws follow the distribution, seeds reproduce, ties and limits, and what is refused."""

import json
import math
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from pg_gpt2.core import rng
from pg_gpt2.errors import InvalidParameter, NullNotAllowed
from pg_gpt2.generation.processors import ADJUSTMENTS, CUTS, History, repetition_penalty
from pg_gpt2.generation.sampling import (
    ROUNDING,
    Draws,
    Sampling,
    choose,
    choose_surely,
    distribution,
    is_mostly_decisive,
)
from pg_gpt2.generation.softmax import log_probability, softmax

PLAIN = Sampling(1.0, 0, 1.0)
GREEDY = Sampling(0.0)
NOTHING = History()
GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "processors.json").read_text())


def draws(seed: int, count: int) -> list[float]:
    made = Draws(seed)
    return [made.next() for _ in range(count)]


@pytest.mark.parametrize("seed", [0, 1, -1, 7, 2**32, 2**63 - 1, -(2**63)])
def test_words_are_those_of_numpy(seed):
    wanted = np.random.Philox(key=seed % 2**64).random_raw(1001).tolist()
    assert list(islice(rng.words(seed), 1001)) == wanted
    assert draws(seed, 50) == [(word >> 11) / 2**53 for word in wanted[:50]]


def logits_of(seed: int, size: int) -> np.ndarray:
    return (2 * np.random.default_rng(seed).normal(size=size)).astype(np.float32)


def chi_square(observed: np.ndarray, expected: np.ndarray) -> float:
    return float(((observed - expected) ** 2 / expected).sum())


def chi_square_limit(freedom: int) -> float:
    """What chi-square exceeds once in a million (Wilson and Hilferty; 4.75 is that quantile of the normal distribution)."""
    return freedom * (1 - 2 / (9 * freedom) + 4.75 * math.sqrt(2 / (9 * freedom))) ** 3


# ---- draws


@pytest.mark.parametrize(
    "how",
    [PLAIN, Sampling(), Sampling(0.5, 5, 1.0), Sampling(2.0, 0, 0.7), Sampling(1.0, 0, 1.0, 1.5, 0.05)],
    ids=["plain", "defaults", "top-k", "top-p", "penalty and min-p"],
)
@pytest.mark.parametrize("seed", [0, -3])
def test_draws_follow_the_distribution(how: Sampling, seed: int) -> None:
    """The seeds are fixed, so this passes always or never; the limit is that of one failure in a million seeds."""
    logits, seen, count = logits_of(1, 20), History([3, 7, 7]), 20_000
    ids, probabilities = distribution(how.adjusted(logits, seen), how)
    found = np.bincount([choose(logits, how, draw, seen) for draw in draws(seed, count)], minlength=20)
    assert found.sum() == found[ids].sum() == count
    expected = probabilities.astype(np.float64) / probabilities.sum(dtype=np.float64) * count
    assert expected.min() > 5, "too few expected for chi-square"
    assert chi_square(found[ids], expected) < chi_square_limit(len(ids) - 1)


def test_draws_are_uniform_and_independent_of_the_one_before() -> None:
    numbers = np.array(draws(123, 50_000))
    assert 0 <= numbers.min() <= numbers.max() < 1
    pairs = np.bincount((numbers[:-1] * 8).astype(int) * 8 + (numbers[1:] * 8).astype(int), minlength=64)
    assert chi_square(pairs, np.full(64, len(numbers) / 64)) < chi_square_limit(63)


def test_seeds_reproduce_and_differ() -> None:
    assert draws(7, 50) == draws(7, 50)
    firsts = {seed: draws(seed, 3) for seed in (0, 1, 2, -1, 2**63 - 1, -(2**63))}
    assert len({tuple(numbers) for numbers in firsts.values()}) == len(firsts)


def test_first_draws_of_neighbouring_seeds_are_uniform() -> None:
    """A batch gives its prompts seed, seed + 1, ...: their draws must not resemble each other."""
    numbers = np.array([draws(seed, 1)[0] for seed in range(4000)])
    found = np.bincount((numbers * 16).astype(int), minlength=16)
    assert chi_square(found, np.full(16, 250.0)) < chi_square_limit(15)
    assert abs(np.corrcoef(numbers[:-1], numbers[1:])[0, 1]) < 5 / math.sqrt(4000)


def test_the_stream_is_philox() -> None:
    """Frozen: the same seed must give the same text in later versions, too."""
    assert draws(0, 3) == [0.011546754286331562, 0.24154919656271812, 0.11142585551493822]


@pytest.mark.parametrize("draw", [0.0, 1e-300, 0.5, 1 - 2.0**-53])
def test_every_draw_gives_a_token_of_positive_probability(draw: float) -> None:
    logits = np.array([-math.inf, 0.5, -math.inf, 0.25, -200, -math.inf], np.float32)
    assert choose(logits, PLAIN, draw, NOTHING) in (1, 3)


# ---- greedy


def test_greedy_takes_the_lowest_id_of_a_tie_whatever_the_draw() -> None:
    logits = np.array([1, 5, 2, 5, 5], np.float32)
    assert {choose(logits, GREEDY, draw, NOTHING) for draw in (0.0, 0.5, 0.999)} == {1}


def test_greedy_ignores_top_k_top_p_and_min_p_but_not_the_penalty() -> None:
    logits = np.array([1, 5, 4], np.float32)
    assert choose(logits, Sampling(0.0, 1, 0.1, 1.0, 0.9), 0.9, NOTHING) == 1
    assert choose(logits, Sampling(0.0, repetition_penalty=2.0), 0.0, History([1, 1])) == 2


@pytest.mark.parametrize("temperature", [1e-4, 1e-30, 1e-45, 5e-324])
def test_temperatures_towards_zero_become_greedy(temperature: float) -> None:
    logits = np.array([1, 5, -3, 4.9], np.float32)
    assert {choose(logits, Sampling(temperature, 0, 1.0), draw, NOTHING) for draw in (0.0, 0.5, 0.999)} == {1}


# ---- processors


def test_repetition_penalty_counts_a_token_once_and_pushes_both_signs_down() -> None:
    logits = np.array([2, -2, 2, 0], np.float32)
    assert repetition_penalty(logits, 2.0, History([0, 0, 1, 3])).tolist() == [1, -4, 2, 0]
    assert logits.tolist() == [2, -2, 2, 0]
    assert repetition_penalty(logits, 2.0, NOTHING) is logits


@pytest.mark.parametrize(
    ("how", "kept"),
    [
        (Sampling(1.0, 2, 1.0), [2, 3]),
        (Sampling(1.0, 9, 1.0), [0, 1, 2, 3]),
        (Sampling(1.0, 0, 0.0), [3]),
        (Sampling(1.0, 0, 0.39), [3]),
        (Sampling(1.0, 0, 0.41), [2, 3]),  # the token that crosses p is kept
        (Sampling(1.0, 0, 0.71), [1, 2, 3]),
        (Sampling(1.0, 2, 0.6), [2, 3]),  # 0.4 of the 0.7 that top-k leaves is 0.57
        (Sampling(1.0, 0, 1.0, min_p=0.7), [2, 3]),
        (Sampling(1.0, 0, 1.0, min_p=1.0), [3]),
        (Sampling(0.5, 0, 1.0, min_p=0.3), [2, 3]),  # temperature comes first: 0.2 / 0.4 becomes 0.04 / 0.16
    ],
)
def test_kept_tokens(how: Sampling, kept: list[int]) -> None:
    p = np.array([0.1, 0.2, 0.3, 0.4])
    ids, probabilities = distribution(np.log(p).astype(np.float32), how)
    assert ids.tolist() == kept
    expected = p[kept] ** (1 / how.temperature)
    np.testing.assert_allclose(probabilities, expected / expected.sum(), rtol=1e-6)


@pytest.mark.parametrize(("name", "value", "scores"), GOLDEN["cases"])
def test_processors_give_what_transformers_gave(name: str, value: object, scores: list[float | None]) -> None:
    """Frozen scores; where there is null the token is excluded."""
    how, logits = Sampling(**{name: tuples(value)}), np.array(GOLDEN["logits"], np.float32)
    expected = np.array([-math.inf if score is None else score for score in scores], np.float32)
    if how.adjustments:
        found = how.adjusted(logits, History(GOLDEN["prompt"], GOLDEN["eos"], GOLDEN["said"]))
        np.testing.assert_allclose(found, expected, rtol=2e-7, atol=1e-7)
    else:
        ((cut, value),) = [(cut, value) for known, cut, value in how.cuts if known == name]
        assert cut(logits, value).tolist() == np.flatnonzero(expected > -math.inf).tolist()


def tuples(value: object) -> object:
    """Lists of JSON as a value that was read."""
    return tuple(map(tuples, value)) if isinstance(value, list) else value


def test_processors_are_those_that_were_frozen_and_have_their_order() -> None:
    """The oracle says that it is the one of transformers' `generate`."""
    assert list(dict.fromkeys(name for name, _, _ in GOLDEN["cases"])) == [*ADJUSTMENTS, *CUTS]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_nothing_left_is_an_error(temperature: float) -> None:
    with pytest.raises(InvalidParameter, match="exclude every token"):
        choose(np.zeros(3, np.float32), Sampling(temperature, suppress_tokens=(0, 1, 2)), 0.5, NOTHING)


@pytest.mark.parametrize("how", [PLAIN, Sampling(), Sampling(1.0, 1, 0.0, 2.0, 1.0)])
def test_a_vocabulary_of_one_token(how: Sampling) -> None:
    assert choose(np.array([-7], np.float32), how, 0.999, History([0])) == 0


def test_softmax_shares_between_infinities() -> None:
    assert softmax(np.array([math.inf, 1, math.inf], np.float32)).tolist() == [0.5, 0, 0.5]


def test_log_probability_is_the_plain_log_probability() -> None:
    logits = logits_of(2, 500)
    exact = logits.astype(np.float64)
    assert log_probability(logits, 17) == pytest.approx(exact[17] - np.log(np.exp(exact).sum()), rel=1e-6)


# ---- what rounding could change

SETTINGS = [
    Sampling(temperature, topk, topp, penalty, min_p)
    for temperature in (0.0, 0.3, 1.0, 2.0)
    for topk in (0, 1, 5, 50)
    for topp in (1.0, 0.95, 0.5, 0.0)
    for penalty in (1.0, 1.2, 0.8)
    for min_p in (0.0, 0.1, 1.0)
]


# Options that `choose_surely` knows to be bounded, and one that it does not.
MORE = [
    {},
    {},
    {"epsilon_cutoff": 0.02},
    {"epsilon_cutoff": 0.3},
    {"no_repeat_ngram_size": 1},
    {"min_new_tokens": 9, "suppress_tokens": (0,)},
    {"logit_bias": ((0, 30.0), (1, -1.0)), "repetition_penalty": 1.2},
    {"sequence_bias": (((1,), 50.0), ((0, 1), -3.0)), "bad_words": ((0, 2),)},
    {"presence_penalty": 1.0, "frequency_penalty": -0.5},
    {"typical_p": 0.9},
    {"eta_cutoff": 0.1},
]


def rounding_of(logits: np.ndarray) -> float:
    return ROUNDING * max(1.0, float(np.abs(logits).max()))


def nearly_tied(rng: np.random.Generator) -> np.ndarray:
    """Logits some of which rounding could bring into another order, or nearly."""
    logits = (rng.normal(size=rng.choice([1, 3, 4, 8, 60])) * rng.choice([0.1, 1, 5, 30])).astype(np.float32)
    for _ in range(rng.integers(4)):
        i, j = rng.integers(len(logits), size=2)
        logits[i] = logits[j] + rounding_of(logits) * rng.uniform(-3, 3)
    return logits


def test_two_scores_that_swap_at_the_cut_of_top_p_are_not_decisive() -> None:
    how = Sampling(1.0, 0, 0.92)
    for logits in ([1, 3, 3, 0.999999], [0.999999, 3, 3, 1]):
        assert choose_surely(np.array(logits, np.float32), how, 0.5, NOTHING) is None
    assert choose(np.array([1, 3, 3, 0.999999], np.float32), how, 0.5, NOTHING) == 1
    assert choose(np.array([0.999999, 3, 3, 1], np.float32), how, 0.5, NOTHING) == 2


@pytest.mark.parametrize("seed", range(12))
def test_what_is_decisive_stays_whatever_rounding_does(seed: int) -> None:
    rng = np.random.default_rng(seed)
    decisive = 0
    for n in range(500):
        how, logits, more = SETTINGS[rng.integers(len(SETTINGS))], nearly_tied(rng), MORE[n % len(MORE)]
        if len(logits) > 2:  # the ids of MORE
            how = replace(how, **more)
        seen = History(rng.integers(len(logits), size=3).tolist(), len(logits) - 1, [0] if n % 2 else [])
        if not (how.adjusted(logits, seen) > -math.inf).any():
            continue
        draw = float([rng.random(), 0.0, 1 - 2.0**-53][max(0, n % 10 - 7)])
        surely = choose_surely(logits, how, draw, seen)
        if surely is None:
            continue
        decisive += 1
        assert how.temperature == 0 or (how.typical_p, how.eta_cutoff) == (1, 0)
        error = 0.999 * rounding_of(logits)
        for off in (rng.uniform(-error, error, (2, len(logits))), rng.choice([-error, error], (4, len(logits)))):
            for one in off:
                assert choose((logits + one).astype(np.float32), how, draw, seen) == surely, how
    assert decisive > 300, "most are: what is not is decoded once more, alone"


def test_nearly_all_choices_from_a_plain_distribution_are_decisive() -> None:
    rng = np.random.default_rng(1)
    logits = (3 * rng.normal(size=(5, 300))).astype(np.float32)
    decisive = [
        choose_surely(row, how, rng.random(), History([1, 2])) is not None for how in SETTINGS for row in logits
    ]
    assert np.mean(decisive) > 0.97


def test_what_is_mostly_decisive_is_known_before() -> None:
    """Draws among all of many thousand tokens often are not, nor is anything that is not bounded."""
    rng = np.random.default_rng(1)
    logits = (2 * rng.normal(size=(60, 30000))).astype(np.float32)
    for options, expected in [
        ({"temperature": 0.0}, True),
        ({}, True),
        ({"topk": 0, "topp": 1.0}, False),
        ({"typical_p": 0.9}, False),
    ]:
        how = Sampling(**options)
        assert is_mostly_decisive(how) is expected
        decisive = np.mean([choose_surely(row, how, rng.random(), NOTHING) is not None for row in logits])
        assert decisive > 0.9 if expected else decisive < 0.7


# ---- what is refused


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("temperature", value) for value in (-0.1, math.nan, math.inf)],
        ("topk", -1),
        *[("topp", value) for value in (-0.01, 1.01, math.nan)],
        *[("repetition_penalty", value) for value in (0, -1, math.inf)],
        *[("min_p", value) for value in (-0.01, 1.01, math.nan)],
    ],
)
def test_bad_parameters_are_named_with_their_value(name: str, value: float) -> None:
    with pytest.raises(InvalidParameter, match=f"^{name} must be .*not {value}") as error:
        Sampling(**{name: value})  # type: ignore[arg-type]
    assert error.value.hint


@pytest.mark.parametrize("name", ["temperature", "topk", "topp", "repetition_penalty", "min_p"])
def test_null_parameters_are_named(name: str) -> None:
    with pytest.raises(NullNotAllowed, match=name):
        Sampling(**{name: None})  # type: ignore[arg-type]
