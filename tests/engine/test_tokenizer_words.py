"""Words and their ids: how a text is split, which pairs of a word merge, and what is kept of words."""

import random
from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pg_gpt2.errors import InconsistentData
from pg_gpt2.tokenizer import bpe, bpe_many, bpe_merge, decimals, long_texts, pairs, pretokenize, words
from pg_gpt2.tokenizer.bpe import Tokenizer
from pg_gpt2.tokenizer.tables import BYTE_CHARACTERS
from pg_gpt2.tokenizer.word_starts import word_starts

from tests.engine.tokenizers import CASES, LEARNED, MERGES, counted_checks, from_strings, no_deadline, texts  # noqa: F401


@pytest.mark.parametrize("size", [5, 4096, 3 * pretokenize.WINDOW])
def test_the_last_cut_is_found_in_windows_with_looks_for_a_cancel_request(checks, size):
    word = "z" * size
    assert pretokenize.last_cut(word) == 0
    assert len(checks[0]) >= size // pretokenize.WINDOW
    assert pretokenize.last_cut(f"low lower {word}") == len("low lower")
    assert pretokenize.last_cut(f"low lower {word} ") == len("low lower ") + size


@no_deadline
@given(texts, st.integers(1, 40))
def test_where_a_text_is_cut_changes_nothing(text, size):
    whole = pretokenize._splitter(0x10FFFF).findall(text)  # the pattern itself, with all ranges
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretokenize, "PIECE", size)
        words = pretokenize.pretokens(text)
    assert words == whole
    assert "".join(words) == text


@pytest.mark.parametrize("text", [" x", "x ", "  x", "日\n \n", "😀 ", " 1", "' s", "\u3000x"])
def test_pieces_of_a_long_text(text):
    long = text * 3000
    assert pretokenize.pretokens(long) == pretokenize._splitter(0x10FFFF).findall(long)


@no_deadline
@given(st.integers(0, 2**32))
def test_the_heap_merges_as_scanning_does(seed):
    """With any ranks and any symbols that merges make, also such as no training gives."""
    rng = random.Random(seed)
    symbols = [rng.randrange(4) for _ in range(rng.randrange(60))]
    merged = [rng.randrange(8) for _ in range(30)]
    ranks = pairs.Ranks(table([(rng.randrange(8), rng.randrange(8)) for _ in range(30)]))
    scanned = list(symbols)
    places = list(bpe_merge.merge_by_scan(scanned, ranks, merged))
    assert len(scanned) == len(symbols) - len(places)
    assert bpe_merge.merge_by_heap(symbols, ranks, merged) == scanned
    assert all(ranks[pair] == ranks.never for pair in pairwise(scanned))


def table(merging, spread=None):
    """The pairs that are given in the order of rank, as they are looked up."""
    left, right = np.array(merging, np.int32).reshape(-1, 2).T
    keys = pairs.pair_keys(left, right)
    spread = pairs.spread_of(keys) if spread is None else spread
    return pairs.Pairs(np.append(keys, pairs.EMPTY), pairs.hash_table(keys, spread), spread)


def some_merges(rng):
    """Any pairs and symbols, such as no training gives: merges without a token, several that make one, the same pair twice."""
    symbols = [*range(-3, 8), 2**31 - 1, 1 - 2**31]
    merged = np.array(rng.choices(symbols, k=40), np.int32)
    return list(zip(rng.choices(symbols, k=rng.randrange(41)), rng.choices(symbols, k=40))), merged


@no_deadline
@given(st.integers(0, 2**32))
def test_many_words_are_merged_together_as_each_alone(seed):
    rng = random.Random(seed)
    merging, merged = some_merges(rng)
    longest = rng.choice([2, 30, 200])
    many = [[rng.randrange(-1, 4) for _ in range(rng.randrange(1, longest))] for _ in range(rng.randrange(1, 40))]
    many.sort(key=len, reverse=True)
    lengths = np.array([len(word) for word in many])
    symbols, counts = bpe_many.Merges(table(merging), merged).merge(np.concatenate(many).astype(np.int32), lengths)
    ranks = pairs.Ranks(table(merging))
    for word in many:
        list(bpe_merge.merge_by_scan(word, ranks, merged.data))
    assert [part.tolist() for part in np.split(symbols, np.cumsum(counts)[:-1])] == many


@pytest.mark.parametrize("spread", [None, 0, 1])
@pytest.mark.parametrize("count", [0, 1, 2, 400])
def test_each_pair_has_its_rank_wherever_the_table_puts_it(spread, count):
    """With a spread of 0 all pairs have one home."""
    rng = random.Random(count)
    symbols = [pairs.END, 1 - 2**31, 2**31 - 1, *range(-40, 40)]
    merging = [(rng.choice(symbols[1:]), rng.choice(symbols[1:])) for _ in range(count)]
    ranks = dict(zip(merging, range(count)))  # a later one of the same pair counts
    sought = [*merging, *((left, right) for left in symbols for right in symbols)]
    wanted = [ranks.get(pair, count) for pair in sought]
    found = table(merging, spread)
    assert found.ranks(*np.array(sought, np.int32).T).tolist() == wanted
    assert [found.rank(*pair) for pair in sought[:60]] == wanted[:60]
    kept = pairs.Ranks(found)
    assert [kept[pair] for pair in sought] == [kept[pair] for pair in sought] == wanted


def test_no_vocabulary_can_be_thought_out_whose_pairs_have_one_home(checks):
    """Pairs that have one home with the number that one vocabulary has have others in a vocabulary of their own."""
    seen, count = checks[0], 2000
    spread = pairs.spread_of(np.arange(count))
    keys = np.arange(1, 8 * count, dtype=np.uint64) * np.uint64(pow(spread, -1, 1 << 64))
    left, right = (keys >> np.uint64(32)).astype(np.int64), (keys & np.uint64((1 << 32) - 1)).astype(np.int64)
    same = np.flatnonzero((left < 1 << 31) & (right < 1 << 31))[:count]
    merging = table(list(zip(left[same].tolist(), right[same].tolist())))
    assert merging.ranks(left[same].astype(np.int32), right[same].astype(np.int32)).tolist() == list(range(count))
    assert len(seen) < 100, "rounds: with one home there are as many as pairs"


def test_no_text_can_be_thought_out_whose_words_have_one_home(checks):
    """Words that have one home in one table have others in the next."""
    seen, source = checks[0], np.random.default_rng(1)
    low, high = source.integers(0, 1 << 63, 1 << 19, np.uint64), np.full(1 << 19, 8 << 56, np.uint64)
    home = long_texts._Keys()._homes(low, high)
    low, high = low[home < 64], high[home < 64]
    numbers, new = long_texts._Keys().find(low, high, 0)
    assert len(new) == len(set(numbers.tolist())) == len(low) > 900
    assert len(seen) < 100, "rounds: with one home there are as many as words"


@pytest.mark.parametrize("several", [1, 10**9])
def test_new_words_are_the_same_together_and_one_by_one(monkeypatch, several):
    monkeypatch.setattr(words, "MANY", several)
    for few in (0, 3, words.FEW):
        monkeypatch.setattr(words, "FEW", few)
        fresh = Tokenizer.of(LEARNED.tokens, MERGES)
        for text, ids in CASES["plain"]:
            assert fresh.encode(text) == ids
            assert fresh.encode(text) == ids  # from the cache
            assert fresh.encode_array(text) == "{" + ",".join(map(str, ids)) + "}"
            assert fresh.encode_array(text) == "{" + ",".join(map(str, ids)) + "}"


@no_deadline
@given(texts, st.integers(1, 40), st.booleans())
def test_arrays_have_the_ids_whatever_is_done_at_once(text, size, long):
    ids = LEARNED.encode(text)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AT_ONCE", "WORDS_A_MERGE", "MANY", "LONG_AMONG_MANY", "CACHED_LENGTH"):
            patch.setattr(words, name, size)
        patch.setattr(words, "FEW", size // 9)
        as_long_texts(patch, size, LONG=1 if long else 10**9)
        fresh = Tokenizer.of(LEARNED.tokens, MERGES)
        for _ in range(2):
            assert fresh.encode_array(text) == "{" + ",".join(map(str, ids)) + "}"
            assert fresh.encode(text) == ids
            assert fresh.count(text) == len(ids)


def as_long_texts(patch, size, **names):
    """Texts of any length go the way of long ones, in pieces of `size` characters and more."""
    for name, value in {"LONG": 1, "MOST_CHARACTERS": 2 * size, "FEW_TOKENS": size, **names}.items():
        patch.setattr(bpe, name, value)
    for name in ("MOST_WORDS", "MOST_BYTES", "WORDS_A_MERGE"):
        patch.setattr(long_texts, name, size)
    patch.setattr(long_texts, "FEWEST_PLACES", 2)
    patch.setattr(decimals, "AT_ONCE", size)


@no_deadline
@given(texts, st.sampled_from([0, 1, 2**63]))
def test_long_texts_have_the_ids_of_their_words_wherever_these_are_kept(text, drawn):
    """With a mix of 0 all words of one byte more or less have few homes."""
    with pytest.MonkeyPatch.context() as patch:
        as_long_texts(patch, 400)
        patch.setattr(long_texts, "_drawn", lambda: drawn)
        patch.setattr(long_texts, "MIX", drawn)
        fresh = Tokenizer.of(LEARNED.tokens, MERGES)
        for part in (text, text * 2, text + "x", text):
            words_of_it = pretokenize.pretokens(part)
            assert fresh.encode(part) == [i for word in words_of_it for i in LEARNED.encode(word)]


def test_a_word_and_a_word_with_zeros_after_it_are_two(monkeypatch):
    as_long_texts(monkeypatch, 400)
    fresh = Tokenizer.of(LEARNED.tokens, MERGES)
    for text in ("a", "a\0", "a\0\0", "a\0" * 7, "a" * 15, "a" * 16, "\0" * 15, "\0" * 16):
        assert fresh.encode(text) == LEARNED.encode(text)
        assert fresh.encode(f"{text} {text}") == LEARNED.encode(f"{text} {text}")


@no_deadline
@given(texts)
def test_words_begin_where_the_pattern_says(text):
    if text:
        starts = word_starts(np.frombuffer(text.encode("utf-32-le"), "<u4")).tolist()
        assert [text[a:b] for a, b in pairwise([*starts, len(text)])] == pretokenize.pretokens(text)


def test_words_begin_where_the_pattern_says_at_every_code_point():
    text = "".join(
        f"{chr(code)}x {chr(code)}'s1{chr(code)}  " for code in range(0x110000) if not 0xD800 <= code < 0xE000
    )
    starts = word_starts(np.frombuffer(text.encode("utf-32-le"), "<u4")).tolist()
    assert [text[a:b] for a, b in pairwise([*starts, len(text)])] == pretokenize.pretokens(text)


def test_contractions_begin_and_end_where_the_pattern_says():
    parts = ["'", "s", "t", "r", "e", "l", "v", "m", "d", "a", " ", "\n", "1", "é"]
    text = "\n".join(map("".join, product(parts, repeat=4)))
    for apostrophes in (text, text.replace("a", "'")):
        starts = word_starts(np.frombuffer(apostrophes.encode("utf-32-le"), "<u4")).tolist()
        assert [apostrophes[a:b] for a, b in pairwise([*starts, len(text)])] == pretokenize.pretokens(apostrophes)


@pytest.mark.parametrize(
    "ids", [range(300), [0, 9, 10, 99, 100, 10**6], [7, 10**7 - 1], [3, 10**7], [0, 2**31 - 1], [5]]
)
def test_ids_of_any_size_as_text(ids):
    ids = np.array(ids, np.int32)
    some = np.tile(ids, 3)
    assert decimals.Decimals(ids).of(some) == decimals.few(some.tolist()) == "".join(f"{i}," for i in some)
    assert decimals.Decimals(ids).of([]) == decimals.few([]) == ""


@pytest.mark.parametrize("several", [1, 10**9])
@pytest.mark.parametrize("long", [False, True])
@pytest.mark.parametrize("call", [Tokenizer.encode, Tokenizer.encode_array])
def test_a_token_that_is_lacking_is_an_error_each_time_together_and_one_by_one(monkeypatch, several, long, call):
    if long:
        as_long_texts(monkeypatch, 400)
    monkeypatch.setattr(words, "MANY", several)
    monkeypatch.setattr(words, "FEW", 0)
    vocab = {c: i for i, c in enumerate(BYTE_CHARACTERS)} | {"abc": 256}
    short = from_strings(vocab, [("a", "b"), ("ab", "c"), ("x", "y")])
    for _ in range(2):
        assert call(short, "abc") == call(short, "abc")
        with pytest.raises(InconsistentData, match="lacks the token 'xy'"):
            call(short, "abc abcxyabc xabc")


@no_deadline
@given(st.text("ab", min_size=1, max_size=300))
def test_long_words_are_merged_as_short_ones(text):
    ids = LEARNED.encode(text)
    with pytest.MonkeyPatch.context() as patch:
        for limit in (0, 10**9):
            patch.setattr(words, "LONG_WORD", limit)
            assert Tokenizer.of(LEARNED.tokens, MERGES).encode(text) == ids


@pytest.mark.parametrize("character", ["a", " ", "\n", "!", "1", "=", "'", "日", "😀", "\0"])
def test_a_megabyte_of_one_character_is_not_quadratic(character):
    """Quadratic work on it takes an hour, so that the test need not measure."""
    text = character * (1_000_000 // len(character.encode()))
    assert LEARNED.decode(LEARNED.encode(text)) == text


def test_the_cache_of_words_is_bounded(monkeypatch):
    monkeypatch.setattr(words, "CACHED_WORDS", 8)
    tokenizer = Tokenizer.of(LEARNED.tokens, MERGES)
    text = " ".join(f"word{chr(97 + i)}" for i in range(26)) + " " + "x" * 1000
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert len(tokenizer._words.cached) <= 8


def test_the_cache_has_no_long_word_and_a_bounded_number_of_characters(monkeypatch):
    monkeypatch.setattr(words, "CACHED_LENGTH", 100)
    monkeypatch.setattr(words, "CACHED_CHARACTERS", 1000)
    tokenizer = Tokenizer.of(LEARNED.tokens, MERGES)
    cache, most = tokenizer._words.cached, 0
    for n in range(50):
        text = "x" * (80 + n)
        for _ in range(2):
            assert tokenizer.decode(tokenizer.encode(text)) == text
        assert cache.characters == sum(map(len, cache)) <= 1000
        assert all(len(word) <= 100 for word in cache)
        most = max(most, len(cache))
    assert most > 8, "it is used as far as it goes"
