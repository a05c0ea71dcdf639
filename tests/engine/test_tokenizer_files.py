"""Vocabulary files: read as published, written back, refused with the place of the fault."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pg_gpt2.bpe import token_text
from pg_gpt2.errors import FeatureNotSupported, InconsistentData, MalformedData
from pg_gpt2.formats.vocab import (
    merged_ids,
    parse_merges,
    parse_tokenizer_json,
    parse_vocab,
    render_merges,
    render_vocab,
)

GOLDEN = Path(__file__).parents[1] / "golden" / "tokenizer" / "learned"
VOCAB = parse_vocab((GOLDEN / "vocab.json").read_bytes())
MERGES = parse_merges((GOLDEN / "merges.txt").read_bytes())
DOCUMENT = json.loads((GOLDEN / "tokenizer.json").read_bytes())

no_deadline = settings(deadline=None)  # machines differ
tokens = st.binary(min_size=1, max_size=6).map(token_text)


def test_published_files():
    assert len(VOCAB) == 600
    assert len(MERGES) == 343
    assert merged_ids(VOCAB, MERGES) == list(range(256, 599))


def test_tokenizer_json_says_the_same():
    assert parse_tokenizer_json(json.dumps(DOCUMENT).encode()) == (VOCAB, MERGES)


def test_tokenizer_json_of_older_releases_has_merges_as_strings():
    model = DOCUMENT["model"] | {"merges": [" ".join(pair) for pair in MERGES]}
    del model["type"]
    assert parse_tokenizer_json(json.dumps(DOCUMENT | {"model": model}).encode()) == (VOCAB, MERGES)


@no_deadline
@given(st.dictionaries(tokens, st.integers(0, 2**31 - 1), min_size=1))
def test_a_written_vocabulary_is_read_back(vocab):
    vocab = {token: i for i, token in {i: token for token, i in vocab.items()}.items()}
    assert parse_vocab(render_vocab(vocab)) == vocab


@no_deadline
@given(st.lists(st.tuples(tokens, tokens)))
def test_written_merges_are_read_back(merges):
    assert parse_merges(render_merges(merges)) == merges


def test_only_a_version_on_the_first_line_is_a_comment():
    lines = "#version: 0.2\n# #\n## #\n#version x\n# version\n"
    assert parse_merges(lines.encode()) == [("#", "#"), ("##", "#"), ("#version", "x"), ("#", "version")]
    assert parse_merges(b"# #\na b") == [("#", "#"), ("a", "b")]
    assert parse_merges(b"") == parse_merges(b"#version: 0.2\n") == []


def test_files_that_windows_touched():
    assert parse_merges(b"\xef\xbb\xbf#version: 0.2\r\na b\r\n\r\n") == [("a", "b")]
    assert parse_vocab(b'\xef\xbb\xbf{"a": 0}\r\n') == {"a": 0}


def test_ids_need_not_be_contiguous():
    assert parse_vocab(b'{"a": 5, "b": 2147483647, "c": 0}') == {"a": 5, "b": 2147483647, "c": 0}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not JSON"),
        (b'{"a": 0', "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"\xff\xfe", "not UTF-8: byte 0xff at offset 0"),
        (b"[]", "no vocabulary"),
        (b"{}", "no vocabulary"),
        (b'{"a": "0"}', "the id of token 'a' is '0'"),
        (b'{"a": true}', "the id of token 'a' is True"),
        (b'{"a": 1.0}', "the id of token 'a' is 1.0"),
        (b'{"a": null}', "the id of token 'a' is None"),
        (b'{"a": -1}', "the id of token 'a' is -1"),
        (b'{"a": 2147483648}', "the id of token 'a' is 2147483648"),
        (b'{"a": 0, "b": 0}', "id 0 is given to 'a' and to 'b'"),
        (b'{"a": 0, "a": 1}', "the key 'a' twice"),
        (b'{"": 0}', "the token '' of id 0"),
        (b'{"a\\u0000": 0}', r"the token 'a\\x00' of id 0"),
        (b'{"\\ud800": 0}', "cannot be a text"),
    ],
)
def test_a_malformed_vocabulary_is_refused(data, message):
    with pytest.raises(MalformedData, match=message) as error:
        parse_vocab(data, "my.json")
    assert error.value.message.startswith("my.json")
    assert error.value.hint


@pytest.mark.parametrize(
    ("data", "line"),
    [
        (b"#version: 0.2\na b\nab\n", 3),
        (b"a b\n\na b\n", 2),
        (b"a b c\n", 1),
        (b"a b\n a\n", 2),
        (b"a \n", 1),
        (b"a  b\n", 1),
        (b"a \0b\n", 1),
        (b"a b\n#version: 0.2 x\n", 2),
    ],
)
def test_a_malformed_merge_is_named_by_its_line(data, line):
    with pytest.raises(MalformedData, match=f"my.txt, line {line}: ") as error:
        parse_merges(data, "my.txt")
    assert error.value.hint


def test_merges_that_are_not_utf8():
    with pytest.raises(MalformedData, match="not UTF-8: byte 0x8b at offset 2"):
        parse_merges(b"a \x8b")


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"model": DOCUMENT["model"] | {"type": "WordPiece"}}, "WordPiece"),
        ({"model": DOCUMENT["model"] | {"ignore_merges": True}}, "ignore_merges"),
        ({"model": DOCUMENT["model"] | {"dropout": 0.1}}, "dropout"),
        ({"model": DOCUMENT["model"] | {"end_of_word_suffix": "</w>"}}, "end_of_word_suffix"),
        ({"pre_tokenizer": None}, "pre-tokenizer None"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, "Whitespace"),
        ({"pre_tokenizer": DOCUMENT["pre_tokenizer"] | {"add_prefix_space": True}}, "add_prefix_space"),
        ({"pre_tokenizer": DOCUMENT["pre_tokenizer"] | {"use_regex": False}}, "a pattern of its own"),
        ({"normalizer": {"type": "NFC"}}, "a normalizer"),
    ],
)
def test_a_tokenizer_that_is_not_gpt2s_is_refused(change, name):
    with pytest.raises(FeatureNotSupported, match=name) as error:
        parse_tokenizer_json(json.dumps(DOCUMENT | change).encode())
    assert error.value.hint


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": None}, 'no "model"'),
        ({"model": DOCUMENT["model"] | {"merges": None}}, "no list of merges"),
        ({"model": DOCUMENT["model"] | {"merges": ["a b", "a"]}}, "merge 1 is 'a'"),
        ({"model": DOCUMENT["model"] | {"merges": [["a", 1]]}}, "merge 0 is"),
        ({"model": DOCUMENT["model"] | {"vocab": None}}, "no vocabulary"),
        ({"added_tokens": [{"id": 0, "content": "<|x|>"}]}, "id 0 is given to"),
        ({"added_tokens": [{"id": 7, "content": "a"}]}, "added token 'a' has id 7"),
        ({"added_tokens": [3]}, "3 is not an added token"),
    ],
)
def test_a_malformed_tokenizer_json_is_refused(change, message):
    with pytest.raises(MalformedData, match=message) as error:
        parse_tokenizer_json(json.dumps(DOCUMENT | change).encode())
    assert error.value.hint


def test_a_merge_needs_its_tokens():
    with pytest.raises(InconsistentData, match=r"merge 1 \('a', 'c'\) needs the token 'ac'") as error:
        merged_ids({"a": 0, "b": 1, "c": 2, "ab": 3}, [("a", "b"), ("a", "c")])
    assert error.value.hint
