"""Data: blocks without seams between texts, the same as the server makes, and fit for the model."""

import json
from dataclasses import replace

import psycopg
import pytest
from pg_gpt2.tokenizer.added import AddedToken

from loaders import ingest_tokenizer, prepare_dataset
from loaders.common import Database, LoaderError
from loaders.prepare_dataset import find_files
from loaders.vocabulary import Vocabulary
from tests.server.loaders.hub import TEXTS, run


def rows_of(conn, model):
    found = conn.execute("SELECT split, tokens, target FROM llm_dataset WHERE model = %s ORDER BY id", [model])
    return found.fetchall()


def test_dataset_has_no_seams(dsn, conn, vocabulary, tmp_path, monkeypatch, capsys):
    for number, text in enumerate(TEXTS):
        (tmp_path / f"{number}.txt").write_bytes(text.encode())
    command = ["--dsn", dsn, "--tokenizer", vocabulary, "--input", tmp_path / "[01].txt", tmp_path / "2.txt"]
    run(prepare_dataset, monkeypatch, *command, "--block-size", 8, "--model", "seams", "--val-fraction", 0.25)
    encoder = Vocabulary.find(vocabulary).tokenizer()
    stream = [number for text in TEXTS for number in [*encoder.encode(text).ids, 299]]
    blocks = (len(stream) - 1) // 8
    found = rows_of(conn, "seams")
    assert [tokens for _, tokens, _ in found] == [stream[8 * i : 8 * i + 8] for i in range(blocks)]
    assert [target for _, _, target in found] == [stream[8 * i + 1 : 8 * i + 9] for i in range(blocks)]
    n_val = round(blocks / 4)
    assert [split for split, _, _ in found] == ["train"] * (blocks - n_val) + ["val"] * n_val
    assert f"{len(stream) - 8 * blocks - 1} of {len(stream)} tokens did not fill a block" in capsys.readouterr().out
    run(prepare_dataset, monkeypatch, *command, "--block-size", 8, "--model", "seams", "--truncate")
    assert [row[1:] for row in rows_of(conn, "seams")] == [row[1:] for row in found]


def test_dataset_from_a_query_equals_the_server_s_own(dsn, conn, vocabulary, monkeypatch):
    conn.execute("CREATE TABLE documents (n int, body text)")
    conn.cursor().executemany("INSERT INTO documents VALUES (%s, %s)", [*enumerate(TEXTS), (9, None)])
    query = "SELECT body FROM documents ORDER BY n"
    for model in ("client", "server"):
        run(ingest_tokenizer, monkeypatch, "--dsn", dsn, "--model", model, "--tokenizer", vocabulary)
    run(
        prepare_dataset, monkeypatch,
        *("--dsn", dsn, "--model", "client", "--query", query, "--block-size", 16, "--val-fraction", 0.3),
    )  # fmt: skip
    conn.execute("SELECT llm_dataset_load(%s, 'server', 16, 'train', 0.3)", [query])
    assert rows_of(conn, "client") == rows_of(conn, "server")
    assert rows_of(conn, "client")


def test_a_text_that_the_vocabulary_has_no_bytes_for_is_refused_as_by_llm_encode(
    dsn, conn, vocabulary, tmp_path, monkeypatch
):
    """`tokenizers` drops them, and the text would be stored damaged."""
    made = json.loads(Vocabulary.find(vocabulary).tokenizer().to_str())
    for token in ("~", "Ã"):  # no merge has either
        assert not any(token in pair for pair in made["model"]["merges"])
        del made["model"]["vocab"][token]
    (tmp_path / "tokenizer.json").write_text(json.dumps(made))
    run(ingest_tokenizer, monkeypatch, "--dsn", dsn, "--model", "lack", "--tokenizer", tmp_path / "tokenizer.json")
    with pytest.raises(psycopg.Error, match="lacks the token '~'"):
        conn.execute("SELECT llm_encode('a~b', 'lack')")
    command = ["--dsn", dsn, "--model", "lack", "--block-size", 4, "--input", tmp_path / "text.txt"]
    for text, token in (("a~bc abc abc", "~"), ("béz abc abc", "Ã")):
        (tmp_path / "text.txt").write_text(text, encoding="utf-8")
        with pytest.raises(LoaderError, match=f"lacks the token '{token}'"):
            run(prepare_dataset, monkeypatch, *command)
    (tmp_path / "text.txt").write_text("abc abc abc")
    run(prepare_dataset, monkeypatch, *command)
    assert rows_of(conn, "lack")


def test_tokens_that_strip_and_are_white_space_are_found_as_by_llm_encode(dsn, conn, vocabulary, tmp_path, monkeypatch):
    """In such a text `tokenizers` panics."""
    made = Vocabulary.find(vocabulary)
    new = {300: AddedToken("<think>", rstrip=True), 301: AddedToken("\n", lstrip=True)}
    added = replace(made, ids=made.ids | {token.content: i for i, token in new.items()}, added=made.added | new)
    with conn.transaction():
        added.store(Database(conn), "strips", replace=False)
    text = "y<think>     \n\n\n  y"
    (tmp_path / "text.txt").write_text(text)
    (ids,) = conn.execute("SELECT llm_encode(%s, 'strips')", [text]).fetchone()
    options = ("--block-size", len(ids), "--input", tmp_path / "text.txt")
    run(prepare_dataset, monkeypatch, "--dsn", dsn, "--model", "strips", *options)
    assert rows_of(conn, "strips") == [("train", ids, [*ids[1:], 299])]


def test_brackets_that_are_in_a_name(tmp_path, monkeypatch):
    """What is there as it is written is meant; else brackets are a set of characters, as in a shell."""
    folder = tmp_path / "texts [1]"
    folder.mkdir()
    for name in ("a.txt", "b.txt", "[ab].txt"):
        (folder / name).touch()
        (tmp_path / name).touch()
    assert find_files([f"{folder}/*.txt"]) == [folder / name for name in ("[ab].txt", "a.txt", "b.txt")]
    assert find_files([f"{folder}/[ab].txt"]) == [folder / "[ab].txt"]
    assert find_files([f"{tmp_path}/texts*/[a].txt"]) == [folder / "a.txt"]
    assert find_files([f"{tmp_path}/**/[b].txt"]) == [tmp_path / "b.txt", folder / "b.txt"]
    monkeypatch.chdir(folder)
    assert [*map(str, find_files(["[ab].txt", "[b].txt"]))] == ["[ab].txt", "b.txt"]


def test_all_rows_of_a_query_are_read(conn, monkeypatch):
    """In many pages of a cursor."""
    monkeypatch.setattr(prepare_dataset, "ROWS", 7)
    with conn.transaction():
        found = [*prepare_dataset.query_texts(conn, "SELECT i::text FROM generate_series(1, 1000) AS i")]
    assert found == [str(i) for i in range(1, 1001)]


def test_texts_that_cannot_be_used(dsn, vocabulary, tmp_path, monkeypatch):
    command = ["--dsn", dsn, "--tokenizer", vocabulary, "--block-size", 1000, "--input"]
    with pytest.raises(LoaderError, match="no file matches"):
        run(prepare_dataset, monkeypatch, *command, tmp_path / "*.txt")
    (tmp_path / "short.txt").write_text("short")
    with pytest.raises(LoaderError, match="do not fill one block"):
        run(prepare_dataset, monkeypatch, *command, tmp_path / "*.txt")
    (tmp_path / "latin.txt").write_bytes(b"na\xefve")
    with pytest.raises(LoaderError, match=r"latin\.txt is not UTF-8"):
        run(prepare_dataset, monkeypatch, *command, tmp_path / "*.txt")
    with pytest.raises(LoaderError, match="--query: syntax error"):
        run(prepare_dataset, monkeypatch, *command[:4], "--query", "documents")


def test_a_role_that_policies_apply_to_is_told_what_it_can_do(dsn, conn, vocabulary, tmp_path, monkeypatch):
    (tmp_path / "text.txt").write_text("as many words as fill a few rows " * 20)
    conn.execute("CREATE ROLE filtered")
    try:
        conn.execute("SELECT llm_grant_usage('filtered', 'train')")
        conn.execute("ALTER TABLE llm_dataset ENABLE ROW LEVEL SECURITY")
        options = ("--tokenizer", vocabulary, "--block-size", 8, "--input", tmp_path / "text.txt")
        with pytest.raises(LoaderError, match=r"rows of llm_dataset are sent by COPY, .* llm_dataset_load"):
            run(prepare_dataset, monkeypatch, "--dsn", f"{dsn} options='-c role=filtered'", *options)
    finally:
        conn.execute("ALTER TABLE llm_dataset DISABLE ROW LEVEL SECURITY")
        conn.execute("DROP OWNED BY filtered; DROP ROLE filtered")


def test_rows_fit_the_model_and_what_was_there_is_told_of(dsn, conn, vocabulary, tmp_path, monkeypatch, capsys):
    conn.execute(
        "SELECT llm_init_model('narrow', n_layer => 1, n_head => 1, d_model => 8, n_positions => 16, vocab => 300)"
    )
    (tmp_path / "text.txt").write_text("as many words as fill a few rows " * 20)
    command = ["--dsn", dsn, "--tokenizer", vocabulary, "--model", "narrow", "--input", tmp_path / "text.txt"]
    with pytest.raises(LoaderError, match='--block-size 17 is more than the 16 positions of model "narrow"'):
        run(prepare_dataset, monkeypatch, *command, "--block-size", 17)
    run(prepare_dataset, monkeypatch, *command)
    assert {len(tokens) for _, tokens, _ in rows_of(conn, "narrow")} == {16}
    rows = len(rows_of(conn, "narrow"))
    assert "were there already" not in capsys.readouterr().out
    run(prepare_dataset, monkeypatch, *command)
    assert capsys.readouterr().out.startswith(f"{rows} rows were there already, and were kept\nstored {rows} rows")
    run(prepare_dataset, monkeypatch, *command, "--truncate")
    assert "were there already" not in capsys.readouterr().out
