"""Hugging Face's names for parameters, and names that nobody has."""

import re

import pytest

from tests.server.client.models import PROMPT


def test_hugging_face_names(client):
    options = {"max_tokens": 7, "topk": 3, "topp": 0.7}
    theirs = {"max_new_tokens": 7, "top_k": 3, "top_p": 0.7, "do_sample": True, "num_beams": 1}
    expected = client.generate(PROMPT, seed=1, **options)
    assert client.generate(PROMPT, seed=1, **theirs) == expected
    assert client.generate_batch([PROMPT], seed=1, **theirs) == [expected]
    assert list(client.stream(PROMPT, seed=1, **theirs))[-1].text == expected
    greedy = client.generate(PROMPT, max_tokens=7, temperature=0)
    assert client.generate(PROMPT, max_new_tokens=7, do_sample=False) == greedy


def test_num_beams_searches_beams(client):
    arguments = {"max_tokens": 8, "length_penalty": 0.5, "early_stopping": True}
    best = client.beam_search(PROMPT, beam_width=4, **arguments)[0].text
    assert client.generate(PROMPT, num_beams=4, do_sample=False, **arguments) == PROMPT + best
    assert client.generate(PROMPT, num_beams=4, echo=False, **arguments) == best
    assert client.beam_search(PROMPT, num_beams=4, max_new_tokens=8) == client.beam_search(
        PROMPT, beam_width=4, max_tokens=8
    )


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("generate", {"max_tokens": 64, "max_new_tokens": 5}, "both max_tokens and max_new_tokens"),
        ("stream", {"topk": 50, "top_k": 5}, "both topk and top_k"),
        ("generate_batch", {"topp": 0.95, "top_p": 0.5}, "both topp and top_p"),
        ("beam_search", {"beam_width": 2, "num_beams": 2}, "both beam_width and num_beams"),
        ("generate", {"do_sample": False, "temperature": 0.7}, "temperature 0 means no sampling"),
        ("generate", {"do_sample": True, "temperature": 0}, "temperature 0 means no sampling"),
        ("generate", {"num_beams": 2, "topk": 5}, "topk, which beam search"),
        ("generate", {"num_beams": 2, "seed": 5}, "seed, which beam search"),
        ("generate", {"length_penalty": 2.0}, "length_penalty, which needs num_beams"),
        ("stream", {"num_beams": 2}, "only generate"),
        ("generate_batch", {"num_beams": 2}, "only generate"),
        ("generate", {"temprature": 1.0}, "unexpected keyword argument 'temprature'"),
        ("generate", {"beams": 1}, "unexpected keyword argument 'beams'"),
        ("beam_search", {"temperature": 1.0}, "unexpected keyword argument 'temperature'"),
        ("train", {"source": "SELECT ''", "commit_every": 1}, "source and commit_every"),
        ("train", {"learning_rate": 1.0}, "unexpected keyword argument 'learning_rate'"),
    ],
)
def test_contradicting_or_unknown_names_are_type_errors(client, method, options, message):
    with pytest.raises(TypeError, match=message):
        getattr(client, method)(1 if method == "train" else PROMPT, **options)


def test_what_is_no_parameter_goes_into_options(client):
    greedy = client.generate(PROMPT, max_tokens=8, temperature=0, echo=False)
    found = client.generate(
        PROMPT, max_tokens=8, temperature=0, echo=False, no_repeat_ngram_size=1, bad_words=greedy[:1]
    )
    assert greedy[0] != found[0]
    options = {"suppress_tokens": [3], "sequence_bias": {"er": 2.5}, "logit_bias": {5: -1}, "presence_penalty": 0.5}
    expected = client.generate(PROMPT, seed=1, typical_p=0.9, eos_token=-1, **options)
    assert client.generate_batch([PROMPT], seed=1, typical_p=0.9, eos_token=-1, **options) == [expected]
    assert list(client.stream(PROMPT, seed=1, typical_p=0.9, eos_token=-1, **options))[-1].text == expected
    best = client.beam_search(PROMPT, max_tokens=4, repetition_penalty=1.5, **options)[0].text
    assert client.generate(PROMPT, num_beams=3, max_tokens=4, repetition_penalty=1.5, **options) == PROMPT + best
    for form, fits in (
        ({"regex": "[0-9]{3}"}, "[0-9]{3}"),
        ({"choices": ["12", "345"]}, "12|345"),
        ({"choices": "6"}, "6"),
    ):
        assert re.fullmatch(fits, client.generate(PROMPT, echo=False, **form))
        assert re.fullmatch(fits, client.beam_search(PROMPT, max_tokens=6, **form)[0].text)
    with pytest.raises(TypeError, match="typical_p, which beam search"):
        client.generate(PROMPT, num_beams=3, typical_p=0.9)
