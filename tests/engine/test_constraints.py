"""Constraints: what may come is what can still become a whole text, and every text becomes one, however few tokens there are."""

import gc
import re
import time
import weakref
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pg_gpt2 import host
from pg_gpt2.errors import InconsistentData, InvalidParameter, LimitExceeded
from pg_gpt2.generation.constraints import constraint as constraints
from pg_gpt2.generation.constraints import regex
from pg_gpt2.generation.constraints.compiled import MOST, compiled
from pg_gpt2.generation.constraints.grammar import EMPTY, NOTHING, Node, either
from pg_gpt2.generation.constraints.vocabulary import Vocabulary
from pg_gpt2.tokenizer.bpe import Tokenizer

from tests.engine.constrained import EOS, allowed, constraint, drawn, said, tokenizer, vocabulary

slow = settings(deadline=None, max_examples=150)  # machines differ

PATTERNS = [
    r"\d{4}-\d{2}-\d{2}",
    r"(yes|no|maybe)",
    r"[a-c]+x?",
    r".{0,20}",
    r'"([^"\\]|\\["\\/bfnrt])*"',
    r"(ab|abc|abcabc)+",
    r"[^a]{3}",
    r"\{\"name\": \"[a-z]{1,8}\", \"age\": \d{1,3}\}",
    r"x{3,70}",
    r"(a|b)*a(a|b){4}",
    r"\w+( \w+)*[.!?]",
    r"[α-ω]{2,5}|[日本語]+|🙂",
    r"",
    r"a*",
]


def fits_begun(pattern: str, data: bytes) -> bool:
    """Whether bytes begin a text that matches, by the derivatives of the grammar alone."""
    states = {regex.parse(pattern)}
    for byte in data:
        states = {rest for node in states for low, high, rest in node.firsts() if low <= byte <= high}
    return bool(states)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_what_is_allowed_is_what_can_go_on(pattern: str) -> None:
    """For every token, in the states along a drawn text: against derivatives, byte after byte."""
    made, data = constraint(pattern), vocabulary().tokens
    state, before = made.start, b""
    for token in [*drawn(made, 40, 0)[:6], None]:
        ids, after = allowed(made, state)
        assert ids.tolist() == sorted(i for i in data if fits_begun(pattern, before + data[i]))
        assert state.nullable == matches(pattern, before)
        assert all(made.after(state, i) is one for i, one in zip(ids.tolist(), after))
        if token is not None:
            state, before = made.after(state, token), before + data[token]


def matches(pattern: str, data: bytes) -> bool:
    try:
        return bool(re.fullmatch(pattern, data.decode()))
    except UnicodeDecodeError:
        return False


def least(made: constraints.Constraint) -> int:
    """The fewest tokens of a text, from all that can be said, breadth first."""
    states, tokens = {made.start}, 0
    while not any(state.nullable for state in states):
        states = {after for state in states for after in allowed(made, state)[1]}
        tokens += 1
    return tokens


@pytest.mark.parametrize("eos", [EOS, None])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_every_text_is_complete_with_any_number_of_tokens_from_the_least(pattern: str, eos: int | None) -> None:
    made = constraint(pattern, eos)
    fewest = made.tokens_to_end(made.start)
    assert fewest <= made.start.shortest
    assert fewest >= least(made)
    assert fewest == least(made) or fewest > constraints.NEAR
    for max_tokens in [*range(fewest, fewest + 12), 60]:
        for seed in range(4):
            tokens = drawn(made, max_tokens, seed)
            assert len(tokens) <= max_tokens
            assert re.fullmatch(pattern, said(tokens)), (max_tokens, seed)
    if fewest:
        with pytest.raises(InvalidParameter, match=f"max_tokens is {fewest - 1}, and .* needs {fewest}$"):
            made.begin(fewest - 1)


def test_what_is_left_decides_what_may_come() -> None:
    """With one token to go only those are left that end the text."""
    made, (letter,) = constraint(r"[a-z]+\."), tokenizer().encode("a")
    assert {said([i])[-1] for i in made.within(made.start, 5).tolist()} > {"a", "z"}
    assert {said([i])[-1] for i in made.within(made.after(made.start, letter), 1).tolist()} == {"."}


# ---- choices


def test_a_choice_that_begins_another() -> None:
    """The end-of-text token decides; without one the longer is said where there is room, else the shorter."""
    made = constraint(["a", "abcabc"])
    after = made.after(made.start, tokenizer().encode("a")[0])
    assert EOS in made.within(after, 9)
    assert {said(drawn(made, 9, seed)) for seed in range(30)} == {"a", "abcabc"}
    made = constraint(["1", "1βγδ"], eos=None)
    assert {said(drawn(made, 9, seed)) for seed in range(9)} == {"1βγδ"}
    assert {said(drawn(made, 1, seed)) for seed in range(9)} == {"1"}


def test_the_empty_choice() -> None:
    assert constraint([""]).begin(0).over
    assert {said(drawn(constraint(["", "b"]), 3, seed)) for seed in range(20)} == {"", "b"}


def test_ten_thousand_choices() -> None:
    rng = np.random.default_rng(0)
    texts = sorted({"".join(rng.choice(list("abcdefgh 0123"), rng.integers(1, 30))) for _ in range(10_000)})
    start = time.monotonic()
    made = constraint(texts)
    for max_tokens in (1, 2, 3, 40):
        for seed in range(5):
            assert said(drawn(made, max_tokens, seed)) in texts
    assert time.monotonic() - start < 20  # it takes 1


# ---- text that must come


@pytest.mark.parametrize(
    ("pattern", "forced"),
    [
        ("abcabc", "abcabc"),  # nothing may follow: all of it
        ("abcabc|x", ""),
        (r"\{\"name\": \"[a-z]+\"", '{"name": "'),
        ("abc", "abc"),
        ("日本語", "日本語"),
    ],
)
def test_text_that_must_come_is_cut_as_the_tokenizer_does(pattern: str, forced: str) -> None:
    """As far as what follows cannot change its last token."""
    made = constraint(pattern)
    tokens, _ = made.begin(60).ahead()
    assert tokens == tokenizer().encode(forced)[: len(tokens)]
    rest = forced[len(said(tokens)) :]
    following, _ = allowed(made, made.begin(60).state if not tokens else _after(made, tokens))
    assert not rest or any(len(vocabulary().tokens[i]) > len(rest.encode()) for i in following.tolist())


def _after(made: constraints.Constraint, tokens: list[int]) -> Node:
    state = made.start
    for token in tokens:
        state = made.after(state, token)
    return state


def test_a_long_text_that_must_come() -> None:
    text = "low lower lowest. " * 50
    tokens, complete = constraint([text]).begin(2000).ahead()
    assert said(tokens) == text
    assert complete
    assert tokens == tokenizer().encode(text)


def test_where_tokens_run_out_forced_text_is_said_in_fewer() -> None:
    """The tokenizer's way is not always the shortest."""
    text = "abcabc aabb 123 xxxxxxxx"
    made = constraint([text])
    fewest = made.tokens_to_end(made.start)
    assert fewest <= len(tokenizer().encode(text))
    assert all(said(drawn(made, fewest, seed)) == text for seed in range(5))


# ---- hostile


HOSTILE: dict[str, tuple[Callable[[], str], str]] = {
    "stars in stars": (lambda: "(a*)*b", "b"),
    "counts in counts": (lambda: "(x{1,1000}){1,1000}", "x"),
    "counts in counts that do not merge": (lambda: "((x{1,1000}y?){1,1000}z?){1,1000}", "x"),
    "a huge count": (lambda: ".{0,2147483647}", ""),
    "a text of a megabyte": (lambda: "ab" * (1 << 19), ""),
    "a pattern of a megabyte": (lambda: "[ab]c?" * ((1 << 20) // 6), ""),
    "many options in a row": (lambda: "a?" * 100 + "b", "b"),
    "too many options in a row": (lambda: "a?" * 100_000 + "b", "!ways to go on"),
    "many alternatives": (lambda: "|".join(map(str, range(150_000))), "1"),
    "deep groups": (lambda: "(" * 100_000 + "a" + ")" * 100_000, "a"),
    "deep repetition": (lambda: "(" * 100_000 + "a" + "b)*" * 100_000, "!nested"),
    "deep alternatives": (lambda: "(a|b" * 1000 + ")c" * 1000, "!nested"),
    "exponentially many states": (lambda: "(a|b)*a(a|b){200}", "a" * 201),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_patterns_get_an_answer_or_an_error_soon(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And look for an interrupt all the while."""
    make, expected = HOSTILE[name]
    looks = [time.monotonic()]
    monkeypatch.setattr(host, "check_interrupts", lambda: looks.append(time.monotonic()))
    begun = time.monotonic()
    if expected.startswith("!"):
        with pytest.raises(LimitExceeded, match=expected[1:]):
            _ = constraint(make()).begin(64).allowed
    else:
        made = constraint(make())
        walk = made.begin(1 << 21)
        for _ in range(3):
            if not walk.over:
                walk.take(int(walk.allowed[0]))
        text = expected.encode()
        assert not text or made.start.shortest <= len(text)
    assert time.monotonic() - begun < 60  # 10 at most
    assert max(np.diff([*looks, time.monotonic()])) < 3  # 0.5 at most


@pytest.mark.parametrize("pattern", ["x{2147483647}", "(ab{2147483647}){2147483647}", "(x{1000}y?){1000}z"])
def test_a_shortest_text_that_is_huge_is_refused_at_once(pattern: str) -> None:
    made, start = constraint(pattern), time.monotonic()
    with pytest.raises(InvalidParameter, match="max_tokens is 64, and"):
        made.begin(64)
    assert time.monotonic() - start < 10  # it takes 0.1


@pytest.mark.parametrize("pattern", [".{0,900}", "(a[bc]{1,700}d?){0,800}x", "x{3,500}y|[xz]{0,1000}", "[^a]{2,}"])
def test_states_of_a_long_repetition_are_alike(pattern: str) -> None:
    """Where its bound is farther than a token reaches, it makes no difference to what may come."""
    made = constraint(pattern)
    for seed in range(3):
        state = made.start
        for token in drawn(made, 12, seed):
            ids, after = allowed(made, state)
            near, farthest = made._mask(state)
            assert near.tolist() == ids.tolist()
            assert farthest == max(one.shortest for one in after)
            state = made.after(state, token)


# ---- vocabularies


def test_a_vocabulary_without_a_byte_is_refused() -> None:
    with pytest.raises(InconsistentData, match="no token of the byte 98"):
        Vocabulary({i: bytes([i]) for i in range(256) if i != ord("b")})


def test_tokens_with_the_same_bytes_are_both_allowed() -> None:
    tokens = {i: bytes([i]) for i in range(256)} | {300: b"ab", 301: b"ab", 302: b"abc", 303: b"a"}
    made = constraints.Constraint(regex.parse("abc"), Vocabulary(tokens), lambda text: list(text.encode()), None)
    assert allowed(made, made.start)[0].tolist() == [97, 300, 301, 302, 303]


def test_states_are_forgotten_when_there_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = [drawn(constraint(pattern), 30, 1) for pattern in PATTERNS]
    monkeypatch.setattr("pg_gpt2.generation.constraints.automaton.MANY_STATES", 1)
    monkeypatch.setattr(constraints, "MOST_KNOWN", 1)
    monkeypatch.setattr(constraints, "MOST_SETS", 1)
    assert [drawn(constraint(pattern), 30, 1) for pattern in PATTERNS] == expected


def test_a_search_that_is_too_long_takes_bytes_for_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or the longest tokens of the nearest text, here one for each q."""
    made = constraint("qzqz|abcabc")
    assert made.tokens_to_end(made.start) == len(tokenizer().encode("abcabc")) == 1
    monkeypatch.setattr(constraints, "MOST_SEARCHED", 1)
    made = constraint("qzqz|abcabc")
    assert made.tokens_to_end(made.start) == 4
    assert {said(drawn(made, 4, seed)) for seed in range(60)} == {"qzqz", "abcabc"}


def test_the_last_constraints_of_a_vocabulary_are_kept() -> None:
    first = compiled("regex", "a+", tokenizer(), EOS + 1, EOS)
    assert compiled("regex", "a+", tokenizer(), EOS + 1, EOS) is first
    assert compiled("regex", "a+", tokenizer(), EOS + 1, None) is not first
    for i in range(MOST):
        compiled("choices", (str(i),), tokenizer(), EOS + 1, EOS)
    assert compiled("regex", "a+", tokenizer(), EOS + 1, EOS) is not first
    with pytest.raises(InvalidParameter, match="no text fits regex"):
        compiled("regex", r"a[^\s\S]", tokenizer(), EOS + 1, EOS)


# ---- any grammar


@st.composite
def patterns(draw: st.DrawFn, depth: int = 3) -> str:
    """A pattern that Python and PostgreSQL read alike."""
    kinds = ["literal", "class", *(["seq", "either", "repeat", "group"] if depth else [])]
    kind = draw(st.sampled_from(kinds))
    deeper = patterns(depth=depth - 1)
    if kind == "literal":
        return "".join(map(re.escape, draw(st.text("abcx01 .-é日🙂", min_size=1, max_size=3))))
    if kind == "class":
        return draw(
            st.sampled_from([r"\d", r"\w", r"\s", ".", "[a-c]", "[^a]", r"[^\d]", "[é-ü日]", r"\S", r"[\w-]", "[]x]"])
        )
    if kind == "seq":
        return draw(deeper) + draw(deeper)
    if kind == "either":
        return f"(?:{draw(deeper)}|{draw(deeper)})"
    if kind == "group":
        return f"({draw(deeper)})"
    times = draw(st.sampled_from(["*", "+", "?", "{2}", "{0,3}", "{1,}", "*?", "+?", "{2,4}?"]))
    return f"(?:{draw(deeper)}){times}"


@slow
@given(patterns(), st.integers(0, 2**32), st.integers(0, 12))
def test_texts_of_any_pattern_match_it(pattern: str, seed: int, more: int) -> None:
    """The whole of it, by Python's `re`; with the least number of tokens, and some more."""
    made = constraint(pattern)
    text = said(drawn(made, made.tokens_to_end(made.start) + more, seed))
    assert re.fullmatch(pattern, text)


def test_more_tokens_than_the_fewest_complete_a_text_too() -> None:
    made = constraint(pattern := r"(?:(?:(?:\s){2,4}?){2,4}?){2,4}?")
    for most in range(made.tokens_to_end(made.start), 12):
        found = drawn(made, most, seed=0)
        assert len(found) <= most
        assert re.fullmatch(pattern, said(found))


@slow
@given(patterns(), st.text("abcx01 .-é日🙂\n_", max_size=6))
def test_what_python_matches_is_allowed(pattern: str, text: str) -> None:
    """Of characters about which there is no doubt; `[^a]` and the like have them all."""
    state = constraint(pattern).start
    for byte in text.encode():
        state = either(*(rest for low, high, rest in state.firsts() if low <= byte <= high))
    doubtful = re.search(r"\\[wS]", pattern) and not text.isascii()
    if not doubtful:
        assert state.nullable == bool(re.fullmatch(pattern, text))


def test_there_is_one_empty_grammar_and_one_without_texts() -> None:
    assert regex.parse("") is regex.parse("()*") is regex.parse("(a{0}|())") is EMPTY
    assert regex.parse(r"[^\w\W]") is regex.parse(r"a[^\w\W]b|[^\d\D]+") is NOTHING


def test_what_is_kept_of_a_vocabulary_goes_with_it() -> None:
    mine = Tokenizer.of(tokenizer().tokens, [], EOS)
    compiled("regex", "a+", mine, EOS + 1, EOS).begin(9)
    gone = weakref.ref(mine)
    del mine
    gc.collect()
    assert gone() is None
