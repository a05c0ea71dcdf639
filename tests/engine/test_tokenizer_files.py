"""Vocabulary files: read as published, refused with the place of the fault."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pg_gpt2.errors import MalformedData
from pg_gpt2.formats.vocab import parse_merges, parse_vocab
from pg_gpt2.tokenizer.bpe import token_text

GOLDEN = Path(__file__).parents[1] / "golden" / "tokenizer" / "learned"
VOCAB = parse_vocab((GOLDEN / "vocab.json").read_bytes())
MERGES = parse_merges((GOLDEN / "merges.txt").read_bytes())

no_deadline = settings(deadline=None)  # machines differ
tokens = st.binary(min_size=1, max_size=6).map(token_text)


def test_published_files():
    assert len(VOCAB) == 600
    assert len(MERGES) == 343
    assert [VOCAB[left + right] for left, right in MERGES] == list(range(256, 599))


@no_deadline
@given(st.dictionaries(tokens, st.integers(0, 2**31 - 1), min_size=1))
def test_a_written_vocabulary_is_read_back(vocab):
    vocab = {token: i for i, token in {i: token for token, i in vocab.items()}.items()}
    assert parse_vocab(json.dumps(vocab, ensure_ascii=False).encode()) == vocab


@no_deadline
@given(st.lists(st.tuples(tokens, tokens)))
def test_written_merges_are_read_back(merges):
    lines = ["#version: 0.2", *(f"{left} {right}" for left, right in merges)]
    assert parse_merges("\n".join(lines).encode()) == merges


def test_only_a_version_on_the_first_line_is_a_comment():
    lines = "#version: 0.2\n# #\n## #\n#version x\n# version\n"
    assert parse_merges(lines.encode()) == [("#", "#"), ("##", "#"), ("#version", "x"), ("#", "version")]
    assert parse_merges(b"# #\na b") == [("#", "#"), ("a", "b")]


@pytest.mark.parametrize("data", [b"", b"\n", b"\r\n\r\n"])
def test_an_empty_file_of_merges_is_refused_and_one_with_its_version_is_what_it_says(data):
    assert parse_merges(b"#version: 0.2\n" + data) == []
    with pytest.raises(MalformedData, match="is empty"):
        parse_merges(data)


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
        (b'{"a": 1%s}' % (b"0" * 10_000), "not JSON"),  # more digits than Python reads
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
