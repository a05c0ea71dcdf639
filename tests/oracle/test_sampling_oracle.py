"""Kept tokens and probabilities beside transformers' logits processors, in the order of its `generate`, on random distributions.

Both compute in float32, and the last bits of a probability differ. So probabilities are compared to a relative 4e-6, and a
case is compared only when no decision hangs on those bits: when no cumulative probability is within 2e-6 of the one at which
top-p cuts, and no probability within a relative 4e-6 of min-p's bound. How many cases remain is part of the test.
"""

import itertools
import math

import numpy as np
import pytest
import torch
from pg_gpt2.generation.processors import CUTS, History
from pg_gpt2.generation.sampling import Sampling, distribution
from transformers import GenerationConfig
from transformers.generation import logits_process as theirs_of
from transformers.generation.logits_process import (
    LogitsProcessor,
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

RELATIVE = 4e-6  # difference of a probability: some roundings of float32, of the exponential and of the sum
MARGIN = 2e-6  # difference of a cumulative probability
STABLE = 16  # torch sorts no more than these by insertion, which keeps the order of equal scores


def processors(how: Sampling) -> LogitsProcessorList:
    """What transformers' `generate` makes of these parameters."""
    made = LogitsProcessorList()
    if how.repetition_penalty != 1:
        made.append(RepetitionPenaltyLogitsProcessor(float(how.repetition_penalty)))
    if how.temperature != 1:
        made.append(TemperatureLogitsWarper(float(how.temperature)))
    if how.topk != 0:
        made.append(TopKLogitsWarper(how.topk))
    if how.topp < 1:
        made.append(TopPLogitsWarper(how.topp))
    if how.min_p > 0:
        made.append(MinPLogitsWarper(how.min_p))
    return made


def theirs(logits: np.ndarray, seen: list[int], how: Sampling) -> np.ndarray:
    """Processed scores [V]; -inf where a token is not kept."""
    scores = torch.from_numpy(logits.copy())[None]
    return processors(how)(torch.tensor([seen], dtype=torch.long), scores)[0].numpy()


def ours(logits: np.ndarray, seen: list[int], how: Sampling) -> np.ndarray:
    """Probabilities [V]; 0 where a token is not kept."""
    ids, probabilities = distribution(how.adjusted(logits, History(seen)), how)
    found = np.zeros(len(logits), np.float32)
    found[ids] = probabilities
    return found


def is_decided(logits: np.ndarray, seen: list[int], how: Sampling) -> bool:
    """Whether top-p and min-p keep the same tokens in whatever way float32 is rounded; computed in float64."""
    scores = how.adjusted(logits, History(seen)).astype(np.float64) / how.temperature
    scores = np.sort(scores)[-how.topk if 0 < how.topk < len(scores) else 0 :]
    p = np.exp(scores - scores[-1])
    p /= p.sum()
    cumulative = np.cumsum(p)
    if how.topp < 1:
        if np.abs(cumulative[:-1] - (1 - how.topp)).min(initial=1) < MARGIN:
            return False
        kept = cumulative > 1 - how.topp
        kept[-1] = True
        p = p[kept]
    return how.min_p in (0, 1) or bool(np.abs(p / p[-1] / how.min_p - 1).min() > RELATIVE)


def compare(logits: np.ndarray, seen: list[int], how: Sampling) -> None:
    """Kept tokens and probabilities agree, but for which of several tokens with the same score top-p keeps.

    There transformers follows torch.sort, which leaves the order of equal scores open; how many are kept must agree.
    """
    scores = theirs(logits, seen, how)
    expected = torch.from_numpy(scores).softmax(-1).numpy()
    penalized = how.adjusted(logits, History(seen))
    ids, probabilities = distribution(penalized, how)
    assert probabilities.dtype == np.float32
    assert ids.tolist() == sorted(set(ids.tolist()))
    ids, probabilities = ids[logits[ids] > -math.inf], probabilities[logits[ids] > -math.inf]
    kept = np.flatnonzero(scores > -math.inf)
    np.testing.assert_array_equal(np.sort(penalized[ids]), np.sort(penalized[kept]))
    np.testing.assert_allclose(np.sort(probabilities), np.sort(expected[kept]), rtol=RELATIVE, atol=1e-12)
    if len(logits) <= STABLE or len(set(penalized.tolist())) == len(logits):
        assert ids.tolist() == kept.tolist()
    same = np.intersect1d(ids, kept)
    np.testing.assert_allclose(ours(logits, seen, how)[same], expected[same], rtol=RELATIVE, atol=1e-12)


def random_logits(rng: np.random.Generator, size: int, kind: str) -> np.ndarray:
    logits = rng.normal(size=size) * rng.choice([0.01, 1, 4, 30])
    if kind == "ties":
        logits = np.round(logits)
    elif kind == "excluded":
        logits[rng.random(size) < 0.4] = -np.inf
        logits[rng.integers(size)] = rng.normal()
    elif kind == "zeros":
        logits[rng.random(size) < 0.3] = rng.choice([0.0, -0.0])
    return logits.astype(np.float32)


def random_sampling(rng: np.random.Generator, size: int) -> Sampling:
    pick = rng.choice
    return Sampling(
        temperature=float(pick([0.01, 0.3, 0.7, 1, 1, 1.5, 10])),
        topk=int(pick([0, 0, 1, 2, 5, 50, size - 1 or 1, size, size + 7])),
        topp=float(pick([0, 1e-4, 0.1, 0.5, 0.9, 0.95, 0.999, 1, 1, rng.random()])),
        repetition_penalty=float(pick([1, 1, 0.5, 1.2, 5])),
        min_p=float(pick([0, 0, 0.01, 0.1, 0.7, 1, rng.random()])),
    )


@pytest.mark.parametrize("kind", ["normal", "ties", "excluded", "zeros"])
def test_kept_sets_and_probabilities_equal_transformers(kind: str) -> None:
    rng = np.random.default_rng(len(kind))
    cases, compared = 1000, 0
    for _ in range(cases):
        size = int(rng.choice([1, 2, 3, 7, 50, 300, 2000]))
        logits, how = random_logits(rng, size, kind), random_sampling(rng, size)
        seen = rng.integers(0, size, rng.integers(1, 20)).tolist()
        if is_decided(logits, seen, how):
            compare(logits, seen, how)
            compared += 1
    assert compared > 0.95 * cases


def test_at_the_size_of_gpt2s_vocabulary() -> None:
    rng = np.random.default_rng(0)
    compared = 0
    for topk, topp, min_p in itertools.product((0, 50), (0.8, 1.0), (0.0, 0.02)):
        logits, seen = random_logits(rng, 50257, "normal"), rng.integers(0, 50257, 200).tolist()
        how = Sampling(0.9, topk, topp, 1.3, min_p)
        if is_decided(logits, seen, how):
            compare(logits, seen, how)
            compared += 1
    assert compared >= 6


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 8, 10, 100, 1000])
@pytest.mark.parametrize("topp", [0, 0.25, 0.5, 0.9, 0.95, 1])
def test_tokens_that_all_tie(size: int, topp: float) -> None:
    """Here every bit agrees, exp(0) being 1 and the sums being of equal numbers: no margin is needed."""
    for how in (Sampling(1, 0, topp), Sampling(1, 2, topp), Sampling(1, 0, topp, min_p=1.0)):
        compare(np.full(size, 3.25, np.float32), [0], how)


@pytest.mark.parametrize("topk", [1, 2, 3, 4, 5])
def test_ties_at_the_kth_token_are_all_kept(topk: int) -> None:
    compare(np.array([1, 3, 2, 2, 2], np.float32), [0], Sampling(1, topk, 1))


@pytest.mark.parametrize(("topk", "penalty"), [(0, 2.0), (1, 1.0), (2, 2.0), (9, 0.5)])
def test_infinite_logits_through_penalty_and_top_k(topk: int, penalty: float) -> None:
    """transformers' softmax of +inf is NaN, so only its penalty and top-k can be compared; ours gives +inf everything."""
    logits = np.array([math.inf, -math.inf, 5, -2, math.inf, 0], np.float32)
    seen, how = [0, 1, 2, 3, 3], Sampling(1, topk, 1, penalty)
    scores = theirs(logits, seen, how)
    penalized = how.adjusted(logits, History(seen))
    ids, probabilities = distribution(penalized, how)
    kept = scores > -math.inf
    np.testing.assert_array_equal(penalized[kept], scores[kept])
    assert [i for i in ids if logits[i] > -math.inf] == np.flatnonzero(kept).tolist()
    assert {int(i): float(p) for i, p in zip(ids, probabilities, strict=True) if p} == {0: 0.5, 4: 0.5}


@pytest.mark.parametrize("temperature", [1e-4, 1e-10, 1e-30, 1e-37, 1e-45, 1e-100, 1e-300])
def test_temperatures_next_to_zero_are_greedy(temperature: float) -> None:
    """transformers' scores overflow to NaN near 1e-37; ours go on to the limit, which is greedy."""
    logits = np.array([1, 7, -3, 6.9, 7], np.float32)
    found = ours(logits, [0], Sampling(temperature, 0, 1))
    assert found.tolist() == [0, 0.5, 0, 0, 0.5]
    assert ours(logits[:4], [0], Sampling(temperature)).tolist() == [0, 1, 0, 0]
    if temperature >= 1e-30:
        compare(logits, [0], Sampling(temperature, 0, 1))


# ---- the other options, each beside the processor of its name

EOS = 7
PROMPT, SAID = [4, 2, 3, 2, 3, 5], [2, 9, 9, 2]  # what was read, and what was said since
SEQUENCES = (
    ((3,), 1.5),
    ((9, 2), -2.0),
    ((9, 2, 8), 4.0),
    ((2, 8), 0.25),
    ((8,), 0.125),
    ((1, 2), 3.0),
    ((2,) * 40, 1.0),
)


def vllm_penalties(ids: torch.Tensor, scores: torch.Tensor, frequency: float, presence: float) -> torch.Tensor:
    """`apply_penalties` of vllm/model_executor/layers/utils.py, over what was said."""
    counts = torch.bincount(ids[0, len(PROMPT) :], minlength=scores.shape[1])[None]
    return scores - frequency * counts - presence * (counts > 0)


def vllm_biases(ids: torch.Tensor, scores: torch.Tensor, biases: tuple[tuple[int, float], ...]) -> torch.Tensor:
    """`LogitBiasLogitsProcessor` of vllm/v1/sample/logits_processor/builtin.py."""
    scores = scores.clone()
    scores[0, [token for token, _ in biases]] += torch.tensor([number for _, number in biases])
    return scores


ADJUSTMENTS = [  # an option, a value of it, and what of theirs gets that value
    ("sequence_bias", SEQUENCES, lambda v: theirs_of.SequenceBiasLogitsProcessor(dict(v))),
    ("logit_bias", ((5, 2.5), (0, -100.0)), lambda v: lambda ids, scores: vllm_biases(ids, scores, v)),
    ("repetition_penalty", 1.3, RepetitionPenaltyLogitsProcessor),
    ("frequency_penalty", 0.7, lambda v: lambda ids, scores: vllm_penalties(ids, scores, v, 0)),
    ("presence_penalty", -1.3, lambda v: lambda ids, scores: vllm_penalties(ids, scores, 0, v)),
    *[("no_repeat_ngram_size", size, theirs_of.NoRepeatNGramLogitsProcessor) for size in (1, 2, 3, 10, 11, 12)],
    (
        "bad_words",
        ((3,), (EOS,), (9, 2, 8), (2, 6), (1, 1)),
        lambda v: theirs_of.NoBadWordsLogitsProcessor([list(ids) for ids in v], EOS),
    ),
    *[
        ("min_new_tokens", least, lambda v: theirs_of.MinNewTokensLengthLogitsProcessor(len(PROMPT), v, EOS))
        for least in (1, 4, 5)
    ],
    ("suppress_tokens", (0, 5), lambda v: theirs_of.SuppressTokensLogitsProcessor(list(v))),
]
WARPERS = [
    *[("topk", most, TopKLogitsWarper) for most in (1, 3)],
    *[("topp", mass, TopPLogitsWarper) for mass in (0.2, 0.97)],
    *[("min_p", part, MinPLogitsWarper) for part in (0.01, 0.4)],
    *[("typical_p", mass, theirs_of.TypicalLogitsWarper) for mass in (0.01, 0.2, 0.9, 0.999)],
    *[("epsilon_cutoff", least, theirs_of.EpsilonLogitsWarper) for least in (1e-4, 0.02, 0.4, 0.999)],
    *[("eta_cutoff", least, theirs_of.EtaLogitsWarper) for least in (1e-4, 0.02, 0.4, 0.999)],
]


@pytest.mark.parametrize(("name", "value", "make"), ADJUSTMENTS)
@pytest.mark.parametrize("kind", ["normal", "ties", "excluded", "zeros"])
def test_a_processor_of_scores_equals_transformers(name: str, value: object, make: object, kind: str) -> None:
    rng = np.random.default_rng(len(name))
    how = Sampling(**{name: value})
    for seen in range(len(SAID) + 1):
        history = History(PROMPT, EOS, SAID[:seen])
        for size in (10, 11, 300):
            logits = random_logits(rng, size, kind)
            processor = make(value)  # type: ignore[operator] # anew: sequences keep the size of the vocabulary
            expected = processor(torch.tensor([[*history.ids]]), torch.from_numpy(logits.copy())[None])[0].numpy()
            found = how.adjusted(logits, history)
            assert found.dtype == np.float32
            np.testing.assert_allclose(
                found, expected, rtol=2e-7, atol=1e-7 * float(np.abs(logits[np.isfinite(logits)]).max())
            )


@pytest.mark.parametrize(("name", "value", "make"), WARPERS)
@pytest.mark.parametrize("kind", ["normal", "excluded"])
def test_a_cut_equals_transformers(name: str, value: float, make: type, kind: str) -> None:
    """Where rounding does not decide: ours is the same for values of the option next to this one."""
    rng = np.random.default_rng(len(name))
    compared = 0
    for size in (1, 2, 10, 50, 300, 3000) * 10:
        logits = random_logits(rng, size, kind)
        logits -= logits.max()
        kept = CUTS[name](logits, value)
        near = [CUTS[name](logits, value * part) for part in (1 - 1e-5, 1 + 1e-5)] if isinstance(value, float) else []
        if not all(np.array_equal(kept, other) for other in near):
            continue
        compared += 1
        scores = make(value)(torch.zeros((1, 1), dtype=torch.long), torch.from_numpy(logits)[None])[0].numpy()
        assert kept[logits[kept] > -math.inf].tolist() == np.flatnonzero(scores > -math.inf).tolist()
    assert compared >= 50


def test_all_together_have_the_order_of_transformers_generate() -> None:
    """The list that its `generate` makes of a configuration with all of them, beside ours."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(n_layer=1, n_head=1, n_embd=8, n_positions=32, vocab_size=300)
    asked = GenerationConfig(
        do_sample=True,
        temperature=0.8,
        top_k=60,
        top_p=0.97,
        min_p=1e-4,
        typical_p=0.9,
        epsilon_cutoff=1e-3,
        eta_cutoff=2e-3,
        repetition_penalty=1.2,
        no_repeat_ngram_size=2,
        bad_words_ids=[[8], [9, 2, 6]],
        sequence_bias=[[[3], 1.5], [[2, 8], 9.0]],
        suppress_tokens=[0, 1],
        min_new_tokens=6,
        eos_token_id=EOS,
        pad_token_id=EOS,
    )
    model = GPT2LMHeadModel(config)
    model._prepare_special_tokens(asked, device="cpu")
    listed = model._get_logits_processor(
        asked, input_ids_seq_length=len(PROMPT), logits_processor=LogitsProcessorList()
    )
    assert len(listed) == 13
    assert all(isinstance(processor, LogitsProcessor) for processor in listed)
    how = Sampling(
        *(0.8, 60, 0.97, 1.2, 1e-4, 0.9, 1e-3, 2e-3, 2, 6),
        suppress_tokens=(0, 1),
        bad_words=((8,), (9, 2, 6)),
        sequence_bias=(((3,), 1.5), ((2, 8), 9.0)),
    )
    rng = np.random.default_rng(0)
    history = History(PROMPT, EOS, SAID)
    for _ in range(200):
        logits = (2 * rng.normal(size=300)).astype(np.float32)
        scores = listed(torch.tensor([[*history.ids]]), torch.from_numpy(logits.copy())[None])[0].numpy()
        ids, probabilities = distribution(how.adjusted(logits, history), how)
        assert ids.tolist() == np.flatnonzero(scores > -math.inf).tolist()
        expected = torch.from_numpy(scores).softmax(-1).numpy()[ids]
        np.testing.assert_allclose(probabilities, expected, rtol=RELATIVE)
