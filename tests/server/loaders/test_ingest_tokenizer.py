"""Vocabularies: the server encodes as the tokenizers library does, and what is not GPT-2's is refused."""

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from loaders import ingest_tokenizer, save_model
from loaders.common import Database, LoaderError
from loaders.vocabulary import Vocabulary
from tests.server.loaders.hub import TEXTS, load, run

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize("source", ["files", "directory", "tokenizer.json"])
def test_ingested_vocabulary_encodes_as_the_library(dsn, conn, vocabulary, tmp_path, monkeypatch, source):
    model = f"vocabulary from {source}"
    options = ["--tokenizer", vocabulary]
    if source == "files":
        options = ["--vocab", vocabulary / "vocab.json", "--merges", vocabulary / "merges.txt"]
    elif source == "tokenizer.json":
        Vocabulary.find(vocabulary).save(tmp_path, 32)
        options = ["--tokenizer", tmp_path / "tokenizer.json"]
    run(ingest_tokenizer, monkeypatch, "--dsn", dsn, "--model", model, *options)
    expected = Vocabulary.find(vocabulary).tokenizer()
    for text in TEXTS:
        (ids,) = conn.execute("SELECT llm_encode(%s, %s)", [text, model]).fetchone()
        assert ids == expected.encode(text).ids
        assert conn.execute("SELECT llm_decode(%s::int[], %s)", [ids, model]).fetchone() == (text,)
    assert conn.execute(
        "SELECT token_id, bytes FROM llm_bpe_vocab WHERE model = %s AND token = '<|endoftext|>'", [model]
    ).fetchall() == [(299, b"<|endoftext|>")]


def test_vocabulary_is_replaced_only_when_told(dsn, conn, vocabulary, monkeypatch):
    command = ["--dsn", dsn, "--model", "twice", "--tokenizer", vocabulary]
    run(ingest_tokenizer, monkeypatch, *command)
    with pytest.raises(LoaderError, match="has a vocabulary already"):
        run(ingest_tokenizer, monkeypatch, *command)
    run(ingest_tokenizer, monkeypatch, *command, "--truncate")
    assert conn.execute("SELECT count(*) FROM llm_bpe_vocab WHERE model = 'twice'").fetchone() == (300,)


def test_vocabulary_comes_with_the_model_and_is_saved(conn, directory, vocabulary, tmp_path):
    Vocabulary.find(vocabulary).save(directory, 32)
    load(conn, directory, "whole")
    saved = tmp_path / "saved"
    with conn.transaction():
        save_model.save_model(Database(conn), "whole", saved)
    for name in ("vocab.json", "merges.txt", "tokenizer.json"):
        assert json_or_text(saved / name) == json_or_text(directory / name)
    load(conn, directory, "whole", replace=True)


def json_or_text(path):
    return json.loads(path.read_text()) if path.suffix == ".json" else path.read_text()


def test_vocabulary_without_its_tokens_is_refused(tmp_path):
    (tmp_path / "vocab.json").write_text('{"a": 0}')
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\n")
    with pytest.raises(LoaderError, match="do not fit"):
        Vocabulary.find(tmp_path)


@pytest.mark.parametrize(
    ("place", "change", "message"),
    [
        ("model", {"type": "WordPiece"}, "not a tokenizer.json"),
        ("model", {"ignore_merges": True}, "ignore_merges"),
        ("model", {"dropout": 0.1}, "dropout"),
        ("model", {"end_of_word_suffix": "</w>"}, "end_of_word_suffix"),
        ("model", {"merges": ["a b", "a"]}, "not a tokenizer.json"),
        ("model", {"vocab": None}, "not a tokenizer.json"),
        ("pre_tokenizer", {"type": "Whitespace"}, "not a byte-level BPE"),
        ("pre_tokenizer", {"add_prefix_space": True}, "add_prefix_space"),
        ("pre_tokenizer", {"use_regex": False}, "not a byte-level BPE"),
        ("normalizer", {"type": "NFC"}, "normalizes"),
    ],
)
def test_a_tokenizer_that_is_not_gpt2s_is_refused(tmp_path, place, change, message):
    parsed = json.loads((ROOT / "tests/golden/tokenizer/learned/tokenizer.json").read_bytes())
    parsed[place] = {**(parsed[place] or {}), **change}
    (tmp_path / "tokenizer.json").write_text(json.dumps(parsed))
    with pytest.raises(LoaderError, match=message):
        Vocabulary.find(tmp_path)


LEARNED = ROOT / "tests/golden/tokenizer/learned"


def with_gaps(path, gap):
    """A tokenizer.json with two tokens that `tokenizers` added, whose vocabulary has no token of id `gap`."""
    ids = json.loads((LEARNED / "vocab.json").read_bytes())
    merges = [tuple(line.split(" ")) for line in (LEARNED / "merges.txt").read_text().splitlines()[1:]]
    made = Tokenizer(models.BPE({token: i + (i >= gap) for token, i in ids.items()}, merges))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.add_special_tokens(["<a>", "<b>"])
    made.save(str(path))


def test_ids_that_are_given_twice_are_told(tmp_path):
    """`tokenizers` counts the tokens of a vocabulary with gaps, and gives an added one the id of the last."""
    with_gaps(tmp_path / "tokenizer.json", 400)
    with pytest.raises(LoaderError, match=r"tokenizer\.json: id 600 is given to '<\|endoftext\|>' and to '<a>'"):
        Vocabulary.find(tmp_path / "tokenizer.json")


DECODER = "added_tokens_decoder"


@pytest.mark.parametrize(
    ("name", "said", "message"),
    [
        ("added_tokens.json", {"<a>": [1]}, r"the id of token '<a>' is \[1\]"),
        ("added_tokens.json", {"<a>": -1}, "the id of token '<a>' is -1"),
        ("added_tokens.json", {"<a>": 2**31}, "the id of token '<a>' is 2147483648"),
        ("added_tokens.json", {"<a>": True}, "the id of token '<a>' is True"),
        ("added_tokens.json", {"<a>": 600, "<b>": 600}, "id 600 is given to '<a>' and to '<b>'"),
        ("tokenizer_config.json", {DECODER: [1]}, f"an {DECODER} that is no object"),
        ("tokenizer_config.json", {DECODER: None}, f"an {DECODER} that is no object"),
        ("tokenizer_config.json", {DECODER: {"600": "<a>"}}, "a token that is no object with a content: '<a>'"),
        ("tokenizer_config.json", {DECODER: {"600": {"special": True}}}, "no object with a content"),
        ("tokenizer_config.json", {DECODER: {"many": {"content": "<a>"}}}, "the id of token '<a>' is 'many'"),
        ("tokenizer_config.json", {DECODER: {"9" * 5000: {"content": "<a>"}}}, "the id of token '<a>' is"),
        ("tokenizer_config.json", {"eos_token": {"content": 1}}, "no object with a content"),
        ("tokenizer_config.json", {"eos_token": 7}, "no object with a content: 7"),
        ("tokenizer_config.json", {"extra_special_tokens": 3}, "extra_special_tokens that are no list"),
        ("tokenizer_config.json", {"additional_special_tokens": "<a>"}, "additional_special_tokens that are no list"),
        ("special_tokens_map.json", {"pad_token": {"lstrip": True}}, "no object with a content"),
    ],
)
def test_added_tokens_that_are_none_are_told(tmp_path, name, said, message):
    for file in ("vocab.json", "merges.txt"):
        (tmp_path / file).write_bytes((LEARNED / file).read_bytes())
    (tmp_path / name).write_text(json.dumps(said))
    with pytest.raises(LoaderError, match=rf"{name}.*{message}"):
        Vocabulary.find(tmp_path)


def test_an_id_that_the_database_cannot_have_is_told(tmp_path):
    parsed = json.loads((LEARNED / "tokenizer.json").read_bytes())
    parsed["model"]["vocab"]["ab"] = 2**31
    (tmp_path / "tokenizer.json").write_text(json.dumps(parsed))
    with pytest.raises(LoaderError, match="the id of token 'ab' is 2147483648"):
        Vocabulary.find(tmp_path)


def test_tokenizer_json_of_older_releases_has_merges_as_strings(tmp_path):
    learned = ROOT / "tests/golden/tokenizer/learned"
    parsed = json.loads((learned / "tokenizer.json").read_bytes())
    parsed["model"]["merges"] = [" ".join(pair) for pair in parsed["model"]["merges"]]
    (tmp_path / "tokenizer.json").write_text(json.dumps(parsed))
    assert Vocabulary.find(tmp_path) == Vocabulary.from_files(learned / "vocab.json", learned / "merges.txt")
