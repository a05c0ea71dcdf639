"""llm_dataset_load: what becomes a row, what is refused, and what is said about rows that were there."""

import psycopg
import pytest

TEXTS = ["", "l", "low lower", "lower " * 9, "newest"]  # 1, 2, 3, more than 16, and some ids with the end-of-text
LOAD = "SELECT llm_dataset_load('SELECT body FROM docs ORDER BY id', 'm', 16, {})"
ROWS = "SELECT tokens, target FROM llm_dataset WHERE model = 'm' AND split = %s ORDER BY id"


@pytest.fixture(scope="module", autouse=True)
def _model(module_conn):
    module_conn.execute("CREATE TABLE docs (id integer GENERATED ALWAYS AS IDENTITY, body text)")
    for text in TEXTS:
        module_conn.execute("INSERT INTO docs (body) VALUES (%s)", [text])
    module_conn.execute(
        "SELECT llm_train_bpe($$VALUES ('low lower newest')$$, 262, 'm'), llm_init_model('m', 1, 1, 4, 16)"
    )


@pytest.fixture(autouse=True)
def said(conn) -> list[str]:
    """NOTICEs of this test's session."""
    conn.execute("DELETE FROM llm_dataset")
    notices: list[str] = []
    conn.add_notice_handler(lambda notice: notices.append(notice.message_primary))
    return notices


def load(conn: psycopg.Connection, arguments: str = "pack => true") -> int:
    return conn.execute(LOAD.format(arguments)).fetchone()[0]


def test_without_packing_a_text_has_rows_of_its_own(conn):
    end = conn.execute("SELECT eos_token_id FROM llm_model_config WHERE model = 'm'").fetchone()[0]
    texts = [ids for (ids,) in conn.execute("SELECT llm_encode(body, 'm') FROM docs ORDER BY id")]
    expected = []
    for ids in texts:
        stream = [*ids, end]
        expected += [(stream[i : i + 16][: len(ids) - i], stream[i + 1 : i + 17]) for i in range(0, len(ids), 16)]
    assert load(conn, "pack => false") == len(expected)
    assert conn.execute(ROWS, ["train"]).fetchall() == expected
    assert sum(len(tokens) for tokens, _ in expected) == sum(map(len, texts))
    assert {len(tokens) for tokens, _ in expected} > {1, 16}
    assert conn.execute("SELECT llm_train('m', 3, batch_size => 4, log_every => 0)").fetchone() is not None


def test_many_texts_come_in_their_order_in_whatever_statements(conn):
    conn.execute(
        "CREATE TEMPORARY TABLE many AS SELECT i, repeat('low ', i % 4) AS body FROM generate_series(1, 60000) AS i"
    )
    query = "SELECT llm_dataset_load('SELECT body FROM many ORDER BY i', 'm', 16, pack => false)"
    assert conn.execute(query).fetchone()[0] == conn.execute("SELECT count(*) FROM many WHERE i % 4 > 0").fetchone()[0]
    wrong = conn.execute("""
        SELECT count(*) FROM (SELECT tokens, target, row_number() OVER (ORDER BY id) AS n FROM llm_dataset) AS d
        JOIN (SELECT body, row_number() OVER (ORDER BY i) AS n FROM many WHERE i % 4 > 0) AS t USING (n)
        JOIN llm_model_config AS c ON model = 'm'
        WHERE tokens <> llm_encode(body, 'm') OR target <> tokens[2:] || eos_token_id
    """)
    assert wrong.fetchone()[0] == 0


def test_rows_that_were_there_are_told_of_or_replaced(conn, said):
    rows = load(conn)
    load(conn, "'val'")
    assert said == []
    load(conn)
    assert said == [f'added to {rows} rows that model "m" has in split train; replace => true would delete them']
    assert load(conn, "replace => true") == rows
    assert said[1:] == [f'replaced the {2 * rows} rows that model "m" had in split train']
    counts = conn.execute("SELECT split, count(*) FROM llm_dataset GROUP BY split ORDER BY split").fetchall()
    assert counts == [("train", rows), ("val", rows)]
    load(conn, "val_fraction => 0.5, replace => true")
    assert len(said) == 4
    assert conn.execute("SELECT count(*) FROM llm_dataset").fetchone()[0] == rows


def test_rows_of_others_stay_and_a_failure_deletes_nothing(conn):
    conn.execute("INSERT INTO llm_dataset (model, tokens, target) VALUES ('other', '{1}', '{2}'), (NULL, '{1}', '{2}')")
    load(conn)
    before = conn.execute("SELECT * FROM llm_dataset ORDER BY id").fetchall()
    for source in ("SELECT $$$$", "SELECT body FROM docs WHERE 1 / (id - 3) = 0"):
        with pytest.raises(psycopg.Error):
            conn.execute("SELECT llm_dataset_load(%s, 'm', 16, replace => true)", [source])
    assert conn.execute("SELECT * FROM llm_dataset ORDER BY id").fetchall() == before
    load(conn, "replace => true")
    assert conn.execute("SELECT count(*) FROM llm_dataset WHERE model IS DISTINCT FROM 'm'").fetchone()[0] == 2


def test_rows_that_the_model_could_not_learn_from_are_refused(conn):
    for pack in ("true", "false"):
        with pytest.raises(
            psycopg.errors.InvalidParameterValue, match="block_size 17 is more than the 16 positions"
        ) as error:
            conn.execute(f"SELECT llm_dataset_load('SELECT body FROM docs', 'm', 17, pack => {pack})")
        assert "n_positions" in error.value.diag.message_hint
    assert conn.execute("SELECT count(*) FROM llm_dataset").fetchone()[0] == 0
    conn.execute("SELECT llm_train_bpe($$VALUES ('low lower newest')$$, 262, 'unconfigured')")
    found = conn.execute("SELECT llm_dataset_load('SELECT body FROM docs', 'unconfigured', 20)").fetchone()
    assert found[0] > 0


def test_a_row_that_is_too_long_ends_a_run_before_its_first_step(conn):
    load(conn)
    conn.execute("INSERT INTO llm_dataset (tokens, target) VALUES (array_fill(1, '{17}'), array_fill(2, '{17}'))")
    for call in (
        "SELECT llm_train('m', 100, batch_size => 1)",
        "CALL llm_train_run('m', 100, batch_size => 1, commit_every => 1)",
    ):
        with pytest.raises(psycopg.errors.InvalidParameterValue, match="has 17 tokens, more than the 16 positions"):
            conn.execute(call)
    assert conn.execute("SELECT count(*) FROM llm_run WHERE status <> 'finished'").fetchone()[0] == 0
    assert conn.execute("SELECT count(*) FROM llm_train_log WHERE step > 3").fetchone()[0] == 0


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT llm_generate('', model_name => 'm')",
        "SELECT llm_perplexity('low', 'm', from_start => true)",
        "SELECT llm_dataset_load('VALUES (''low'')', 'm', 4)",
        "SELECT llm_dataset_load_pairs('VALUES (''low'', '' lower'')', 'm')",
    ],
)
def test_what_needs_an_end_of_text_token_refuses_a_model_without_one_alike(conn, statement):
    refused = pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState, match="needs an end-of-text token")
    with conn.transaction(force_rollback=True):
        conn.execute("UPDATE llm_model_config SET eos_token_id = NULL WHERE model = 'm'")
        conn.execute("DELETE FROM llm_bpe_vocab WHERE model = 'm' AND token = '<|endoftext|>'")
        with refused, conn.transaction():
            conn.execute(statement)


@pytest.mark.parametrize(
    ("tokens", "target", "told"),
    [
        ("{1,777}", "{2,3}", "has a token id outside 0..261"),
        ("{1,2}", "{2,777}", "has a token id outside 0..261"),
        ("{-1,2}", "{2,3}", "has a token id outside 0..261"),
        ("{1,2}", "{-100,-99}", "has a token id outside 0..261"),
        ("{1,2}", "{NULL,2}", "has an array with nulls"),
        ("{1,NULL}", "{1,2}", "has an array with nulls"),
        ("{1,2}", "{{1,2}}", "has an array with nulls or more than one dimension"),
        ("{1,2}", "{-100,-100}", "no target of row {row} of llm_dataset carries loss"),
    ],
)
def test_a_row_that_no_step_can_learn_from_ends_a_run_before_its_first_step(conn, tokens, target, told):
    load(conn)
    row = conn.execute(
        "INSERT INTO llm_dataset (model, tokens, target) VALUES ('m', %s, %s) RETURNING id", [tokens, target]
    ).fetchone()[0]
    runs = conn.execute("SELECT count(*) FROM llm_run").fetchone()
    for call in ("SELECT llm_train('m', 3, batch_size => 1)", "CALL llm_train_run('m', 3, batch_size => 1)"):
        with pytest.raises(psycopg.DataError, match=told.format(row=row)) as caught:
            conn.execute(call)
        assert f"{row} of llm_dataset" in str(caught.value)
        assert conn.execute("SELECT count(*) FROM llm_run").fetchone() == runs


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_split_without_any_loss_ends_a_run_before_its_first_step(conn, split):
    """Else a run would learn until its first evaluation, and end there."""
    load(conn, "val_fraction => 0.5")
    conn.execute(
        "UPDATE llm_dataset SET target = array_fill(-100, ARRAY[cardinality(target)]) WHERE split = %s", [split]
    )
    runs = conn.execute("SELECT count(*) FROM llm_run").fetchone()
    for call in ("SELECT llm_train('m', 2, eval_every => 2)", "CALL llm_train_run('m', 2, eval_every => 2)"):
        with pytest.raises(
            psycopg.errors.InvalidParameterValue, match=r"no target of rows? \d+.* of llm_dataset carries"
        ):
            conn.execute(call)
        assert conn.execute("SELECT count(*) FROM llm_run").fetchone() == runs


def test_a_row_without_loss_beside_others_is_learned_from_as_nothing(conn):
    load(conn)
    conn.execute("INSERT INTO llm_dataset (model, tokens, target) VALUES ('m', '{1,2}', '{-100,-100}')")
    for size, accumulated in ((2, 1), (1, 2)):
        conn.execute(
            "SELECT llm_train('m', 1, batch_size => %s, grad_accum => %s, log_every => 0)", [size, accumulated]
        )
