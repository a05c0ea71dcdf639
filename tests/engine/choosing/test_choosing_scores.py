"""Prompt and choice as tokens, and scores, against log-probabilities of whole passes."""

import random

import numpy as np
import pytest
from pg_gpt2.core import gpt2
from pg_gpt2.core.config import GPT2Config
from pg_gpt2.core.tape import Eager
from pg_gpt2.errors import InvalidParameter, NullNotAllowed
from pg_gpt2.fast import layout
from pg_gpt2.generation.choosing import NORMALIZATIONS, Chooser

from tests.engine.choosing.questions import (
    CONFIG,
    LABELS,
    TOKENIZER,
    arranged,
    choices_of,
    encode_pair,
    models,
)
from tests.engine.small_models import random_params


def test_prompt_and_choice_are_split_as_lm_evaluation_harness_does() -> None:
    source = random.Random(1)
    pieces = [
        "it",
        "'",
        "l",
        "ve",
        " ",
        "  ",
        "\n",
        "yes",
        "the",
        "1",
        "9",
        "!",
        "é",
        "日",
        "😀",
        "\x1c",
        "\xa0",
        ".",
        "s",
    ]
    config = GPT2Config(n_layer=1, n_head=1, d_model=8, n_positions=1000, vocab=CONFIG.vocab)
    refused = 0
    for _ in range(3000):
        prompt = "".join(source.choices(pieces, k=source.randrange(8)))
        choice = "".join(source.choices(pieces, k=source.randrange(1, 4)))
        context, tokens = encode_pair(prompt, choice)
        choices = choices_of([choice], config)
        if not tokens:
            with pytest.raises(InvalidParameter, match="no token of its own"):
                choices.asked(prompt)
            refused += 1
            continue
        (question,), _, counts, cut = choices.asked(prompt)
        assert (question.ids, question.trie.tokens.tolist(), counts.tolist(), cut) == (
            context,
            tokens,
            [len(tokens)],
            0,
        )
    assert 10 < refused < 300


def test_a_long_word_at_the_prompts_end_is_found() -> None:
    prompt = "one two " + "x" * 5000
    (question,), *_ = choices_of(["y"], GPT2Config(1, 1, 8, 9000, CONFIG.vocab)).asked(prompt)
    assert question.ids == TOKENIZER.encode(prompt)
    assert TOKENIZER.encode(prompt + "y")[len(question.ids) :] == question.trie.tokens.tolist()


@pytest.mark.parametrize(
    ("texts", "error", "says"),
    [
        (["a", None], NullNotAllowed, "choice 2 is null"),
        (["", "a"], InvalidParameter, "choice 1 is empty"),
        (["a", "a b " * 50], InvalidParameter, r"'a b a b .*\.\.\.' has 1\d\d tokens, more than the window of 48"),
    ],
)
def test_what_cannot_be_chosen_is_refused_at_once(texts: list[str], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        choices_of(texts)


def test_an_unknown_normalization_is_refused() -> None:
    weights = layout.lay_out(random_params(CONFIG), CONFIG)
    with pytest.raises(InvalidParameter, match="normalize must be 'none', 'tokens', 'bytes' or 'prior', not 'length'"):
        Chooser(weights, CONFIG, choices_of(["a"]), "length")


def plain_logprobs(params: dict[str, np.ndarray], config: GPT2Config, ids: list[int], text: list[int]) -> np.ndarray:
    """Of each token of `text` after `ids`, by one pass over both."""
    logits = gpt2.logits(Eager(), params, np.asarray([[*ids, *text[:-1]]]), config)[0, len(ids) - 1 :].astype(
        np.float64
    )
    logits -= logits.max(axis=1, keepdims=True)
    logits -= np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return logits[np.arange(len(text)), text]


def plain_scores(
    params: dict[str, np.ndarray], config: GPT2Config, prompt: str, texts: list[str], normalize: str
) -> tuple[list[float], list[float]]:
    """Log-probabilities and what is compared, choice by choice, with a pass for each."""

    def score(prompt: str, choice: str) -> tuple[float, int]:
        context, tokens = encode_pair(prompt, choice)
        ids = [*context, *tokens][-(config.n_positions + 1) :][:-1]
        found = plain_logprobs(params, config, ids[: len(ids) + 1 - len(tokens)], tokens)
        return float(found.sum()), len(tokens)

    logprobs, values = [], []
    for text in texts:
        logprob, count = score(prompt, text)
        logprobs.append(logprob)
        blanks = prompt[len(prompt.rstrip()) :]
        lengths = {"none": 1, "tokens": count, "bytes": len(text.encode()), "prior": 1}
        less = score("", blanks + text)[0] if normalize == "prior" else 0
        values.append((logprob - less) / lengths[normalize])
    return logprobs, values


PROMPTS = ["the answer is", "the answer is ", "", " ", "it", "can", "the low\n\n", "low lower lowest " * 30]


@models
@pytest.mark.parametrize("normalize", NORMALIZATIONS)
def test_scores_are_those_of_a_pass_over_prompt_and_choice(
    config: GPT2Config, normalize: str, kind: str, kept: int
) -> None:
    params = random_params(config)
    texts = [*LABELS, "lowé", "日本", "low lower lowest " * 3]
    chooser = Chooser(arranged(params, config, kind, "m"), config, choices_of(texts), normalize)
    for prompt in PROMPTS:
        logprobs, values = plain_scores(params, config, prompt, texts, normalize)
        found = chooser.choose(prompt)
        np.testing.assert_allclose(found.logprobs, logprobs, atol=2e-4)
        np.testing.assert_allclose(found.normalized, values, atol=2e-4)
        np.testing.assert_allclose(found.per_character, np.array(logprobs) / [*map(len, texts)], atol=2e-4)
        assert found.tokens.tolist() == [len(encode_pair(prompt, text)[1]) for text in texts]
        assert found.best() == found.ranking()[0] == np.argmax(values)
        assert found.probabilities().sum() == pytest.approx(1)
        assert (found.cut > 0) == (prompt == PROMPTS[-1])


def test_equal_choices_come_in_their_order() -> None:
    weights = layout.lay_out(random_params(CONFIG), CONFIG)
    found = Chooser(weights, CONFIG, choices_of(["no", "yes", "no", "yes", "no"]), "none").choose("the")
    first, second = sorted(([0, 2, 4], [1, 3]), key=lambda places: -found.logprobs[places[0]])
    assert found.ranking().tolist() == [*first, *second]
    assert found.best() == first[0]
    one = Chooser(weights, CONFIG, choices_of(["no"]), "none").choose("the")
    assert one.probabilities().tolist() == [1]


def test_improbable_choices_are_still_in_order() -> None:
    """Their probabilities are all 0."""
    weights = layout.lay_out({k: v * 400 if v.ndim == 2 else v for k, v in random_params(CONFIG).items()}, CONFIG)
    found = Chooser(weights, CONFIG, choices_of(["a b c d e f", "x y z", "é é é é", "1 2 3 4 5"]), "none").choose("the")
    assert np.sort(found.probabilities())[1] == 0
    assert (np.diff(found.logprobs[found.ranking()]) <= 0).all()
