"""Text to ids and back: golden ids of Hugging Face tokenizers, and properties that hold for every text."""

import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pg_gpt2.errors import InconsistentData, InvalidParameter, NullNotAllowed
from pg_gpt2.tokenizer import bpe, pretokenize, tables
from pg_gpt2.tokenizer.bpe import StreamDecoder, Tokenizer
from pg_gpt2.tokenizer.tables import BYTE_CHARACTERS

from tests.engine.tokenizers import CASES, GOLDEN, LEARNED, from_strings, no_deadline, texts

GPT2_PART = json.loads((GOLDEN / "gpt2.json").read_bytes())
GPT2 = from_strings(GPT2_PART["vocab"], [(left, right) for left, right in GPT2_PART["merges"]])


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
    plain = from_strings({c: i for i, c in enumerate(BYTE_CHARACTERS)}, [])
    assert plain.encode("ab", special=True) == [97, 98]
    with pytest.raises(InvalidParameter, match=r"no token <\|endoftext\|>") as error:
        plain.encode("a<|endoftext|>", special=True)
    assert error.value.hint
    plain = Tokenizer.of(plain.tokens, [], eos_token_id=7)
    assert plain.encode("<|endoftext|>a<|endoftext|>", special=True) == [7, 97, 7]


def test_a_truncated_vocabulary_fails_only_where_it_matters():
    vocab = {c: i for i, c in enumerate(BYTE_CHARACTERS)} | {"abc": 256}
    short = from_strings(vocab, [("a", "b"), ("ab", "c"), ("x", "y")])
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
    assert [decoder.push(token_id) for token_id in ids[3:]] == ["", "😀", "b"]
    assert decoder.finish() == ""
    with pytest.raises(InvalidParameter, match="token id 600"):
        decoder.push(600)
