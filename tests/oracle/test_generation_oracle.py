"""Generation and scoring beside transformers, live: greedy text, beam search, perplexity past the window, embeddings.

Weights are random, and spread so that the logits of a position differ. Where the two best candidates are closer than the
rounding of float32 the implementations may part; no such case is among these seeds, which are fixed.
"""

import itertools
import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
import transformers
from pg_gpt2.core import gpt2
from pg_gpt2.core.config import GPT2Config
from pg_gpt2.fast import layout
from pg_gpt2.generation import beam, decode, sampling, scoring
from pg_gpt2.generation import generate as generation

SHAPES = {
    "wide": GPT2Config(n_layer=2, n_head=2, d_model=64, n_positions=96, vocab=300, eos_token_id=299),
    "deep, odd sizes": GPT2Config(n_layer=5, n_head=3, d_model=45, n_positions=80, vocab=1001, eos_token_id=1000),
}
PADDING = 1
shapes = pytest.mark.parametrize("config", SHAPES.values(), ids=list(SHAPES))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Models this small lose by threads, and much on a machine that does other things."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def random_params(config: GPT2Config, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        name: w + (0.15 * rng.normal(size=w.shape)).astype(np.float32)
        for name, w in gpt2.init_params(config, seed).items()
    }


def served(params: dict[str, np.ndarray], config: GPT2Config) -> layout.DecoderWeights:
    """As a session of this machine's server would hold them."""
    return layout.lay_out({name: w.copy() for name, w in params.items()}, config)


def hugging_face(config: GPT2Config, params: dict[str, np.ndarray]) -> transformers.GPT2LMHeadModel:
    model = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            n_layer=config.n_layer,
            n_head=config.n_head,
            n_embd=config.d_model,
            n_positions=config.n_positions,
            vocab_size=config.vocab,
            bos_token_id=config.eos_token_id,
            eos_token_id=config.eos_token_id,
            pad_token_id=0,
        )
    ).eval()
    names = {"transformer.wte.weight": "wte", "transformer.wpe.weight": "wpe"}
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(torch.from_numpy(params[names.get(name, name.removeprefix("transformer."))]))
    return model


def random_ids(config: GPT2Config, count: int, seed: int) -> list[int]:
    return np.random.default_rng(seed).integers(0, config.vocab - 1, count).tolist()


# ---- greedy


def greedy(config: GPT2Config, params: dict[str, np.ndarray], prompt: list[int], eos: int | None) -> list[int]:
    options = generation.Options(64, sampling.Sampling(0.0), eos)
    return [token.id for token in generation.tokens(served(params, config), config, prompt, options)]


@shapes
@pytest.mark.parametrize("seed", range(3))
def test_greedy_continuations_of_64_tokens(config: GPT2Config, seed: int) -> None:
    params, prompt = random_params(config, seed), random_ids(config, 1 + 6 * seed, seed)
    model = hugging_face(config, params)
    mask = torch.ones(1, len(prompt), dtype=torch.long)
    for eos in (None, config.eos_token_id):
        expected = model.generate(
            torch.tensor([prompt]),
            attention_mask=mask,
            max_new_tokens=64,
            do_sample=False,
            eos_token_id=eos,
            pad_token_id=0,
        )
        assert greedy(config, params, prompt, eos) == expected[0, len(prompt) :].tolist()


@shapes
def test_the_end_of_text_token_ends_both_continuations(config: GPT2Config) -> None:
    """The eighth token of the continuation is declared to be the end."""
    params, prompt = random_params(config, 1), random_ids(config, 5, 1)
    free = greedy(config, params, prompt, None)
    eos = free[7]
    expected = hugging_face(config, params).generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, 5, dtype=torch.long),
        max_new_tokens=64,
        do_sample=False,
        eos_token_id=eos,
        pad_token_id=0,
    )
    assert greedy(config, params, prompt, eos) == expected[0, 5:].tolist() == free[: free.index(eos) + 1]


@shapes
@pytest.mark.parametrize("penalty", [0.8, 1.3])
def test_greedy_with_a_repetition_penalty(config: GPT2Config, penalty: float) -> None:
    params, prompt = random_params(config, 2), random_ids(config, 9, 2)
    expected = hugging_face(config, params).generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, 9, dtype=torch.long),
        max_new_tokens=48,
        do_sample=False,
        repetition_penalty=penalty,
        eos_token_id=None,
        pad_token_id=0,
    )
    options = generation.Options(48, sampling.Sampling(0.0, repetition_penalty=penalty))
    found = [token.id for token in generation.tokens(served(params, config), config, prompt, options)]
    assert found == expected[0, 9:].tolist()


@shapes
def test_logits_of_cached_decoding_are_those_of_a_full_pass(config: GPT2Config) -> None:
    """And so the distributions that draws come from: top-k and the others are compared on given logits elsewhere."""
    params, ids = random_params(config, 3), random_ids(config, 60, 3)
    with torch.no_grad():
        expected = hugging_face(config, params)(torch.tensor([ids])).logits[0].numpy()
    decoder = decode.Decoder(served(params, config), config, 60)
    found = [decoder.feed(ids[:20]), *(decoder.feed([token]) for token in ids[20:])]
    np.testing.assert_allclose(found, expected[19:], atol=2e-5 * float(np.abs(expected).max()))


# ---- beam search


@shapes
@pytest.mark.parametrize("width", [2, 4])
@pytest.mark.parametrize("early_stopping", [False, True])
def test_beam_search(config: GPT2Config, width: int, early_stopping: bool) -> None:
    """Order, ids and scores of all beams; end-of-text tokens that occur often, and penalties that favour long and short."""
    ended = 0
    for seed, length_penalty in itertools.product(range(2), (0.0, 1.0, 2.0, -1.0)):
        params, prompt = random_params(config, seed), random_ids(config, 5, seed)
        model = hugging_face(config, params)
        frequent = greedy(config, params, prompt, None)[4]
        for eos in (config.eos_token_id, frequent):
            expected = model.generate(
                torch.tensor([prompt]),
                attention_mask=torch.ones(1, 5, dtype=torch.long),
                num_beams=width,
                num_return_sequences=width,
                max_new_tokens=12,
                length_penalty=length_penalty,
                early_stopping=early_stopping,
                do_sample=False,
                eos_token_id=eos,
                pad_token_id=PADDING,
                return_dict_in_generate=True,
                output_scores=True,
            )
            asked = beam.Beams(width, 12, length_penalty, early_stopping, eos)
            found = beam.beam_search(served(params, config), config, prompt, asked)
            assert len(found) == width
            scores = [float(one.score) for one in found]
            np.testing.assert_allclose(scores, expected.sequences_scores.numpy(), rtol=2e-5, atol=1e-5)
            for one, theirs in zip(found, expected.sequences[:, 5:].tolist(), strict=True):
                ids = list(one.ids)
                assert ids == theirs[: len(ids)]
                assert set(theirs[len(ids) :]) <= {PADDING}
                ended += ids[-1] == eos and len(ids) < 12
    assert ended > 10


def processors(name: str, free: list[int]) -> tuple[dict[str, object], dict[str, object]]:
    """Their option and ours, so that a continuation changes that without it begins with `free`."""
    first, second, third = free[:3]
    cases: dict[str, tuple[dict[str, object], dict[str, object]]] = {
        "suppress_tokens": ({"suppress_tokens": [first]}, {"suppress_tokens": (first,)}),
        "bad_words": (
            {"bad_words_ids": [[first], [second, third]]},
            {"bad_words": ((first,), (second, third))},
        ),
        "sequence_bias": (
            {"sequence_bias": [[[9], 2.0], [[first, 4], 9.5]]},
            {"sequence_bias": (((9,), 2.0), ((first, 4), 9.5))},
        ),
        **{
            name: ({name: value}, {name: value})
            for name, value in {"no_repeat_ngram_size": 2, "min_new_tokens": 6, "repetition_penalty": 1.3}.items()
        },
    }
    chosen = cases.values() if name == "all" else [cases[name]]
    return {k: v for theirs, _ in chosen for k, v in theirs.items()}, {
        k: v for _, ours in chosen for k, v in ours.items()
    }


PROCESSORS = [
    *("suppress_tokens", "bad_words", "sequence_bias", "no_repeat_ngram_size", "min_new_tokens", "repetition_penalty"),
    "all",
]


@shapes
@pytest.mark.parametrize("name", PROCESSORS)
@pytest.mark.parametrize("beams", [1, 3])
def test_processors_in_generation(config: GPT2Config, name: str, beams: int) -> None:
    """Greedily, where they change logits, and with beams, where they change log-probabilities."""
    changed = 0
    for seed in range(3):
        params, prompt = random_params(config, seed), random_ids(config, 7, seed)
        free = greedy(config, params, prompt, None)
        eos = free[4]
        theirs, ours = processors(name, free)
        expected = (
            hugging_face(config, params)
            .generate(
                torch.tensor([prompt]),
                attention_mask=torch.ones(1, 7, dtype=torch.long),
                max_new_tokens=20,
                do_sample=False,
                num_beams=beams,
                num_return_sequences=beams,
                eos_token_id=eos,
                pad_token_id=PADDING,
                **theirs,
            )[:, 7:]
            .tolist()
        )
        how = sampling.Sampling(0.0, **ours)
        if beams == 1:
            options = generation.Options(20, how, eos)
            tokens = generation.tokens(served(params, config), config, prompt, options)
            found = [[token.id for token in tokens]]
        else:
            asked = beam.Beams(beams, 20, eos=eos, sampling=how)
            found = [[*one.ids] for one in beam.beam_search(served(params, config), config, prompt, asked)]
        assert found == [ids[: len(one)] for ids, one in zip(expected, found, strict=True)]
        changed += found[0] != free[: len(found[0])] or free.index(eos) + 1 < len(found[0])
    assert changed


# ---- scoring


def strided_perplexity(model: transformers.GPT2LMHeadModel, ids: list[int], width: int, stride: int) -> float:
    """The loop of Hugging Face's guide "Perplexity of fixed-length models", with its current weighting by tokens."""
    total, count, scored = 0.0, 0, 0
    for start in range(0, len(ids), stride):
        stop = min(start + width, len(ids))
        window = torch.tensor([ids[start:stop]])
        targets = window.clone()
        targets[:, : -(stop - scored)] = -100
        with torch.no_grad():
            mean = model(window, labels=targets).loss
        # The model shifts: the first predicts nothing.
        valid = int((targets != -100).sum()) - int(targets[0, 0] != -100)
        total, count, scored = total + float(mean) * valid, count + valid, stop
        if stop == len(ids):
            break
    return math.exp(total / count)


@shapes
@pytest.mark.parametrize("windows", [0.03, 0.6, 1, 1.3, 1.5, 4.2])
def test_perplexity_slides_as_hugging_faces_guide_does(config: GPT2Config, windows: float) -> None:
    params, ids = random_params(config, 4), random_ids(config, max(2, int(windows * config.n_positions)), 4)
    logprobs, _ = scoring.token_scores(served(params, config), config, ids)
    assert len(logprobs) == len(ids) - 1
    expected = strided_perplexity(hugging_face(config, params), ids, config.n_positions, config.n_positions // 2)
    assert math.exp(-logprobs.mean()) == pytest.approx(expected, rel=2e-5)


@shapes
def test_scores_from_the_start_are_the_loss_after_an_end_of_text_token(config: GPT2Config) -> None:
    """What from_start => true computes."""
    params, text = random_params(config, 8), random_ids(config, 30, 8)
    ids = [config.eos_token_id, *text]
    logprobs, _ = scoring.token_scores(served(params, config), config, ids)
    with torch.no_grad():
        loss = hugging_face(config, params)(torch.tensor([ids]), labels=torch.tensor([ids])).loss
    assert len(logprobs) == len(text)
    assert -logprobs.mean() == pytest.approx(float(loss), rel=2e-5)


@shapes
def test_logprobs_and_ranks(config: GPT2Config) -> None:
    params, ids = random_params(config, 5), random_ids(config, 50, 5)
    with torch.no_grad():
        expected = hugging_face(config, params)(torch.tensor([ids])).logits[0, :-1].double().log_softmax(-1).numpy()
    logprobs, ranks = scoring.token_scores(served(params, config), config, ids)
    chosen = expected[np.arange(49), ids[1:]]
    np.testing.assert_allclose(logprobs, chosen, rtol=2e-5, atol=2e-5)
    # A rank is exact but for tokens whose log-probabilities rounding cannot tell apart.
    lowest = (expected > (chosen + 1e-4)[:, None]).sum(axis=1) + 1
    highest = (expected > (chosen - 1e-4)[:, None]).sum(axis=1)
    assert (lowest <= ranks).all()
    assert (ranks <= highest).all()
    assert (lowest == highest).mean() > 0.5


@shapes
@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_embeddings_are_hidden_states(config: GPT2Config, pooling: str) -> None:
    params, ids = random_params(config, 6), random_ids(config, 40, 6)
    with torch.no_grad():
        states = hugging_face(config, params)(torch.tensor([ids]), output_hidden_states=True).hidden_states
    for layer in (*range(config.n_layer + 1), -1, -config.n_layer - 1, None):
        expected = states[-1 if layer is None else layer][0].numpy()
        expected = expected.mean(axis=0) if pooling == "mean" else expected[-1]
        found = scoring.embedding(served(params, config), config, ids, layer, pooling)
        np.testing.assert_allclose(found, expected, atol=2e-5 * float(np.abs(expected).max()))
