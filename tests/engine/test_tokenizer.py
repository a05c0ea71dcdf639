"""Text to ids and back: golden ids of Hugging Face tokenizers, and properties that hold for every text."""

import hashlib
import json
import random
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pg_gpt2 import host
from pg_gpt2.errors import InconsistentData, InvalidParameter, LimitExceeded, NullNotAllowed
from pg_gpt2.formats.vocab import parse_merges, parse_vocab
from pg_gpt2.tokenizer import added, bpe, bpe_many, bpe_merge, pairs, pretokenize, tables, words
from pg_gpt2.tokenizer.bpe import StreamDecoder, Tokenizer
from pg_gpt2.tokenizer.tables import BYTE_CHARACTERS

GOLDEN = Path(__file__).parents[1] / "golden" / "tokenizer"
VOCAB = parse_vocab((GOLDEN / "learned" / "vocab.json").read_bytes())
MERGES = parse_merges((GOLDEN / "learned" / "merges.txt").read_bytes())
LEARNED = Tokenizer.from_strings(VOCAB, MERGES)
CASES = json.loads((GOLDEN / "learned" / "cases.json").read_bytes())
GPT2_PART = json.loads((GOLDEN / "gpt2.json").read_bytes())
GPT2 = Tokenizer.from_strings(GPT2_PART["vocab"], [(left, right) for left, right in GPT2_PART["merges"]])

no_deadline = settings(deadline=None)  # machines differ

# Text dense in what the pattern tells apart, and any text
awkward = st.text(
    st.sampled_from(
        [*"aZé日\u0301", *"'stremvld", *" \t\n\r\x1c\x85\xa0\u2028\u3000", *"19½Ⅷ٣", *"!_-\0", *"😀𝔘𝟘𐄇\u200d"]
    )
)
texts = st.one_of(awkward, st.text(), st.text("ab '"))


class Cancelled(Exception):
    """Stands for a cancel request."""


@pytest.fixture
def checks(monkeypatch):
    """The list grows by one at each look for a cancel request; set to a number, the look of that number raises."""
    seen = []
    limit = [10**9]

    def check():
        seen.append(None)
        if len(seen) >= limit[0]:
            raise Cancelled

    monkeypatch.setattr(host, "check_interrupts", check)
    return seen, limit


@pytest.mark.parametrize("size", [5, 4096, 3 * pretokenize.WINDOW])
def test_the_last_cut_is_found_in_windows_with_looks_for_a_cancel_request(checks, size):
    word = "z" * size
    assert pretokenize.last_cut(word) == 0
    assert len(checks[0]) >= size // pretokenize.WINDOW
    assert pretokenize.last_cut(f"low lower {word}") == len("low lower")
    assert pretokenize.last_cut(f"low lower {word} ") == len("low lower ") + size


# Golden data


@pytest.mark.parametrize(("text", "ids"), GPT2_PART["cases"])
def test_ids_of_gpt2(text, ids):
    assert GPT2.encode(text) == ids
    assert GPT2.decode(ids) == text


@pytest.mark.parametrize(("text", "ids"), CASES["plain"])
def test_ids_of_a_learned_vocabulary(text, ids):
    assert LEARNED.encode(text) == ids
    assert LEARNED.decode(ids) == text


@pytest.mark.parametrize(("text", "ids"), CASES["special"])
def test_special_makes_end_of_text_one_token(text, ids):
    assert LEARNED.encode(text, special=True) == ids
    assert LEARNED.decode(ids) == text


def test_every_code_point_is_split_as_hugging_face_does():
    golden = json.loads((GOLDEN / "code_points.json").read_bytes())
    points = [i for start, stop in golden["ranges"] for i in range(start, stop)]
    blocks = [points[i : i + golden["block"]] for i in range(0, len(points), golden["block"])]
    for block, digest in zip(blocks, golden["digests"], strict=True):
        words = pretokenize.pretokens("".join(golden["contexts"].format(chr(i)) for i in block))
        lengths = ",".join(map(str, map(len, words)))
        assert hashlib.sha256(lengths.encode()).hexdigest()[:16] == digest, f"U+{block[0]:04X} to U+{block[-1]:04X}"


def test_trace_of_a_published_word():
    """The merges that "GPT in 500 lines of SQL" lists for this word, in their order."""
    steps = list(GPT2.trace("Mississippilessly"))
    assert [(s.token_id, s.merged) for s in steps] == [
        *[(271, "is"), (274, "es"), (306, "ly"), (346, "il"), (381, "pp"), (408, "ess"), (747, "iss"), (3974, "ipp")],
        *[(17140, "Miss"), (30608, "iless")],
    ]
    assert steps[0] == (1, 271, "is", ["M", "is", "s", "is", "s", *"ippilessly"])
    assert steps[-1].pieces == ["Miss", "iss", "ipp", "iless", "ly"]


# Encoding


@no_deadline
@given(texts)
def test_decoding_gives_the_text_back(text):
    ids = LEARNED.encode(text)
    assert LEARNED.decode_bytes(ids) == text.encode()
    assert LEARNED.decode(ids) == text
    assert LEARNED.count(text) == len(ids)


@no_deadline
@given(texts)
def test_tokens_with_their_bytes(text):
    tokens = list(LEARNED.tokenize(text))
    assert [t.position for t in tokens] == list(range(len(tokens)))
    assert [t.token_id for t in tokens] == LEARNED.encode(text)
    assert b"".join(t.bytes for t in tokens) == text.encode()
    assert all(bpe.token_bytes(t.token) == t.bytes for t in tokens)


@no_deadline
@given(texts)
def test_a_trace_ends_with_the_tokens(text):
    steps = list(LEARNED.trace(text))
    assert [s.step for s in steps] == list(range(1, len(steps) + 1))
    tokens = list(LEARNED.tokenize(text))
    pieces = steps[-1].pieces if steps else []
    assert pieces == [t.token for t in tokens[: len(pieces)]]
    assert all(len(t.bytes) == 1 for t in tokens[len(pieces) :])  # words after the last merge


def test_many_tokens_have_the_texts_that_each_has():
    tokens = [bytes([b]) for b in range(256)] + [b"", b" lower\xff", "日".encode()]
    assert tables.token_texts(tokens) == [bpe.token_text(token) for token in tokens]
    assert tables.token_texts([b""]) == [""]
    assert tables.token_texts([]) == []


def test_token_text_is_the_form_of_vocab_json():
    assert bpe.token_text(b" the") == "Ġthe"
    assert bpe.token_text(b"\n\t\x00\xad\xff") == "ĊĉĀŃÿ"
    assert len(set(BYTE_CHARACTERS)) == 256
    assert bpe.token_bytes("".join(BYTE_CHARACTERS)) == bytes(range(256))
    assert bpe.token_bytes("<pad 日>") == "<pad 日>".encode()


def test_special_without_such_a_token():
    plain = Tokenizer.from_strings({c: i for i, c in enumerate(BYTE_CHARACTERS)}, [])
    assert plain.encode("ab", special=True) == [97, 98]
    with pytest.raises(InvalidParameter, match=r"no token <\|endoftext\|>") as error:
        plain.encode("a<|endoftext|>", special=True)
    assert error.value.hint
    plain = Tokenizer.of(plain.tokens, [], eos_token_id=7)
    assert plain.encode("<|endoftext|>a<|endoftext|>", special=True) == [7, 97, 7]


def test_a_truncated_vocabulary_fails_only_where_it_matters():
    vocab = {c: i for i, c in enumerate(BYTE_CHARACTERS)} | {"abc": 256}
    short = Tokenizer.from_strings(vocab, [("a", "b"), ("ab", "c"), ("x", "y")])
    assert short.encode("abc") == [256]  # by way of "ab", which the vocabulary lacks
    with pytest.raises(InconsistentData, match="257 tokens lacks the token 'xy'") as error:
        short.encode("a xy")
    assert error.value.hint
    assert short.encode("ax") == [97, 120]
    with pytest.raises(InconsistentData, match="lacks the token 'b'"):
        Tokenizer.of({0: b"a"}, []).encode("ab")
    with pytest.raises(InconsistentData, match="no tokens"):
        Tokenizer.of({}, [])


def test_a_surrogate_is_not_text():
    with pytest.raises(InvalidParameter, match=r"U\+D800"):
        LEARNED.encode("a\ud800b")


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


# Decoding


def test_decoding_replaces_what_is_not_utf8():
    ids = [LEARNED.tables.byte_symbols.tolist()[b] for b in b"a\xff\xe6\x97b\xf0\x9f"]
    assert LEARNED.decode(ids) == "a\ufffd\ufffdb\ufffd"
    assert LEARNED.decode_bytes(ids) == b"a\xff\xe6\x97b\xf0\x9f"


@pytest.mark.parametrize("token_id", [-1, 600, 2**31 - 1])
def test_an_unknown_id_is_named(token_id):
    with pytest.raises(InvalidParameter, match=f"token id {token_id} is not in the vocabulary of 600 tokens") as error:
        LEARNED.decode([1, token_id])
    assert "0 to 599" in error.value.hint


def test_a_null_id_is_named():
    with pytest.raises(NullNotAllowed, match="number 2 is null"):
        LEARNED.decode_bytes([1, None])


@no_deadline
@given(st.lists(st.one_of(st.sampled_from(list("é日😀".encode())), st.integers(0, 255)), max_size=30))
def test_streaming_gives_the_text_of_decoding_at_once(data):
    ids = [LEARNED.tables.byte_symbols.tolist()[b] for b in data]
    decoder = StreamDecoder(LEARNED)
    parts = [decoder.push(token_id) for token_id in ids]
    assert "".join(parts) + decoder.finish() == LEARNED.decode(ids)


def test_streaming_holds_an_unfinished_character_back():
    decoder = StreamDecoder(LEARNED)
    ids = [LEARNED.tables.byte_symbols.tolist()[b] for b in "a😀b".encode()]
    assert [decoder.push(token_id) for token_id in ids[:3]] == ["a", "", ""]
    assert decoder.pending == b"\xf0\x9f"
    assert [decoder.push(token_id) for token_id in ids[3:]] == ["", "😀", "b"]
    assert decoder.pending == b""
    assert decoder.finish() == ""
    with pytest.raises(InvalidParameter, match="token id 600"):
        decoder.push(600)


# Splitting


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


# Merging


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


def table(merging):
    """The pairs that are given in the order of rank, as they are looked up."""
    left, right = np.array(merging, np.int32).reshape(-1, 2).T
    keys = pairs.pair_keys(left, right)
    return pairs.Pairs(np.append(keys, pairs.EMPTY), pairs.hash_table(keys))


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


@pytest.mark.parametrize("spread", [pairs.SPREAD, 0, 1])
@pytest.mark.parametrize("count", [0, 1, 2, 400])
def test_each_pair_has_its_rank_wherever_the_table_puts_it(monkeypatch, spread, count):
    """With a spread of 0 all pairs have one home."""
    monkeypatch.setattr(pairs, "SPREAD", spread)
    rng = random.Random(count)
    symbols = [pairs.END, 1 - 2**31, 2**31 - 1, *range(-40, 40)]
    merging = [(rng.choice(symbols[1:]), rng.choice(symbols[1:])) for _ in range(count)]
    ranks = dict(zip(merging, range(count)))  # a later one of the same pair counts
    sought = [*merging, *((left, right) for left in symbols for right in symbols)]
    wanted = [ranks.get(pair, count) for pair in sought]
    assert table(merging).ranks(*np.array(sought, np.int32).T).tolist() == wanted
    assert [table(merging).rank(*pair) for pair in sought[:60]] == wanted[:60]
    kept = pairs.Ranks(table(merging))
    assert [kept[pair] for pair in sought] == [kept[pair] for pair in sought] == wanted


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
@given(texts, st.integers(1, 40))
def test_arrays_have_the_ids_whatever_is_done_at_once(text, size):
    ids = LEARNED.encode(text)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AT_ONCE", "WORDS_A_MERGE", "IDS_A_TEXT", "MANY", "LONG_AMONG_MANY", "CACHED_LENGTH"):
            patch.setattr(words, name, size)
        patch.setattr(words, "FEW", size // 9)
        fresh = Tokenizer.of(LEARNED.tokens, MERGES)
        for _ in range(2):
            assert fresh.encode_array(text) == "{" + ",".join(map(str, ids)) + "}"
            assert fresh.encode(text) == ids


@pytest.mark.parametrize("several", [1, 10**9])
@pytest.mark.parametrize("call", [Tokenizer.encode, Tokenizer.encode_array])
def test_a_token_that_is_lacking_is_an_error_each_time_together_and_one_by_one(monkeypatch, several, call):
    monkeypatch.setattr(words, "MANY", several)
    monkeypatch.setattr(words, "FEW", 0)
    vocab = {c: i for i, c in enumerate(BYTE_CHARACTERS)} | {"abc": 256}
    short = Tokenizer.from_strings(vocab, [("a", "b"), ("ab", "c"), ("x", "y")])
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


# Cancelling


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
    looks, long = checks[0], "z" * (3 * words.AT_ONCE)
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
    LEARNED.encode("word and " * 5000)
    assert "encoding: 0 of 45,000 characters done" in told
    assert len(told) > 10
    told.clear()
    LEARNED.encode("a" * 200_000)
    assert any("merging a word of 200,000 bytes" in message for message in told)
