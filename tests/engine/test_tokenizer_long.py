"""Long texts and long words: cancelled, refused before they fill the memory, and told of."""

import pytest
from pg_gpt2 import host
from pg_gpt2.errors import InvalidParameter, LimitExceeded
from pg_gpt2.tokenizer import added, bpe, decimals, pretokenize, words
from pg_gpt2.tokenizer.bpe import Tokenizer

from tests.engine.tokenizers import LEARNED, MERGES, Cancelled, counted_checks, texts  # noqa: F401


@pytest.mark.parametrize(
    "text", ["a1" * 200_000, "日1" * 200_000, "😀" * 400_000 + "a1"], ids=["ascii", "bmp", "astral"]
)
def test_text_without_a_space_can_be_cancelled_between_its_words(checks, text):
    seen, limit = checks
    words = [word for words in pretokenize.split(text) for word in words]
    assert len(seen) >= 6
    assert words == pretokenize._splitter(0x10FFFF).findall(text)
    limit[0] = len(seen) + 3
    with pytest.raises(Cancelled):
        list(pretokenize.split(text))


@pytest.mark.parametrize("text", ["x" * 3000, " " * 3000, "a1" * 900 + "x" * 3000, "日" * 3000 + "'ll 1"])
def test_words_of_a_text_without_a_place_to_cut_are_found_in_windows(monkeypatch, text):
    monkeypatch.setattr(pretokenize, "LONG_PIECE", 16)
    words = pretokenize.pretokens(text + "'ll'd" * 50)
    assert words == pretokenize._splitter(0x10FFFF).findall(text + "'ll'd" * 50)


def test_a_word_of_more_characters_than_one_takes_is_refused_before_it_is_matched_whole(monkeypatch):
    monkeypatch.setattr(pretokenize, "MOST_WORD", 1 << 17)
    with pytest.raises(InvalidParameter, match="is too long"):
        pretokenize.pretokens("x" * 1_000_000)


def test_a_word_of_many_bytes_is_refused_before_memory_is_taken(monkeypatch):
    monkeypatch.setattr(words, "MOST_WORD", 3_000_000)
    with pytest.raises(InvalidParameter, match="a word of 3000001 bytes or more is too long"):
        LEARNED.encode("b" * 3_000_001)
    assert LEARNED.decode(LEARNED.encode("b" * 2_999_999)) == "b" * 2_999_999
    asked = []
    monkeypatch.setattr(host, "require_memory", lambda size, purpose: asked.append(size))
    LEARNED.encode("b" * 2_000_000)
    assert asked == [2_000_000 * words.BYTES_A_SYMBOL]


@pytest.mark.parametrize("text", ["word and " * 50_000, "a" * 300_000], ids=["words", "one word"])
def test_long_work_can_be_cancelled(checks, text):
    seen, limit = checks
    LEARNED.encode(text)
    assert len(seen) >= 10
    seen.clear()
    limit[0] = 5
    with pytest.raises(Cancelled):
        Tokenizer.of(LEARNED.tokens, [("a", "a"), ("aa", "aa")]).encode(text)
    assert len(seen) == 5


def test_end_of_text_tokens_in_a_long_text_can_be_cancelled(checks):
    seen, limit = checks
    text = "a<|endoftext|>" * 2000
    ids = LEARNED.encode(text, special=True)
    assert ids == [*LEARNED.encode("a"), LEARNED.eos_token_id] * 2000
    assert LEARNED.count(text, special=True) == 4000
    seen.clear()
    limit[0] = 100
    with pytest.raises(Cancelled):
        LEARNED.encode(text, special=True)


def test_an_end_of_text_token_where_two_searches_meet(monkeypatch):
    for size in range(14, 40):
        monkeypatch.setattr(added, "SEARCHED", size)
        tokenizer = Tokenizer.of(LEARNED.tokens, MERGES)
        ids = tokenizer.encode("ab<|endoftext|>c<|endoftext|><|endoftext|>", special=True)
        assert ids.count(LEARNED.eos_token_id) == 3


def test_bytes_of_long_tokens_are_asked_for_and_bounded(monkeypatch):
    asked = []
    monkeypatch.setattr(host, "require_memory", lambda size, purpose: asked.append(size))
    tokenizer = Tokenizer.of({0: b"x" * (1 << 20), 1: b"y"}, [])
    assert len(tokenizer.decode_bytes([0] * 20)) == 20 << 20
    assert asked == [3 * (20 << 20)]
    with pytest.raises(LimitExceeded, match="a value takes"):
        tokenizer.decode_bytes([0] * 1024)


def test_an_array_takes_so_many_tokens(monkeypatch):
    monkeypatch.setattr(bpe, "MOST_IDS", 10)
    ids = LEARNED.encode_array("q" * 10)
    assert ids == "{" + ",".join(map(str, LEARNED.encode("q" * 10))) + "}"
    assert LEARNED.encode_array("") == "{}"
    with pytest.raises(InvalidParameter, match="more than 10 tokens"):
        LEARNED.encode_array("q" * 11)


def test_the_array_of_a_long_word_is_written_with_looks_for_a_cancel_request(checks):
    looks, long = checks[0], "z" * (3 * decimals.AT_ONCE)
    tokenizer = Tokenizer.of({i: bytes([i]) for i in range(256)}, [])
    ids = tokenizer.encode(long)
    before = len(looks)
    assert tokenizer.encode_array(long) == "{" + ",".join(map(str, ids)) + "}"
    assert len(looks) >= 2 * before + 3


def test_long_work_tells_how_far_it_is(monkeypatch):
    told = []
    monkeypatch.setattr(host, "notice", told.append)
    LEARNED.encode("word and " * 5000)
    assert told == [], "a short call says nothing"
    monkeypatch.setattr(host, "TELL_EVERY", 0)
    LEARNED.encode("word and " * 200_000)
    assert "encoding: 0 of 1,800,000 characters done" in told
    assert len(told) > 10
    told.clear()
    LEARNED.encode("a" * 200_000)
    assert any("merging a word of 200,000 bytes" in message for message in told)
