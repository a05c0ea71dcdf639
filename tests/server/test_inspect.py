"""Looking inside a forward pass and a tape: what is shown is what the model computes, and a changed row is found."""

import shutil
import subprocess
import time
from collections.abc import Iterator

import numpy as np
import psycopg
import pytest
from psycopg import conninfo, errors

PROMPT = "low newer wider"


@pytest.fixture(scope="module")
def dsn(dsn: str) -> str:
    """Sessions whose tapes last: these tests use handles in statements of their own."""
    return conninfo.make_conninfo(dsn, options="-c pg_gpt2.tape=session")


@pytest.fixture(scope="module")
def model(module_conn: psycopg.Connection) -> str:
    """A model of random weights large enough that no term hides, with a vocabulary."""
    module_conn.execute("SELECT llm_train_bpe($$SELECT 'low lower lowest newer wider the quick brown fox'$$, 270, 'm')")
    module_conn.execute("SELECT llm_init_model('m', 2, 2, 16, 32, seed => 1)")
    module_conn.execute("""
        UPDATE llm_param SET data = (
            SELECT pg_llm_tensor(array_agg(x * 8 ORDER BY n)) FROM unnest(pg_llm_values(data)) WITH ORDINALITY AS v (x, n))
        WHERE model = 'm' AND name ~ 'c_|wte|wpe'
    """)
    return "m"


def value(conn: psycopg.Connection, query: str, *args: object) -> object:
    """The one value of a query."""
    row = conn.execute(query, args).fetchone()
    assert row is not None
    return row[0]


def traced(conn: psycopg.Connection) -> dict[str, np.ndarray]:
    """Name -> value of a trace."""
    rows = conn.execute("SELECT name, shape, data FROM llm_trace(%s, 'm') ORDER BY seq", (PROMPT,)).fetchall()
    found = {name: np.frombuffer(data, "<f4").reshape(shape) for name, shape, data in rows}
    assert len(found) == len(rows)  # no name twice
    return found


def test_a_trace_ends_in_the_models_logits_and_probabilities(conn, model):
    steps = traced(conn)
    assert steps["logits"].tobytes() == value(conn, "SELECT llm_logits(llm_encode(%s, 'm'), 'm')", PROMPT)
    np.testing.assert_allclose(steps["probabilities"].sum(axis=-1), 1, rtol=1e-5)
    best = conn.execute(
        "SELECT token_id, probability FROM llm_next_token(%s, 1, model_name => 'm')", (PROMPT,)
    ).fetchone()
    assert steps["probabilities"][-1].argmax() == best[0]
    assert steps["probabilities"][-1].max() == pytest.approx(best[1], rel=1e-4)


def test_the_steps_of_a_trace_follow_from_each_other(conn, model):
    """Attention by hand from q, k and v; residuals add up."""
    steps = traced(conn)
    x = steps["embeddings"]
    for layer in range(2):
        p = f"h.{layer}."
        q, k, v = (steps[f"{p}attn.{part}"] for part in "qkv")
        scores = q @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1])
        scores[..., ~np.tri(q.shape[1], dtype=bool)] = -np.inf
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        np.testing.assert_allclose(steps[f"{p}attn.weights"], weights, atol=1e-6)
        heads = (weights @ v).swapaxes(0, 1).reshape(q.shape[1], -1)
        np.testing.assert_allclose(steps[f"{p}attn.heads"], heads, atol=1e-5)
        np.testing.assert_array_equal(steps[f"{p}attn.residual"], x + steps[f"{p}attn.c_proj"])
        x = steps[f"{p}attn.residual"] + steps[f"{p}mlp.c_proj"]
        np.testing.assert_array_equal(steps[f"{p}output"], x)


def test_attention_weights_are_those_of_the_trace(conn, model):
    steps = traced(conn)
    rows = conn.execute("SELECT * FROM llm_attention_weights(%s, 1, 0, 'm')", (PROMPT,)).fetchall()
    wanted = steps["h.1.attn.weights"][0]
    assert len(rows) == len(wanted) * (len(wanted) + 1) // 2
    tokens = value(
        conn,
        "SELECT array_agg(llm_decode(ARRAY[id], 'm') ORDER BY n) FROM unnest(llm_encode(%s, 'm')) WITH ORDINALITY AS t (id, n)",
        PROMPT,
    )
    for q, q_token, k, k_token, weight in rows:
        assert (q_token, k_token) == (tokens[q], tokens[k])  # type: ignore[index]
        assert weight == pytest.approx(wanted[q, k], rel=1e-6)


def test_the_last_layer_of_the_lens_is_the_model(conn, model):
    rows = conn.execute(
        "SELECT layer, rank, token_id, probability FROM llm_logit_lens(%s, 'm', 3)", (PROMPT,)
    ).fetchall()
    assert [row[:2] for row in rows] == [(layer, rank) for layer in range(3) for rank in range(1, 4)]
    last = conn.execute(
        "SELECT token_id, probability FROM llm_next_token(%s, 3, model_name => 'm')", (PROMPT,)
    ).fetchall()
    assert [row[2] for row in rows[-3:]] == [row[0] for row in last]
    assert [row[3] for row in rows[-3:]] == pytest.approx([row[1] for row in last], rel=1e-5)


def test_the_lens_says_at_which_layer_numbers_end(conn, model):
    with conn.transaction(force_rollback=True):
        conn.execute(
            "UPDATE llm_param SET data = pg_llm_tensor(array_fill('NaN'::float8, ARRAY[octet_length(data) / 4]))"
            " WHERE model = 'm' AND name = 'h.1.ln_1.bias'"
        )
        with pytest.raises(errors.DataException, match="after 2 blocks are not finite"):
            conn.execute("SELECT * FROM llm_logit_lens(%s, 'm')", (PROMPT,))


def test_token_embedding_is_a_row_of_wte(conn, model):
    wte = np.frombuffer(value(conn, "SELECT data FROM llm_param WHERE model = 'm' AND name = 'wte'"), "<f4").reshape(
        -1, 16
    )  # type: ignore[call-overload]
    for token in (0, 100, len(wte) - 1):
        assert np.float32(value(conn, "SELECT llm_token_embedding(%s, 'm')", token)).tolist() == wte[token].tolist()
    with pytest.raises(errors.InvalidParameterValue):
        conn.execute("SELECT llm_token_embedding(%s, 'm')", (len(wte),))


@pytest.fixture
def tape(conn: psycopg.Connection, model: str) -> Iterator[psycopg.Connection]:
    """A recorded loss with gradients."""
    conn.execute("SET pg_gpt2.autograd = on")
    conn.execute("SELECT llm_loss('m', '{1,2,3,4}', '{2,3,4,5}', dropout_p => 0.2, seed => 1)")
    conn.execute("SELECT llm_backprop()")
    yield conn
    conn.execute("SELECT llm_prune_autograd_state()")


def differing(conn: psycopg.Connection) -> set[tuple[int, str]]:
    """(tape row, what) of a replay's report."""
    return {(row[0], row[3]) for row in conn.execute("SELECT * FROM llm_replay_tape()")}


def test_an_untouched_tape_replays_exactly(tape):
    assert differing(tape) == set()


PLUS = "pg_llm_add({0}, pg_llm_tensor(array_fill(0.5, ARRAY[octet_length({0}) / 4])))"


@pytest.mark.parametrize("op", ["embedding", "layernorm", "causal_attention", "gelu", "lm_head_loss"])
def test_a_tampered_value_is_found_at_its_op(tape, op):
    row, output = tape.execute(
        "SELECT id, output FROM llm_tape WHERE tape_id = llm_tape_id() AND name = %s LIMIT 1", (op,)
    ).fetchone()
    tape.execute(f"UPDATE llm_tensor_rt SET data = {PLUS.format('data')} WHERE id = %s", (output,))
    assert (row, "value") in differing(tape)


@pytest.mark.parametrize("op", ["layernorm", "linear", "gelu"])
def test_a_tampered_gradient_is_found_at_an_op_that_gave_it(tape, op):
    output = value(tape, "SELECT output FROM llm_tape WHERE tape_id = llm_tape_id() AND name = %s LIMIT 1", op)
    users = {
        row
        for (row,) in tape.execute(
            "SELECT id FROM llm_tape WHERE tape_id = llm_tape_id() AND %s = ANY (inputs)", (output,)
        )
    }
    tape.execute(f"UPDATE llm_tensor_rt SET grad = {PLUS.format('grad')} WHERE id = %s", (output,))
    assert {row for row, what in differing(tape) if what == "gradient"} & users


def test_a_tampered_parameter_or_attribute_is_found_at_its_op(tape):
    row, weight = tape.execute(
        "SELECT id, inputs[2] FROM llm_tape WHERE tape_id = llm_tape_id() AND name = 'linear' ORDER BY id LIMIT 1"
    ).fetchone()
    tape.execute(f"UPDATE llm_tensor_rt SET data = {PLUS.format('data')} WHERE id = %s", (weight,))
    assert {found for found, _ in differing(tape)} == {row}
    tape.execute(
        f"UPDATE llm_tensor_rt SET data = {PLUS.format('data').replace('0.5', '-0.5')} WHERE id = %s", (weight,)
    )
    row = value(
        tape,
        "UPDATE llm_tape SET extra = jsonb_set(extra, '{seed}', '2') WHERE id ="
        " (SELECT max(id) FROM llm_tape WHERE name = 'dropout' AND tape_id = llm_tape_id()) RETURNING id",
    )
    assert (row, "value") in differing(tape)


def test_gradcheck_of_a_hand_written_graph(conn):
    rng = np.random.default_rng(0)
    handles = [
        value(conn, "SELECT llm_variable(%s, %s, true)", rng.normal(size=shape).astype("<f4").tobytes(), list(shape))
        for shape in ((3, 4), (4, 5), (5,), (5,), (5,))
    ]
    x, w, b, gamma, beta = handles
    y = value(conn, "SELECT llm_op('add', ARRAY[llm_op('matmul', ARRAY[%s, %s]::bigint[]), %s])", x, w, b)
    y = value(
        conn,
        "SELECT llm_op('layernorm', ARRAY[llm_op('gelu', ARRAY[%s]::bigint[]), %s, %s], '{\"eps\": 1e-5}')",
        y,
        gamma,
        beta,
    )
    y = value(conn, "SELECT llm_op('cross_entropy', ARRAY[%s]::bigint[], '{\"target\": [1, 0, 4]}')", y)
    rows = conn.execute("SELECT * FROM llm_gradcheck(%s)", (y,)).fetchall()
    assert [row[0] for row in rows] == handles
    assert all(row[-1] for row in rows)
    assert [row[1] for row in rows] == [12, 20, 5, 5, 5]
    conn.execute("SELECT llm_prune_autograd_state()")


def test_dot_of_one_block_is_a_graph_that_graphviz_takes(tape):
    dot = value(tape, "SELECT llm_tape_dot()")
    assert 'label="h.0.attn.c_attn.weight\\n16 × 48"' in dot  # type: ignore[operator]
    rows = value(tape, "SELECT count(*) FROM llm_tape WHERE tape_id = llm_tape_id()")
    assert dot.count("shape=box") == rows  # type: ignore[attr-defined]
    if shutil.which("dot"):
        subprocess.run(["dot", "-Tsvg"], input=str(dot).encode(), check=True, capture_output=True)


@pytest.mark.parametrize("call", ["llm_replay_tape(-1)", "llm_tape_dot(-1)"])
def test_an_unknown_tape_does_not_exist(conn, call):
    with pytest.raises(errors.UndefinedObject, match="tape -1"):
        conn.execute(f"SELECT {call}")


def test_a_long_tape_can_be_interrupted_and_asks_for_memory(conn):
    ops = 200_000
    first = value(conn, "SELECT llm_variable('\\x0000803f', '{1}', true)")
    conn.execute(
        "INSERT INTO llm_tensor_rt (id, tape_id, data, shape, requires_grad)"
        " SELECT 1000000 + i, llm_tape_id(), '\\x0000803f', '{1}', true FROM generate_series(1, %s) AS i",
        (ops,),
    )
    conn.execute(
        "INSERT INTO llm_tape (tape_id, name, inputs, output, extra) SELECT llm_tape_id(), 'scale',"
        " ARRAY[CASE WHEN i = 1 THEN %s ELSE 999999 + i END], 1000000 + i, '{\"factor\": 1}' FROM generate_series(1, %s) AS i",
        (first, ops),
    )
    for call in ("SELECT llm_backprop()", "SELECT llm_tape_dot()", "SELECT * FROM llm_replay_tape()"):
        conn.execute("SET statement_timeout = '700ms'")
        began = time.monotonic()
        with pytest.raises(errors.QueryCanceled):
            conn.execute(call)
        assert time.monotonic() - began < 2.7  # 0.5 s late on an idle machine; a busy one may take longer
        conn.execute("SET statement_timeout = 0; SET pg_gpt2.max_memory = '100MB'")
        with pytest.raises(errors.OutOfMemory, match=f"of {ops} ops"):
            conn.execute(call)
        conn.execute("RESET pg_gpt2.max_memory")
    conn.execute("SELECT llm_prune_autograd_state()")
