"""Vocabularies: the server encodes as the tokenizers library does, and what is not GPT-2's is refused."""

import json
from pathlib import Path

import pytest

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


def test_tokenizer_json_of_older_releases_has_merges_as_strings(tmp_path):
    learned = ROOT / "tests/golden/tokenizer/learned"
    parsed = json.loads((learned / "tokenizer.json").read_bytes())
    parsed["model"]["merges"] = [" ".join(pair) for pair in parsed["model"]["merges"]]
    (tmp_path / "tokenizer.json").write_text(json.dumps(parsed))
    assert Vocabulary.find(tmp_path) == Vocabulary.from_files(learned / "vocab.json", learned / "merges.txt")
