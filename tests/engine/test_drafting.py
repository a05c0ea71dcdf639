"""A draft model: a smaller one says what may follow, which a pass verifies and which changes no token."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from pg_gpt2.core.config import GPT2Config
from pg_gpt2.errors import InconsistentData
from pg_gpt2.fast import layout
from pg_gpt2.fast.layout import DecoderWeights
from pg_gpt2.generation import generate as generation
from pg_gpt2.generation import prefixes
from pg_gpt2.generation.decode import Decoder
from pg_gpt2.generation.drafting import LONGEST, MOST_PATIENCE, WIDTHS, DraftModel, Guesses, Speaker
from pg_gpt2.generation.generate import Options, Token
from pg_gpt2.generation.lookup import Drafts, Odds
from pg_gpt2.generation.processors import History
from pg_gpt2.generation.sampling import Draws, Sampling, choose, likely

from tests.engine.small_models import CONFIGS, GREEDY, KEEPS_BITS, WITH_OPTIONS, name_of, random_params

SMALL = GPT2Config(n_layer=1, n_head=2, d_model=32, n_positions=64, vocab=1)


@pytest.fixture(autouse=True)
def in_panels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drafts are for weights in panels, where a row's bits do not depend on the others of its pass."""
    monkeypatch.setattr(layout, "use_panels", True)


def weights(config: GPT2Config, seed: int = 0) -> DecoderWeights:
    return layout.lay_out(random_params(config, seed), config)


def near(config: GPT2Config, seed: int = 0) -> DecoderWeights:
    """The same weights with some noise: it says the same often, not always."""
    random = np.random.default_rng(seed)
    noisy = {
        name: array + np.float32(0.01) * random.standard_normal(array.shape, np.float32)
        for name, array in random_params(config).items()
    }
    return layout.lay_out(noisy, config)


def drafts_for(config: GPT2Config) -> Iterator[tuple[str, DraftModel]]:
    plain = replace(config, adapter=None)
    yield "itself", DraftModel(weights(config), config)
    yield "near", DraftModel(near(config), config)
    yield "base", DraftModel(weights(plain), plain)
    for n_positions in (200, 40, 1):  # windows of its own, larger and smaller
        small = replace(SMALL, vocab=config.vocab, n_positions=n_positions)
        yield f"small {n_positions}", DraftModel(weights(small, 5), small)


class Counted:
    """Passes of the model, and tokens that the draft proposed."""

    def __init__(self, config: GPT2Config, monkeypatch: pytest.MonkeyPatch) -> None:
        self.passes = self.proposed = 0
        feed_all, propose = Decoder.feed_all, Speaker.propose

        def fed(decoder: Decoder, ids: list[int]) -> np.ndarray:
            self.passes += decoder.params is self.of
            return feed_all(decoder, ids)

        def proposed(speaker: Speaker, history: History, most: int) -> list[int]:
            found = propose(speaker, history, most)
            assert 0 < len(found) <= most
            self.proposed += len(found)
            return found

        self.of: DecoderWeights | None = None
        monkeypatch.setattr(Decoder, "feed_all", fed)
        monkeypatch.setattr(Speaker, "propose", proposed)


SAMPLINGS = [GREEDY, Sampling(), Sampling(topk=0, topp=1), *WITH_OPTIONS[:2]]


def told(tokens: Iterator[Token]) -> list[Token]:
    """What is told of tokens; the last bits of a log-probability only where panels keep them. Elsewhere no draft is asked for."""
    return [token if KEEPS_BITS else replace(token, logprob=None) for token in tokens]


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("config", CONFIGS, ids=name_of)
def test_a_draft_model_does_not_change_a_token(config: GPT2Config, sampling: Sampling) -> None:
    """Nor a bit of its log-probability; also past the windows, at the end of max_tokens and at a token that ends the text."""
    params, prompt = weights(config), [5, 6, 7, 8] * 6
    plain = Options(180, sampling, seed=4, logprobs=True, look_up=False)
    expected = told(generation.tokens(params, config, prompt, plain))
    for name, draft in drafts_for(config):
        for look_up in (False, True):
            options = replace(plain, draft=draft, look_up=look_up)
            assert told(generation.tokens(params, config, prompt, options)) == expected, name
    draft = DraftModel(near(config), config)
    for case in (replace(plain, max_tokens=1), replace(plain, max_tokens=2), replace(plain, eos=expected[60].id)):
        wanted = told(generation.tokens(params, config, prompt, case))
        assert told(generation.tokens(params, config, prompt, replace(case, draft=draft))) == wanted


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_what_the_model_itself_drafts_comes_true(sampling: Sampling, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sampled as well: the draft is drawn with the numbers that the model will draw with."""
    config = replace(CONFIGS[0], n_positions=320)
    params = weights(config)
    monkeypatch.setattr(Guesses, "_size", lambda guesses: 7)
    counted = Counted(config, monkeypatch)
    counted.of = params
    draft = DraftModel(DecoderWeights(params), config)
    options = Options(200, sampling, seed=1, look_up=False, draft=draft)
    assert len(list(generation.tokens(params, config, [1, 2, 3], options))) == 200
    assert counted.passes == 25  # of a token and 7 drafted ones, but the first and the last


def test_drafts_of_another_model_become_rare(monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(CONFIGS[0], n_positions=700)
    small = replace(SMALL, vocab=config.vocab, n_positions=700)
    counted = Counted(config, monkeypatch)
    options = Options(600, Sampling(topk=0), seed=1, look_up=False, draft=DraftModel(weights(small, 5), small))
    assert len(list(generation.tokens(weights(config), config, [1, 2, 3], options))) == 600
    assert 0 < counted.proposed < 60


def test_more_is_drafted_the_more_comes_true_and_the_less_it_costs() -> None:
    sizes = {}
    for share in (0.02, 0.1, 0.5, 1.0):
        for true in (0, 1, 2, 5):
            speaker = Speaker(DraftModel(DecoderWeights({}), CONFIGS[0]), GREEDY, Draws(0), 9)
            speaker.seconds = share
            guesses = Guesses(None, speaker)
            for _ in range(30):
                guesses._spoken = [1] * 5
                guesses.report(5, [1] * true + [2] * (true < 5), 1.25)
            sizes[share, true] = guesses._size()
    assert [sizes[share, 0] for share in (0.02, 0.1, 0.5, 1.0)] == [0] * 4
    assert sizes[0.02, 5] == LONGEST
    assert sizes[1.0, 5] == 0  # as slow as the model itself
    for share in (0.02, 0.1, 0.5):
        assert sizes[share, 0] <= sizes[share, 1] <= sizes[share, 2] <= sizes[share, 5]
    for true in (1, 2, 5):
        assert sizes[0.02, true] >= sizes[0.1, true] >= sizes[0.5, true] >= sizes[1.0, true]


def test_what_comes_true_more_often_is_taken_of_lookup_and_draft() -> None:
    class Parrot(Speaker):
        """Says always the same, in no time."""

        def propose(self, history: History, most: int) -> list[int]:
            return [9] * most

    for said, taken in (([9] * 4, [9] * LONGEST), ([4, 5, 1], [4, 5, 1])):
        speaker = Parrot(DraftModel(DecoderWeights({}), CONFIGS[0]), GREEDY, Draws(0), 9)
        speaker.seconds = 1e-9
        guesses = Guesses(Drafts(), speaker)
        history = History([1, 2, 3, 4, 5, 1, 2, 3])
        for _ in range(20):
            draft = guesses.propose(history, 99)
            guesses.report(len(draft), said, 1.0)
        found = guesses.propose(history, 99)
        assert found[: len(taken)] == taken[: len(found)]


def test_odds_are_what_came_true_lately() -> None:
    odds = Odds()
    assert odds.expected(0) == 1
    for _ in range(99):
        odds.report(4, 4)
    assert odds.expected(4) == pytest.approx(5, abs=0.01)
    for _ in range(99):
        odds.report(4, 0)
    assert odds.expected(4) == pytest.approx(1, abs=0.01)
    for _ in range(299):
        odds.report(4, 1)
    assert 1.3 < odds.expected(1) < 1.7


def test_a_number_that_is_looked_at_ahead_is_still_drawn() -> None:
    plain, looking = Draws(3), Draws(3)
    expected = [plain.next() for _ in range(9)]
    assert [looking.ahead(2), looking.ahead(0)] == [expected[2], expected[0]]
    assert [looking.next() for _ in range(4)] == expected[:4]
    assert looking.ahead(4) == expected[8]
    assert [looking.next() for _ in range(5)] == expected[4:]


def test_a_draft_is_drawn_in_the_way_that_comes_true_more_often() -> None:
    """With the model's own number, or by what numbers near it draw most; both are watched."""
    random = np.random.default_rng(1)
    config = CONFIGS[0]
    for noise, least in ((0.0, 0.97), (1.0, 0.2)):
        true = [0, 0, 0]
        speaker = Speaker(DraftModel(DecoderWeights({}), config), Sampling(), Draws(0), 9)
        for _ in range(400):
            logits = random.standard_normal(40).astype(np.float32) * 2
            draft, draw = logits + np.float32(noise) * random.standard_normal(40).astype(np.float32), random.random()
            token = choose(logits, Sampling(), draw, History())
            way = speaker._true.index(max(speaker._true))
            speaker._tokens = [likely(draft, Sampling(), draw, History(), WIDTHS)]
            for place, guess in enumerate([*speaker._tokens[0], speaker._tokens[0][way]]):
                true[place] += guess == token
            speaker.report([token], 0)
        assert true[2] >= max(true[:2]) - 40
        assert true[2] >= least * 400
    assert likely(logits, GREEDY, 0.3, History(), WIDTHS) == [int(logits.argmax())] * 2
    assert likely(logits, Sampling(), 0.3, History(), [0, 1]) == [
        choose(logits, Sampling(), 0.3, History()),
        int(logits.argmax()),
    ]


def test_a_draft_model_that_is_no_good_names_itself() -> None:
    config = CONFIGS[0]
    broken = layout.lay_out({k: np.full_like(v, np.nan) for k, v in random_params(config).items()}, config)
    options = Options(20, draft=DraftModel(broken, config))
    with pytest.raises(InconsistentData, match="the draft model's logits are not finite"):
        list(generation.tokens(weights(config), config, [1, 2, 3], options))


def test_what_the_draft_has_read_is_kept_for_later_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefixes.host, "prefix_room", lambda: 1 << 24)
    prefixes.session.clear()
    config, prompt = CONFIGS[0], list(range(40))
    params, draft = weights(config).with_identity("model"), weights(config, 1).with_identity("draft")
    for _ in range(2):
        list(generation.tokens(params, config, prompt, Options(9, draft=DraftModel(draft, config), look_up=False)))
    saved = {usage.identity: usage.saved for usage in prefixes.session.usage()}
    prefixes.session.clear()
    assert saved["draft"] >= 40 - 1
    assert saved["model"] >= 40 - 1


def test_patience_is_bounded() -> None:
    speaker = Speaker(DraftModel(DecoderWeights({}), CONFIGS[0]), GREEDY, Draws(0), 9)
    speaker.seconds = 0.5
    guesses = Guesses(None, speaker)
    for _ in range(50):
        guesses._spoken = [1, 1, 1]
        guesses.report(3, [2], 1.0)
    assert guesses._patience == MOST_PATIENCE
