"""The worked examples of docs/sql: plain SQL over the tables, each equal to what the engine computes."""

import re
from pathlib import Path

import numpy as np
import psycopg
import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "docs" / "sql"
WORDS = "the quick brown fox jumps over the lazy dog. low lower lowest newer wider aaaa aaaaa, 'tis what it's: 12 345!"


def example(conn: psycopg.Connection, name: str) -> None:
    """Prepare the statement of an example."""
    conn.execute((EXAMPLES / f"{name}.sql").read_text())  # type: ignore[arg-type]


def value(conn: psycopg.Connection, query: str, *args: object) -> object:
    """The one value of a query."""
    row = conn.execute(query, args).fetchone()  # type: ignore[arg-type]
    assert row is not None
    return row[0]


def execute(conn: psycopg.Connection, name: str, *args: object) -> list[tuple]:
    """Rows of a prepared example."""
    literals = ", ".join(psycopg.sql.quote(arg) for arg in args)
    return conn.execute(f"EXECUTE {name}({literals})").fetchall()  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def model(module_conn: psycopg.Connection) -> str:
    """A small model that has learned to write its few words."""
    module_conn.execute("CREATE TABLE words AS SELECT %s::text AS body FROM generate_series(1, 30)", (WORDS,))
    module_conn.execute("SELECT llm_train_bpe('SELECT body FROM words', 290, 'tiny')")
    module_conn.execute("SELECT llm_init_model('tiny', 2, 2, 16, 48, seed => 4)")
    module_conn.execute("SELECT llm_dataset_load('SELECT body FROM words', 'tiny', 32)")
    module_conn.execute(
        "SELECT llm_train('tiny', 120, batch_size => 4, lr_max => 0.01, dropout_p => 0, log_every => 0)"
    )
    return "tiny"


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.sql")), ids=lambda path: path.stem)
def test_an_example_is_plain_sql(path):
    code = re.sub(r"--.*", "", path.read_text())
    assert not re.search(
        r"plpython|pg_llm_|\bllm_(?!bpe_vocab|bpe_merges|model_config|param)|CREATE (OR REPLACE )?(FUNCTION|PROCEDURE)|\bDO\b",
        code,
    )
    assert len(path.read_text().splitlines()) <= 500


def test_there_are_three_examples():
    assert {path.stem for path in EXAMPLES.glob("*.sql")} == {"bpe_merges", "generate", "gradient_step"}


@pytest.mark.parametrize("word", ["lowest", "aaaaaaa", "quicklowerthe", "wé", "x", "Mississippilessly"])
def test_bpe_merges_are_those_of_the_engine(conn, model, word):
    example(conn, "bpe_merges")
    engine = conn.execute("SELECT step, token_id, merged, pieces FROM llm_bpe_trace(%s, 'tiny')", (word,)).fetchall()
    assert execute(conn, "bpe_merges", word, "tiny") == engine


@pytest.mark.parametrize("prompt", ["the quick", "low lower", "it's  12"])
def test_generation_in_one_query_is_llm_generate(conn, model, prompt):
    conn.execute("SET jit = off")  # compiling costs more than running
    example(conn, "generate")
    text = value(conn, "SELECT llm_generate(%s, 4, temperature => 0, model_name => 'tiny')", prompt)
    ids = value(
        conn, "SELECT llm_generate_tokens(llm_encode(%s, 'tiny'), 4, temperature => 0, model_name => 'tiny')", prompt
    )
    assert execute(conn, "generate", prompt, 4, "tiny") == [(text, ids)]


SHAPES = {"w1": (3, 5), "b1": (5,), "w2": (5, 4), "b2": (4,)}
FORWARD = """
    SELECT llm_op('cross_entropy', ARRAY[llm_op('add', ARRAY[llm_op('matmul', ARRAY[
        llm_op('gelu', ARRAY[llm_op('add', ARRAY[llm_op('matmul', ARRAY[%s, %s]::bigint[]), %s]::bigint[])]), %s]::bigint[]),
        %s]::bigint[])],
        jsonb_build_object('target', %s::int[]))
"""


def test_one_gradient_step_as_one_statement_is_the_engines(conn):
    """Three steps; weights, moments and losses within 1e-4."""
    conn.execute("SET pg_gpt2.tape = 'session'")
    rng = np.random.default_rng(2)
    weights = {name: rng.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}
    x, y = rng.normal(size=(6, 3)).astype(np.float32), rng.integers(0, 4, 6).tolist()
    example(conn, "gradient_step")
    for n in range(6):
        conn.execute("INSERT INTO sample VALUES (%s, %s, %s)", (n, x[n].tolist(), y[n]))
    for name, array in weights.items():
        for (i, j), number in np.ndenumerate(np.atleast_2d(array)):
            conn.execute("INSERT INTO net (name, i, j, value) VALUES (%s, %s, %s, %s)", (name, i, j, float(number)))
    state = {name: (array.tobytes(), None, None) for name, array in weights.items()}
    for step in range(1, 4):
        ((loss, n_weights),) = execute(conn, "gradient_step", 0.05, 0.1, step)
        assert n_weights == sum(array.size for array in weights.values())
        handles = {
            name: value(conn, "SELECT llm_variable(%s, %s, true)", state[name][0], list(shape))
            for name, shape in SHAPES.items()
        }
        data = value(conn, "SELECT llm_variable(%s, '{6,3}', false)", x.tobytes())
        expected = value(conn, FORWARD, data, *handles.values(), y)
        assert loss == pytest.approx(np.frombuffer(value(conn, "SELECT llm_value(%s)", expected), "<f4")[0], rel=1e-4)  # type: ignore[call-overload]
        conn.execute("SELECT llm_backprop()")
        for name, handle in handles.items():
            state[name] = conn.execute(
                "SELECT * FROM pg_llm_adamw_step(%s, llm_grad(%s), %s, %s, 0.05, 0.9, 0.999, 1e-8, %s, %s)",
                (state[name][0], handle, *state[name][1:], 0.1 if name.startswith("w") else 0.0, step),
            ).fetchone()
        conn.execute("SELECT llm_prune_autograd_state()")
    for name in SHAPES:
        rows = np.array(conn.execute("SELECT value, m, v FROM net WHERE name = %s ORDER BY i, j", (name,)).fetchall())
        for column, content in zip(rows.T, state[name], strict=True):
            np.testing.assert_allclose(column, np.frombuffer(content, "<f4"), rtol=1e-4, atol=1e-6)
