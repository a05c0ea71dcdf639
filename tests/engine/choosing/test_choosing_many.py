"""Many prompts and choices at once: neither company nor what was read before changes a bit, and no more room is taken than
there is."""

import random

import numpy as np
import pytest
from pg_gpt2 import host
from pg_gpt2.core.config import GPT2Config
from pg_gpt2.errors import OutOfMemory
from pg_gpt2.fast import layout
from pg_gpt2.generation import slots
from pg_gpt2.generation.choosing import NORMALIZATIONS, Chooser
from pg_gpt2.generation.decode import read_with_trees
from pg_gpt2.generation.slots import Question, Slots
from pg_gpt2.generation.trees import Trie

from tests.engine.choosing.questions import (
    CONFIG,
    LABELS,
    arranged,
    choices_of,
    encode_pair,
    models,
    random_texts,
    same_bits,
)
from tests.engine.small_models import CONFIGS, random_params


def some_prompts(source: random.Random, count: int) -> list[str | None]:
    """With beginnings in common, of some kinds, long and short, and none."""
    kinds = ["low lower lowest newer " * 6, "newer wider " * 9, "the the low " * 5, ""]
    tails = ["low", "is it ", "the answer is", "", "x" * 20, "\n"]
    found: list[str | None] = [
        source.choice(kinds) + " ".join(source.choices(tails, k=source.randrange(4))) for _ in range(count)
    ]
    return [None if source.random() < 0.1 else prompt for prompt in found]


@same_bits
@pytest.mark.parametrize("normalize", NORMALIZATIONS)
def test_prompts_with_choices_of_their_own_get_the_bits_that_each_gets_alone(normalize: str, kind: str) -> None:
    weights = arranged(random_params(CONFIG), CONFIG, kind, "m")
    source = random.Random(9)
    prompts = some_prompts(source, 40)
    own = [source.sample(LABELS, source.randint(1, 5)) if n % 9 else None for n in range(40)]
    asked = [
        (n, prompt, None if texts is None else choices_of(texts)) for n, (prompt, texts) in enumerate(zip(prompts, own))
    ]
    told = []
    together = Chooser(weights, CONFIG, None, normalize)
    for key, found in together.choose_each_among(asked, lambda key, error: told.append(key)):
        prompt, texts = prompts[key], own[key]
        if prompt is None or texts is None or key in told:
            assert found is None
            continue
        alone = Chooser(weights, CONFIG, choices_of(texts), normalize).choose(prompt)
        for some, other in zip(found, alone):
            np.testing.assert_array_equal(some, other)
    assert len(told) < 10, "most can be answered"


@same_bits
@models
@pytest.mark.parametrize("normalize", ["none", "prior"])
def test_many_prompts_get_the_bits_that_each_gets_alone(
    config: GPT2Config, normalize: str, kind: str, kept: int
) -> None:
    weights = arranged(random_params(config), config, kind, "m")
    prompts = some_prompts(random.Random(7), 60)
    together = Chooser(weights, config, choices_of(LABELS), normalize)
    fresh = arranged(random_params(config), config, kind)  # of which nothing is kept
    keys = []
    for key, found in together.choose_each(enumerate(prompts)):
        keys.append(key)
        prompt = prompts[key]
        if prompt is None:
            assert found is None
            continue
        assert found is not None
        alone = Chooser(fresh, config, choices_of(LABELS), normalize).choose(prompt)
        np.testing.assert_array_equal(found.logprobs, alone.logprobs)
        np.testing.assert_array_equal(found.normalized, alone.normalized)
    assert keys == list(range(60))


def test_a_prompt_that_cannot_be_answered_is_told_and_the_others_go_on() -> None:
    weights = layout.lay_out(random_params(CONFIG), CONFIG)
    chooser = Chooser(weights, CONFIG, choices_of(["'t", "low"]), "none")
    told = []
    prompts = ["the", "is it '", None, "low"]
    found = list(chooser.choose_each(enumerate(prompts), lambda key, error: told.append((key, error.message))))
    expected = [encode_pair(prompt, choice)[1] if prompt else None for prompt in prompts for choice in ("'t", "low")]
    assert [key for key, _ in found] == [0, 1, 2, 3]
    assert [scores is None for _, scores in found] == [not all(expected[2 * n : 2 * n + 2]) for n in range(4)]
    assert [key for key, _ in told] == [n for n in (0, 1, 3) if not all(expected[2 * n : 2 * n + 2])]


def test_common_beginnings_are_read_once_and_passes_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "use_panels", True)
    config = GPT2Config(n_layer=2, n_head=2, d_model=64, n_positions=400, vocab=701)
    weights = layout.lay_out(random_params(config), config)
    rng = np.random.default_rng(1)
    begun = [rng.integers(0, 701, 300).tolist() for _ in range(2)]
    trie = Trie([[1], [2], [3, 4]])
    questions = [Question(begun[n % 2] + rng.integers(0, 701, 20).tolist(), trie) for n in range(40)]
    passes: list[int] = []

    def counted(decoders, texts, trees):
        passes.append(sum(map(len, texts)))
        return read_with_trees(decoders, texts, trees)

    monkeypatch.setattr(slots, "read_with_trees", counted)
    Slots(weights, config).answer(questions)
    assert sum(passes) < 2 * 320 + 38 * 25, "of each kind the beginning is read once"
    assert len(passes) <= 2 + 40 / 7 + 1


def test_a_large_tree_is_read_in_parts(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = CONFIGS[0]
    rng = np.random.default_rng(5)
    weights = arranged(random_params(config), config, kind)
    questions = [Question(rng.integers(0, config.vocab, 30).tolist(), Trie(random_texts(rng, 40, 4, 20))) for _ in "ab"]
    whole = Slots(weights, config).answer(questions)
    monkeypatch.setattr(slots, "PREFILL_ROWS", 16)
    monkeypatch.setattr(slots, "LOGITS_ROWS", 7)
    for one, other in zip(whole, Slots(weights, config).answer(questions)):
        np.testing.assert_allclose(one, other, atol=1e-4)


def test_no_more_slots_are_taken_than_there_is_memory_for(monkeypatch: pytest.MonkeyPatch) -> None:
    config = CONFIGS[0]
    monkeypatch.setattr(layout, "use_panels", True)
    weights = layout.lay_out(random_params(config), config)
    questions = [Question([n, 1, 2, 3], Trie([[1], [2]])) for n in range(6)]
    wanted = Slots(weights, config).answer(questions)
    left = [2]

    def require(size: int, what: str) -> None:
        if what.startswith("keys and values"):
            left[0] -= 1
            if left[0] < 0:
                raise OutOfMemory("no room", hint="")

    monkeypatch.setattr(host, "require_memory", require)
    few = Slots(weights, config)
    for one, other in zip(wanted, few.answer(questions), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)  # other passes
    assert len(few._slots) == 2
    with pytest.raises(OutOfMemory):
        Slots(weights, config).answer(questions)


def test_memory_is_asked_for_before_choices_are_encoded(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(host, "require_memory", lambda size, what: asked.append((size, what)))
    texts = [f"low {n}" for n in range(1000)]
    Chooser(layout.lay_out(random_params(CONFIG), CONFIG), CONFIG, choices_of(texts), "none").choose("the")
    assert asked[0][1] == "1000 choices"
    assert any("logits" in what for _, what in asked)
    assert any("keys and values" in what for _, what in asked)


def test_encoding_many_choices_looks_for_an_interrupt(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = []
    monkeypatch.setattr(host, "check_interrupts", lambda: looks.append(None))
    choices_of([f"low {n}" for n in range(20_000)])
    assert len(looks) > 20


def test_longer_questions_take_no_more_room_than_there_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slots of short texts that are made larger for long ones give up others."""
    config = GPT2Config(n_layer=1, n_head=1, d_model=8, n_positions=1024, vocab=50)
    weights = layout.lay_out(dict(random_params(config)), config)
    rng = random.Random(1)

    def questions(length: int) -> list[Question]:
        trie = Trie([[1], [2]])
        return [Question([rng.randrange(50) for _ in range(length)], trie) for _ in range(64)]

    asked, rooms = Slots(weights, config), []
    answer = asked._answer

    def noted() -> list[np.ndarray]:
        rooms.append(asked._positions())
        return answer()

    monkeypatch.setattr(asked, "_answer", noted)
    asked.answer(questions(10))
    assert len(asked.answer(questions(900))) == 64
    assert max(rooms) <= slots.MOST_POSITIONS
