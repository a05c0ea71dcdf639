"""Choosing, against log-probabilities of whole passes; and that neither company nor what was read before changes a bit."""

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pg_gpt2 import host
from pg_gpt2.core import gpt2, op
from pg_gpt2.core.config import Adapter, GPT2Config
from pg_gpt2.core.tape import Eager
from pg_gpt2.errors import InvalidParameter, NullNotAllowed, OutOfMemory
from pg_gpt2.fast import layout
from pg_gpt2.formats.vocab import parse_merges, parse_vocab
from pg_gpt2.generation import prefixes, slots
from pg_gpt2.generation.choosing import NORMALIZATIONS, Choices, Chooser
from pg_gpt2.generation.decode import Decoder, logits_of, read_with_trees
from pg_gpt2.generation.slots import Question, Slots
from pg_gpt2.generation.trees import Tree, Trie
from pg_gpt2.tokenizer.bpe import Tokenizer

from tests.engine.small_models import CONFIGS, name_of, random_params

GOLDEN = Path(__file__).parents[1] / "golden" / "tokenizer" / "learned"
TOKENIZER = Tokenizer.from_strings(
    parse_vocab((GOLDEN / "vocab.json").read_bytes()), parse_merges((GOLDEN / "merges.txt").read_bytes())
)
CONFIG = GPT2Config(n_layer=2, n_head=2, d_model=64, n_positions=48, vocab=max(TOKENIZER.tokens) + 1)
ADAPTED = replace(CONFIG, adapter=Adapter(r=3, targets=("attn.c_attn", "attn.c_proj")))
models = pytest.mark.parametrize("config", [CONFIG, ADAPTED], ids=name_of)
EOS = TOKENIZER.eos_token_id or 0
LABELS = ["yes", "no", "maybe not", "yesterday", "no one", "it's", "no one else", "'t"]


@pytest.fixture(params=["panels", "rows", "plain"])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The three ways of keeping keys and values."""
    monkeypatch.setattr(layout, "use_panels", request.param == "panels")
    op.use_fast(request.param != "plain")
    yield request.param
    op.use_fast(True)


# Where this CPU and BLAS do not keep the rows of panels alone, nothing asks for panels but these tests.
same_bits = pytest.mark.parametrize(
    "kind", ["panels", "rows", "plain"] if layout.in_panels(CONFIG) else ["rows", "plain"], indirect=True
)


@pytest.fixture(params=[0, 1 << 30], ids=["", "prefixes"])
def kept(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Without the prefix cache, and with it."""
    monkeypatch.setattr(host, "prefix_room", lambda: request.param)
    yield request.param
    prefixes.session.clear()


def arranged(params: dict[str, np.ndarray], config: GPT2Config, kind: str, identity: object = None):
    weights = layout.DecoderWeights(params) if kind == "plain" else layout.lay_out(dict(params), config)
    weights.identity = identity
    return weights


def plain_logprobs(params: dict[str, np.ndarray], config: GPT2Config, ids: list[int], text: list[int]) -> np.ndarray:
    """Of each token of `text` after `ids`, by one pass over both."""
    logits = gpt2.logits(Eager(), params, np.asarray([[*ids, *text[:-1]]]), config)[0, len(ids) - 1 :].astype(
        np.float64
    )
    logits -= logits.max(axis=1, keepdims=True)
    logits -= np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return logits[np.arange(len(text)), text]


def random_texts(rng: np.random.Generator, count: int, vocab: int = 3, length: int = 7) -> list[list[int]]:
    """Many begin alike, and some are the beginning of others."""
    return [rng.integers(0, vocab, rng.integers(1, length)).tolist() for _ in range(count)]


# ---- the tree


@pytest.mark.parametrize("seed", range(5))
def test_a_trie_has_a_row_for_each_beginning_that_something_follows(seed: int) -> None:
    texts = random_texts(np.random.default_rng(seed), 60)
    trie = Trie(texts)
    paths: list[tuple[int, ...]] = [()]
    for token, parent in zip(trie.tree.tokens.tolist(), trie.tree.parents.tolist()):
        paths.append((*paths[parent + 1], token))
    beginnings = {tuple(text[:length]) for text in texts for length in range(len(text))}
    assert len(set(paths)) == len(paths) == len(trie)
    assert set(paths) == beginnings
    assert (np.diff(trie.rows) >= 0).all()
    weights = np.random.default_rng(seed).standard_normal(len(trie.rows))
    by_place = {(paths[row], token): 0.0 for row, token in zip(trie.rows.tolist(), trie.tokens.tolist())}
    by_place |= {place: float(n) for n, place in enumerate(by_place)}
    values = [by_place[paths[row], token] for row, token in zip(trie.rows.tolist(), trie.tokens.tolist())]
    wanted = [sum(by_place[tuple(text[:i]), token] for i, token in enumerate(text)) for text in texts]
    np.testing.assert_array_equal(trie.add_up(np.array(values)), wanted)
    assert len(weights) == sum(map(len, texts))


def test_a_tree_knows_its_depths_and_who_follows_whom() -> None:
    tree = Tree([5, 6, 7, 8], [-1, 0, -1, 1])
    assert tree.depths.tolist() == [0, 1, 0, 2]
    assert (tree.mask == 0).astype(int).tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [1, 1, 0, 1]]


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_parts_of_a_tree_have_what_leads_to_them(size: int) -> None:
    trie = Trie(random_texts(np.random.default_rng(3), 60, length=12))
    found = []
    for part, leading in trie.parts(size):
        assert len(part) - leading <= size
        paths: list[tuple[int, ...]] = []
        for token, parent in zip(part.tokens.tolist(), part.parents.tolist()):
            paths.append((*(paths[parent] if parent >= 0 else ()), token))
        found += paths[leading:]
    whole: list[tuple[int, ...]] = [()]
    for token, parent in zip(trie.tree.tokens.tolist(), trie.tree.parents.tolist()):
        whole.append((*whole[parent + 1], token))
    assert found == whole[1:]


@pytest.mark.parametrize("config", CONFIGS, ids=name_of)
@pytest.mark.parametrize("length", [1, 63, 64, 70])
def test_a_tree_is_read_as_each_of_its_texts_is(config: GPT2Config, kind: str, length: int) -> None:
    rng = np.random.default_rng(length)
    params = random_params(config)
    ids = rng.integers(0, config.vocab, length).tolist()
    texts = random_texts(rng, 20)
    trie = Trie(texts)
    decoder = Decoder(arranged(params, config, kind), config, length)
    (rows,) = read_with_trees([decoder], [ids], [trie.tree])
    for text in texts:
        wanted = gpt2.logits(Eager(), params, np.asarray([[*ids, *text]]), config)[0, length - 1 : -1]
        path = [0]
        for token in text[:-1]:
            children = np.flatnonzero((trie.tree.parents == path[-1] - 1) & (trie.tree.tokens == token))
            path.append(1 + int(children[0]))
        found = logits_of(decoder.params, rows[path])
        np.testing.assert_allclose(found, wanted, atol=3e-5 * float(np.abs(wanted).max()))


def test_a_tree_changes_nothing_of_what_was_read(kind: str) -> None:
    config = CONFIGS[0]
    weights = arranged(random_params(config), config, kind)
    ids = np.random.default_rng(1).integers(0, config.vocab, 90).tolist()
    one, other = Decoder(weights, config, 96), Decoder(weights, config, 96)
    for decoder in (one, other):
        decoder.read(ids[:70])
    tree = Trie(random_texts(np.random.default_rng(2), 30)).tree
    first = one.feed_tree(tree).copy()
    assert one.length == 70
    assert list(one.ids) == ids[:70]
    np.testing.assert_array_equal(one.feed_tree(tree), first)
    np.testing.assert_array_equal(one.feed(ids[70:]), other.feed(ids[70:]))


def test_a_tree_beyond_the_window_is_refused(kind: str) -> None:
    config = CONFIGS[1]
    decoder = Decoder(arranged(random_params(config), config, kind), config, config.n_positions)
    decoder.read([1] * (config.n_positions - 2))
    decoder.feed_tree(Tree([1, 2, 3], [-1, 0, 0]))
    with pytest.raises(InvalidParameter, match="does not fit the model"):
        decoder.feed_tree(Tree([1, 2, 3], [-1, 0, 1]))


# ---- prompt and choice as tokens


def encode_pair(prompt: str, choice: str) -> tuple[list[int], list[int]]:
    """As `_encode_pair` of lm-evaluation-harness, and what its `loglikelihood` does about an empty prompt."""
    blanks = len(prompt) - len(prompt.rstrip())
    if blanks:
        prompt, choice = prompt[:-blanks], prompt[-blanks:] + choice
    if not prompt:
        return [EOS], TOKENIZER.encode(choice)
    context = TOKENIZER.encode(prompt)
    return context, TOKENIZER.encode(prompt + choice)[len(context) :]


def choices_of(texts: list[str], config: GPT2Config = CONFIG) -> Choices:
    return Choices(texts, TOKENIZER, config, "m", lambda what: EOS)


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


# ---- scores


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


# ---- many prompts


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
