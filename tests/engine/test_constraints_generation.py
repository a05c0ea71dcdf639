"""Generation within constraints: alone, in batches, by beams, with drafts and forced text in one pass, with weights in panels
and in rows: the same tokens, and always a whole text."""

import re
from collections.abc import Iterator

import numpy as np
import pytest
from pg_gpt2.errors import InvalidParameter
from pg_gpt2.fast import layout
from pg_gpt2.fast.layout import DecoderWeights
from pg_gpt2.generation import beam
from pg_gpt2.generation import generate as generation
from pg_gpt2.generation.constraints.constraint import Constraint
from pg_gpt2.generation.decode import Decoder
from pg_gpt2.generation.generate import Options
from pg_gpt2.generation.processors import History, constrain
from pg_gpt2.generation.sampling import Sampling, choose

from tests.engine import batches
from tests.engine.constrained import EOS, allowed, constraint, said, tokenizer
from tests.engine.small_models import CONFIGS, GREEDY, WITH_OPTIONS, random_params

CONFIG = CONFIGS[0]
assert CONFIG.vocab == EOS + 1
LONG = "low lower lowest newer wider " * 12
FORMS: dict[str, str | list[str]] = {
    "a date": r"\d{4}-\d{2}-\d{2}",
    "choices": ["yes", "no", "nowhere", "the lower one", ""],
    "a record": r"\{\"name\": \"[a-z ]{1,8}\", \"age\": \d{1,3}, \"comment\": (\"[^\"\\]{0,9}\"|null)\}",
    "words": r"\w+( \w+)*\.",
    "much that must come": ["x" + LONG + "y", "x" + LONG + "z"],
}
forms = pytest.mark.parametrize("form", FORMS.values(), ids=list(FORMS))


@pytest.fixture(params=["rows", "panels"])
def weights(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[DecoderWeights]:
    monkeypatch.setattr(layout, "use_panels", request.param == "panels")
    return layout.lay_out(random_params(CONFIG), CONFIG)


def belongs(text: str, form: str | list[str]) -> bool:
    return text in form if isinstance(form, list) else bool(re.fullmatch(form, text))


def ids_of(weights: DecoderWeights, prompt: list[int], options: Options) -> list[int]:
    return [token.id for token in generation.tokens(weights, CONFIG, prompt, options)]


def token_by_token(weights: DecoderWeights, prompt: list[int], options: Options) -> list[int]:
    """Greedily, each token from all logits: what may come is the best of what is allowed."""
    assert options.constraint
    ids, walk = list(prompt), options.constraint.begin(options.max_tokens)
    decoder = Decoder(weights, CONFIG, len(ids) + options.max_tokens)
    logits = decoder.feed(ids)
    while walk.left and not walk.over:
        token = int(walk.allowed[np.argmax(logits[walk.allowed])])
        ids.append(token)
        walk.take(token)
        if token == options.eos:
            break
        logits = decoder.feed([token])
    return ids[len(prompt) :]


def prompt_of(seed: int) -> list[int]:
    return np.random.default_rng(seed).integers(0, EOS, 2 + 3 * seed).tolist()


@forms
@pytest.mark.parametrize("eos", [EOS, None])
def test_greedy_text_is_what_the_best_allowed_tokens_make(
    weights: DecoderWeights, form: str | list[str], eos: int | None
) -> None:
    for seed in range(3):
        options = (
            Options(40, GREEDY, eos, constraint=constraint(form, eos))
            if form is not FORMS["much that must come"]
            else (Options(150, GREEDY, eos, constraint=constraint([text[:99] + text[-1] for text in form], eos)))
        )
        ids = ids_of(weights, prompt_of(seed), options)
        assert ids == token_by_token(weights, prompt_of(seed), options)


@forms
@pytest.mark.parametrize("sampling", [GREEDY, Sampling(), Sampling(topk=3, topp=0.7), *WITH_OPTIONS[1:]])
def test_alone_in_a_batch_with_and_without_drafts_it_is_the_same_whole_text(
    weights: DecoderWeights, form: str | list[str], sampling: Sampling
) -> None:
    """Past the window, too. Suppressed tokens are not among the options, which may leave no token."""
    made = constraint(form)
    long = form is FORMS["much that must come"]
    each = [Options(700 if long else 40, sampling, EOS, seed, constraint=made) for seed in range(2 if long else 4)]
    prompts = [prompt_of(seed) for seed, _ in enumerate(each)]
    alone = [ids_of(weights, prompt, options) for prompt, options in zip(prompts, each)]
    for ids in alone:
        text = [i for i in ids if i != EOS]
        assert belongs(said(text), form)
        assert len(ids) - len(text) in (0, 1)
    for more in ({"look_up": False}, {"logprobs": True}):
        changed = [Options(**{**vars(options), **more}) for options in each]
        assert [ids_of(weights, prompt, options) for prompt, options in zip(prompts, changed)] == alone
        together = batches.texts(weights, CONFIG, prompts, changed)
        assert [[token.id for token in tokens] for tokens in together] == alone
        assert all(tokens[-1].finish for tokens in together if tokens)


@forms
def test_tokens_say_how_the_text_ended(weights: DecoderWeights, form: str | list[str]) -> None:
    """By the end-of-text token or because nothing can follow: stop. With the last token of those allowed: length."""
    made = constraint(form)
    fewest = made.tokens_to_end(made.start)
    for max_tokens in (fewest, 600):
        options = Options(max_tokens, Sampling(), EOS, constraint=made)
        tokens = list(generation.tokens(weights, CONFIG, [1, 2], options))
        assert [token.finish for token in tokens[:-1]] == [None] * (len(tokens) - 1)
        if tokens:
            walk = made.begin(max_tokens)
            for token in tokens:
                walk.take(token.id)
            stops = tokens[-1].id == EOS or walk.over
            assert tokens[-1].finish == ("stop" if stops else "length")


def test_forced_text_enters_in_one_pass_and_the_end_without_one(
    weights: DecoderWeights, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where company does not change bits; elsewhere a pass for each token, and none for the end."""
    passes: list[int] = []
    feed_all = Decoder.feed_all
    monkeypatch.setattr(Decoder, "feed_all", lambda self, ids: passes.append(len(ids)) or feed_all(self, ids))
    made = constraint(r"x the lower one [ab] and the lower other one")
    ids = ids_of(weights, [5], Options(99, Sampling(), EOS, constraint=made))
    places = [said([i]) in (" a", " b", "a", "b") for i in ids].index(True)
    if Decoder(weights, CONFIG, 1).exact:
        assert passes == [places]
    else:
        assert passes == [1] * places


def test_what_the_options_exclude_is_an_error_but_forced_text_comes(weights: DecoderWeights) -> None:
    letters = tuple({i for text in ("a", "b") for i in tokenizer().encode(text)})
    with pytest.raises(InvalidParameter, match="exclude every token"):
        ids_of(weights, [1], Options(9, Sampling(suppress_tokens=letters), EOS, constraint=constraint("[ab]")))
    forced = ids_of(weights, [1], Options(9, Sampling(suppress_tokens=letters), EOS, constraint=constraint("a")))
    assert said(forced) == "a"


def test_too_few_tokens_are_an_error_at_the_call(weights: DecoderWeights) -> None:
    options = Options(2, Sampling(), EOS, constraint=constraint(r"\d{4}-\d{2}-\d{2}"))
    with pytest.raises(InvalidParameter, match=r"max_tokens is 2, and .* needs \d$"):
        generation.tokens(weights, CONFIG, [1], options)
    with pytest.raises(InvalidParameter, match="max_tokens is 2, and"):
        batches.texts(weights, CONFIG, [[1]], [options])
    asked = beam.Beams(3, 2, eos=EOS, constraint=options.constraint)
    with pytest.raises(InvalidParameter, match="max_tokens is 2, and"):
        beam.beam_search(weights, CONFIG, [1], asked)


@forms
@pytest.mark.parametrize("eos", [EOS, None])
def test_beams_are_whole_texts(weights: DecoderWeights, form: str | list[str], eos: int | None) -> None:
    if form is FORMS["much that must come"]:
        form = [text[:99] + text[-1] for text in form]
    made = constraint(form, eos)
    fewest = max(1, made.tokens_to_end(made.start))
    for max_tokens in (fewest, fewest + 3, 120):
        asked = beam.Beams(4, max_tokens, eos=eos, constraint=made)
        found = beam.beam_search(weights, CONFIG, [3, 4], asked)
        assert found
        texts = [said([i for i in one.ids if i != eos]) for one in found]
        assert all(belongs(text, form) for text in texts)


def test_one_beam_is_greedy(weights: DecoderWeights) -> None:
    made = constraint(r"[a-z]{3,9}( \d)?")
    alone = ids_of(weights, [7], Options(12, GREEDY, EOS, constraint=made))
    (found,) = beam.beam_search(weights, CONFIG, [7], beam.Beams(1, 12, eos=EOS, constraint=made, early_stopping=True))
    assert [i for i in found.ids if i != EOS] == [i for i in alone if i != EOS]


def test_the_constraint_excludes_what_it_does_not_allow() -> None:
    made: Constraint = constraint("[ab]c")
    history = History([1], EOS, walk=made.begin(5))
    scores = constrain(np.zeros(EOS + 1, np.float32), history)
    assert np.flatnonzero(scores == 0).tolist() == allowed(made, made.start)[0].tolist()
    assert choose(np.arange(EOS + 1, dtype=np.float32), GREEDY, 0.5, history) == allowed(made, made.start)[0][-1]


@pytest.mark.parametrize("eos", [EOS, None])
def test_a_text_that_could_go_on_ends_where_few_tokens_only_complete_it(
    weights: DecoderWeights, eos: int | None
) -> None:
    """The nearest way to an end in the longest tokens has more than there are, and a search finds one with three."""
    made = constraint(r"\s{8,30}", eos)
    assert made.tokens_to_end(made.start) == 3
    for max_tokens in range(3, 8):
        for sampling in (GREEDY, Sampling()):
            options = Options(max_tokens, sampling, eos, constraint=made)
            (alone, together) = (
                list(generation.tokens(weights, CONFIG, [1], options)),
                *batches.texts(weights, CONFIG, [[1]], [options]),
            )
            assert together == alone
            assert re.fullmatch(r"\s{8,30}", said([token.id for token in alone if token.id != eos]))
            assert [token.finish is not None for token in alone] == [False] * (len(alone) - 1) + [True]
        asked = beam.Beams(2, max_tokens, eos=eos, constraint=made)
        for found in beam.beam_search(weights, CONFIG, [1], asked):
            assert re.fullmatch(r"\s{8,30}", said([i for i in found.ids if i != eos]))
