"""Audit levels of training: the same bits at every level, rows as the level says, older steps pruned, replay from rows."""

from collections.abc import Iterator

import psycopg
import pytest

SHAPE = "n_layer => 2, n_head => 2, d_model => 16, n_positions => 16, vocab => 61"
OPS = 3 + 1 + 2 * (10 + 2) + 2  # embeddings and their dropout, blocks with dropout, ln_f, loss: of one micro-batch


def value(conn: psycopg.Connection, query: str, *args: object) -> object:
    """The one value of a query."""
    row = conn.execute(query, args).fetchone()
    assert row is not None
    return row[0]


@pytest.fixture(scope="module")
def data(module_conn: psycopg.Connection) -> None:
    """Rows that every model may learn from."""
    module_conn.execute("""
        INSERT INTO llm_dataset (tokens, target)
        SELECT array_agg((i * j) % 61 ORDER BY i), array_agg((i * j + j) % 61 ORDER BY i)
        FROM generate_series(1, 16) AS i, generate_series(1, 6) AS j GROUP BY j ORDER BY j
    """)


@pytest.fixture
def model(conn: psycopg.Connection, data: None) -> Iterator[str]:
    """A small model, dropped with its rows afterwards."""
    conn.execute(f"SELECT llm_init_model('m', {SHAPE}, seed => 3)")
    yield "m"
    conn.execute("SELECT llm_drop_model('m')")


def state(conn: psycopg.Connection, name: str) -> list:
    return conn.execute("SELECT name, data, m, v, step FROM llm_param WHERE model = %s ORDER BY 1", (name,)).fetchall()


def tapes(conn: psycopg.Connection) -> list[tuple]:
    """(step, ops, values with data, values with gradient) of each audited tape."""
    return conn.execute("""
        SELECT step, ops, (SELECT count(data) FROM llm_tensor_rt AS r WHERE r.tape_id = t.tape_id),
               (SELECT count(grad) FROM llm_tensor_rt AS r WHERE r.tape_id = t.tape_id)
        FROM (SELECT tape_id, run_id, step, count(*) AS ops FROM llm_tape WHERE run_id IS NOT NULL GROUP BY 1, 2, 3) AS t
        ORDER BY tape_id
    """).fetchall()


def test_every_level_gives_the_same_bits(conn, data):
    found = []
    for level in ("none", "tape", "full"):
        conn.execute(f"SELECT llm_init_model('m', {SHAPE}, seed => 3)")
        run = value(
            conn, "SELECT llm_train('m', 3, batch_size => 2, grad_accum => 2, grad_clip => 0.5, audit => %s)", level
        )
        loss = value(conn, "SELECT llm_train_step('m', batch => ARRAY[1, 2], audit => %s)", level)
        losses = conn.execute(
            "SELECT loss, grad_norm FROM llm_train_log WHERE run_id = %s ORDER BY step", (run,)
        ).fetchall()
        found.append((state(conn, "m"), loss, losses))
        conn.execute("SELECT llm_drop_model('m')")
    assert found[0] == found[1] == found[2]
    assert tapes(conn) == []
    assert value(conn, "SELECT count(*) FROM llm_tensor_rt") == 0


def test_none_writes_nothing(conn, model):
    conn.execute("SELECT llm_train('m', 2, audit => 'none')")
    assert tapes(conn) == []
    assert value(conn, "SELECT count(*) FROM llm_tensor_rt") == 0


def test_tape_is_the_default_and_keeps_ops_of_the_last_step(conn, model):
    conn.execute("SELECT llm_train('m', 3, batch_size => 2, grad_accum => 2)")
    assert tapes(conn) == [(3, 2 * OPS, 0, 0)]
    assert value(conn, "SELECT count(DISTINCT tensor_id) FROM llm_tensor_map") == 28
    conn.execute("SELECT llm_train_step('m')")
    assert tapes(conn) == [(4, OPS, 0, 0)]


def test_audit_keep_says_how_many_steps_stay(conn, model):
    conn.execute("SET pg_gpt2.audit_keep = 2")
    conn.execute("SELECT llm_train('m', 3)")
    assert [row[0] for row in tapes(conn)] == [2, 3]
    conn.execute("SELECT llm_train_step('m')")
    assert [row[0] for row in tapes(conn)] == [3, 4]
    conn.execute("CALL llm_train_run('m', 4, commit_every => 1, flush_seconds => 0, audit => 'full')")
    assert [row[0] for row in tapes(conn)] == [3, 4]
    assert all(row[2] for row in tapes(conn))
    conn.execute("SET pg_gpt2.audit_keep = 0")
    conn.execute("SELECT llm_train('m', 3)")
    assert [row[0] for row in tapes(conn)] == [3, 4, 1, 2, 3]
    conn.execute("SET pg_gpt2.audit_keep = 'many'")
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="audit_keep"):
        conn.execute("SELECT llm_train('m', 1)")


def test_full_keeps_values_and_gradients_that_replay_exactly(conn, model):
    conn.execute("SELECT llm_train('m', 2, batch_size => 2, grad_accum => 2, audit => 'full')")
    values = 28 + 2 * OPS
    assert tapes(conn) == [(2, 2 * OPS, values, values)]
    tape, gelu, output = conn.execute("SELECT tape_id, id, output FROM llm_tape WHERE name = 'gelu' LIMIT 1").fetchone()
    assert conn.execute("SELECT * FROM llm_replay_tape(%s)", (tape,)).fetchall() == []
    conn.execute("UPDATE llm_tensor_rt SET data = pg_llm_ones_like(data) WHERE id = %s", (output,))
    assert gelu in {row[0] for row in conn.execute("SELECT * FROM llm_replay_tape(%s)", (tape,))}


def test_which_op_had_the_largest_gradient_in_the_last_step(conn, model):
    """The question that the tape is for, in one statement."""
    conn.execute("SELECT llm_train_step('m', audit => 'full')")
    rows = conn.execute("""
        SELECT t.step, t.name, m.norm FROM llm_tape AS t JOIN llm_tensor_rt AS r ON r.id = t.output,
            LATERAL (SELECT sqrt(sum(g::double precision ^ 2)) AS norm FROM unnest(pg_llm_values(r.grad)) AS g) AS m
        WHERE t.step = (SELECT max(step) FROM llm_train_log WHERE model = 'm') AND t.name <> 'lm_head_loss'
        ORDER BY m.norm DESC LIMIT 1
    """).fetchall()
    assert len(rows) == 1
    assert rows[0][2] > 0


def test_the_tape_of_a_training_step_names_its_parameters(conn, model):
    conn.execute("SELECT llm_train_step('m')")
    dot = value(conn, "SELECT llm_tape_dot(max(tape_id)) FROM llm_tape")
    assert 'label="h.1.mlp.c_proj.weight\\n64 × 16"' in dot  # type: ignore[operator]


def test_an_unknown_level_is_an_error(conn, model):
    for call in (
        "llm_train('m', 1, audit => 'all')",
        "llm_train_step('m', audit => 'all')",
        "llm_loss('m', '{1}', '{2}', audit => 'all')",
    ):
        with pytest.raises(psycopg.errors.InvalidParameterValue, match="audit must be one of none, tape, full"):
            conn.execute(f"SELECT {call}")


def test_loss_records_as_its_level_says(conn, model):
    """On the session's tape; the mode decides where no level is given."""
    counts = """
        SELECT count(*), count(r.data) FROM llm_tape AS t JOIN llm_tensor_rt AS r ON r.id = t.output
        WHERE t.tape_id = llm_tape_id()
    """
    conn.execute("SET pg_gpt2.tape = 'session'")
    results = []
    for level, rows in ((None, (0, 0)), ("none", (0, 0)), ("tape", (OPS, 0)), ("full", (OPS, OPS))):
        results.append(value(conn, "SELECT llm_loss('m', '{1,2,3}', '{2,3,4}', seed => 1, audit => %s)", level))
        assert conn.execute(counts).fetchone() == rows
        conn.execute("SELECT llm_prune_autograd_state()")
    assert len(set(results)) == 1
    conn.execute("SET pg_gpt2.autograd = on")
    conn.execute("SELECT llm_loss('m', '{1,2,3}', '{2,3,4}', audit => 'none')")
    assert conn.execute(counts).fetchone() == (0, 0)
