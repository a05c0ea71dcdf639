"""Tokens that are added to a vocabulary: golden ids of Hugging Face tokenizers, windows of the search, what is refused."""

import json
from pathlib import Path

import pytest
from pg_gpt2 import host
from pg_gpt2.errors import LimitExceeded
from pg_gpt2.formats.vocab import parse_merges, parse_vocab
from pg_gpt2.limits import MOST_ADDED, MOST_ADDED_TOKEN
from pg_gpt2.tokenizer import added
from pg_gpt2.tokenizer.added import AddedToken, AddedTokens
from pg_gpt2.tokenizer.bpe import Tokenizer, token_bytes

GOLDEN = Path(__file__).parents[1] / "golden" / "tokenizer"
VOCAB = parse_vocab((GOLDEN / "learned" / "vocab.json").read_bytes())
MERGES = parse_merges((GOLDEN / "learned" / "merges.txt").read_bytes())
CASES = json.loads((GOLDEN / "added.json").read_bytes())
ADDED = {token_id: AddedToken(content, **dict.fromkeys(flags, True)) for token_id, content, flags in CASES["tokens"]}
BYTES = {token_id: token_bytes(token) for token, token_id in VOCAB.items()}


def tokenizer():
    return Tokenizer.of(BYTES | {i: token_bytes(token.content) for i, token in ADDED.items()}, MERGES, None, ADDED)


def test_added_tokens_are_found_as_in_the_golden_cases():
    ours = tokenizer()
    for text, ordinary, special in CASES["cases"]:
        assert ours.encode(text) == ordinary
        assert ours.encode(text, special=True) == special
    assert any(ordinary != special for _, ordinary, special in CASES["cases"])


@pytest.mark.parametrize("size", [8, 16, 40, 100])
def test_tokens_where_two_searches_meet(monkeypatch, size):
    monkeypatch.setattr(added, "SEARCHED", size)
    ours = tokenizer()
    for text, ordinary, special in CASES["cases"]:
        assert (ours.encode(text), ours.encode(text, special=True)) == (ordinary, special)


def test_long_texts_are_searched_with_looks_for_a_cancel(monkeypatch):
    looks = []
    monkeypatch.setattr(host, "check_interrupts", lambda: looks.append(None))
    text = "x" * (added.SEARCHED * 2)
    found = AddedTokens({n: AddedToken(f"y{n}") for n in range(100)})
    assert list(found.split(text, special=False)) == [(0, len(text), None)]
    assert len(looks) > 500


def test_ordinary_text_is_not_searched_where_all_are_special(monkeypatch):
    monkeypatch.setattr(host, "check_interrupts", None)
    found = AddedTokens({1: AddedToken("y", special=True), 2: AddedToken("")})
    assert list(found.split("xyz", special=False)) == [(0, 3, None)]


def test_merges_make_a_token_that_was_not_added_where_there_is_one():
    ours = Tokenizer.of({1: b"ab", 2: b"a", 3: b"b", 4: b"ab"}, [("a", "b")], None, {1: AddedToken("ab", special=True)})
    assert ours.encode("ab") == [4]
    assert ours.encode("ab", special=True) == [1]


def test_the_tokens_of_a_text_are_shown_as_they_were_added():
    ours = Tokenizer.of(BYTES | {900: b"to be"}, MERGES, None, {900: AddedToken("to be")})
    assert [(t.token, t.bytes) for t in ours.tokenize("to be")] == [("to be", b"to be")]
    assert list(ours.trace("to be")) == []
    assert list(ours.trace("to bethe"))[-1].pieces[0] == "to be"


def test_ids_between_and_beyond_the_tokens_are_lacking():
    ours = Tokenizer.of({0: b"a", 2: b"b"}, [])
    assert ours.lacking(5) == (1, 3, 4)
    assert ours.lacking(1) == ()


def test_more_than_can_be_sought_is_refused():
    most = MOST_ADDED // MOST_ADDED_TOKEN
    longest = {n: AddedToken(f"{n:x<{MOST_ADDED_TOKEN}}") for n in range(most)}
    AddedTokens(longest)
    with pytest.raises(LimitExceeded, match=f"have {MOST_ADDED + 1} characters"):
        AddedTokens(longest | {most: AddedToken("y")})
    with pytest.raises(LimitExceeded, match=f"one of them {MOST_ADDED_TOKEN + 1}"):
        AddedTokens({0: AddedToken("y" * (MOST_ADDED_TOKEN + 1))})
