"""vocab.json and merges.txt as files of the server: what is loaded, and what is refused."""

import json

import pytest
from pg_gpt2.tokenizer import bpe_train
from psycopg import errors


@pytest.fixture
def sql(module_conn):
    """The module's session; what a test made is gone after it."""
    with module_conn.transaction(force_rollback=True):
        yield module_conn


def vocabulary():
    """A tiny vocab.json and merges.txt in GPT-2's form."""
    return bpe_train.train(iter(["# # low lower lowest"]), 262)


def test_a_vocabulary_and_its_merges_are_loaded_and_replaced(sql, put):
    vocab, merges = vocabulary()
    lines = ["#version: 0.2", *(f"{left} {right}" for left, right in merges), ""]
    vocab_path, merges_path = (
        put("vocab.json", json.dumps(vocab).encode()),
        put("merges.txt", "\n".join(lines).encode()),
    )
    assert sql.execute("SELECT pg_llm_load_bpe_vocab(%s, 'v')", [vocab_path]).fetchone() == (len(vocab),)
    assert sql.execute("SELECT pg_llm_load_bpe_merges(%s, 'v')", [merges_path]).fetchone() == (len(merges),)
    sql.execute("SELECT llm_train_bpe($$VALUES ('# # low lower lowest')$$, 262, 'w')")
    for table, columns in (
        ("llm_bpe_vocab", "token_id, token, bytes"),
        ("llm_bpe_merges", 'rank, "left", "right", pair'),
    ):
        query = f"SELECT {columns} FROM {table} WHERE model = %s ORDER BY 1"
        assert sql.execute(query, ["v"]).fetchall() == sql.execute(query, ["w"]).fetchall()
    # a merge whose left side starts with # is no comment
    with_hash = ["#version: 0.2", "# #", *lines[1:]]
    merges_path = put("merges.txt", "\n".join(with_hash).encode())
    assert sql.execute("SELECT pg_llm_load_bpe_merges(%s, 'v')", [merges_path]).fetchone() == (len(merges) + 1,)
    assert sql.execute('SELECT "left", "right" FROM llm_bpe_merges WHERE model = \'v\' AND rank = 0').fetchone() == (
        "#",
        "#",
    )


@pytest.mark.parametrize(
    ("function", "data"),
    [
        ("vocab", b""),
        ("vocab", b"[]"),
        ("vocab", b'{"a": "b"}'),
        ("vocab", b'{"a": -1}'),
        ("vocab", b'{"a": 1, "b": 1}'),
        ("vocab", b"\xff\xfe"),
        ("vocab", b'{"a": 99999999999}'),
        *[
            ("vocab", b'{"a": ' + sign + b"9" * digits + b"}")
            for digits in (4299, 4300, 4301, 100_000)
            for sign in (b"", b"-")
        ],
        ("vocab", b'{"a": 1' + b"0" * 4300 + b".5e1}"),
        ("vocab", b'{"' + b"9" * 4300 + b'": "' + b"9" * 5000 + b'"}'),
        ("merges", b""),
        ("merges", b"\r\n\n"),
        ("merges", b"one\n"),
        ("merges", b"one two three\n"),
        ("merges", b"\xff \xfe\n"),
    ],
)
def test_a_broken_vocabulary_is_refused_and_nothing_changes(sql, put, function, data):
    sql.execute("SELECT llm_train_bpe($$VALUES ('low')$$, 258, 'v')")
    before = sql.execute("SELECT llm_encode('low', 'v')").fetchone()
    with pytest.raises((errors.InvalidTextRepresentation, errors.DataException)) as raised, sql.transaction():
        sql.execute(f"SELECT pg_llm_load_bpe_{function}(%s, 'v')", [put("broken", data)])
    assert raised.value.diag.message_hint
    assert "unexpected" not in raised.value.diag.message_primary
    assert sql.execute("SELECT llm_encode('low', 'v')").fetchone() == before


def test_a_file_of_merges_with_its_version_alone_says_that_there_are_none(sql, put):
    sql.execute("SELECT llm_train_bpe($$VALUES ('low')$$, 258, 'v')")
    assert sql.execute(
        "SELECT pg_llm_load_bpe_merges(%s, 'v')", [put("merges.txt", b"#version: 0.2\n")]
    ).fetchone() == (0,)
    assert sql.execute("SELECT cardinality(llm_encode('low', 'v'))").fetchone() == (3,)
