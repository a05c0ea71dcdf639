"""pg_gpt2.fast = off: everything runs as the plain NumPy of core, and says the same."""

import psycopg
import pytest


@pytest.fixture(scope="module", autouse=True)
def models(dsn):
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("SELECT llm_train_bpe($$SELECT 'low lower lowest slow slower'$$, 270, 'm')")
        conn.execute("SELECT llm_init_model('m', 2, 2, 64, 32, 268, seed => 1)")


CALLS = [
    "SELECT llm_generate('low', 40, temperature => 0, model_name => 'm')",
    "SELECT llm_generate('low', 12, seed => 7, model_name => 'm')",
    "SELECT string_agg(text, '|' ORDER BY n) FROM llm_generate_batch('{low,lower slow,s}', 9, seed => 3, model_name => 'm')",
    "SELECT string_agg(text, '|' ORDER BY rank) FROM llm_beam_search('low', 3, 6, model_name => 'm')",
    "SELECT token FROM llm_next_token('slow', 1, model_name => 'm')",
]
NUMBERS = [
    "SELECT llm_perplexity('low lower slow', 'm')",
    "SELECT llm_loss('m', '{1,2,3,4}', '{2,3,4,5}', dropout_p => 0)",
    "SELECT sum(abs(v)) FROM unnest(pg_llm_values(llm_logits('{1,2,3}', 'm'))) AS v",
    "SELECT sum(abs(v)) FROM unnest(llm_text_embedding('low slow', model_name => 'm')) AS v",
]


@pytest.mark.parametrize("call", CALLS)
def test_the_same_text(sql, call):
    fast = sql(call)
    sql("SET pg_gpt2.fast = off")
    assert sql(call) == fast
    sql("RESET pg_gpt2.fast")
    assert sql(call) == fast


@pytest.mark.parametrize("call", NUMBERS)
def test_the_same_numbers_but_for_rounding(sql, call):
    fast = sql(call)
    sql("SET pg_gpt2.fast = off")
    assert sql(call) == pytest.approx(fast, rel=1e-5)
    sql("RESET pg_gpt2.fast")
    assert sql(call) == fast  # the very bits


def test_a_run_learns_the_same_and_says_what_it_ran_with(conn):
    losses = {}
    for setting in ("on", "off"):
        conn.execute("SELECT llm_copy_model('m', 'n')")
        conn.execute("SELECT llm_dataset_load($$SELECT repeat('low slower ', 40)$$, 'n', 16)")
        conn.execute(f"SET pg_gpt2.fast = {setting}")
        conn.execute("SELECT llm_train('n', 3, dropout_p => 0.1, seed => 5)")
        run, environment = conn.execute(
            "SELECT run_id, environment FROM llm_run WHERE model = 'n' ORDER BY run_id DESC LIMIT 1"
        ).fetchone()
        assert environment["fast"] is (setting == "on")
        losses[setting] = [
            loss for (loss,) in conn.execute("SELECT loss FROM llm_train_log WHERE run_id = %s ORDER BY step", [run])
        ]
        conn.execute("RESET pg_gpt2.fast; SELECT llm_drop_model('n')")
    assert len(losses["on"]) == 3
    assert losses["off"] == pytest.approx(losses["on"], rel=1e-5)


def test_a_value_that_is_none_is_refused(conn):
    conn.execute("SET pg_gpt2.fast = 'sometimes'")
    with pytest.raises(psycopg.errors.InvalidParameterValue, match=r"pg_gpt2.fast must be on or off"):
        conn.execute(CALLS[0])
    (found,) = conn.execute("SELECT status FROM llm_doctor() WHERE item = 'pg_gpt2.fast'").fetchone()
    assert found == "error"


GELU = "SELECT md5(pg_llm_gelu(pg_llm_tensor(ARRAY(SELECT sin(i) FROM generate_series(1, %s) AS i))))"


def test_what_a_call_runs_does_not_depend_on_the_calls_before(sql):
    small, large = sql(GELU % 999), sql(GELU % 100_000)
    sql("SET pg_gpt2.fast = off")
    assert sql(GELU % 100_000) != large
    assert sql(GELU % 999) == small  # kernels below 256 kB ask for no setting
    sql("RESET pg_gpt2.fast")
    assert sql(GELU % 999) == small
    assert sql(GELU % 100_000) == large


def test_a_stream_goes_on_as_it_began_whatever_comes_between(conn):
    stream = "SELECT (llm_generate_stream('low', 9, temperature => 0, model_name => 'm')).logprob"
    fast = [value for (value,) in conn.execute(stream)]
    conn.execute("SET pg_gpt2.fast = off")
    plain = [value for (value,) in conn.execute(stream)]
    assert plain != fast
    conn.execute(f"BEGIN; DECLARE c CURSOR FOR {stream}")
    found = []
    for _ in range(9):
        found += [value for (value,) in conn.execute("FETCH 1 FROM c")]
        conn.execute(
            "SET LOCAL pg_gpt2.fast = on; SELECT llm_perplexity('low slow', 'm'); SET LOCAL pg_gpt2.fast = off"
        )
    conn.execute("ROLLBACK")
    assert found == plain


def test_a_call_within_a_call_leaves_the_outer_one_as_it_was(conn):
    query = (
        "SELECT array_agg(perplexity) FROM llm_perplexity_rows($$SELECT i, 'low lower slow' || %s"
        " FROM generate_series(1, 999) AS i$$, 'm')"
    )
    alone, within = query % "''", query % "left(pg_llm_gelu('\\x0000803f'::bytea)::text, 0)"
    fast = conn.execute(alone).fetchall()
    assert conn.execute(within).fetchall() == fast
    conn.execute("SET pg_gpt2.fast = off")
    plain = conn.execute(alone).fetchall()
    assert plain != fast
    assert conn.execute(within).fetchall() == plain


def test_it_is_for_the_owner(conn):
    conn.execute("CREATE ROLE reader_along; SELECT llm_grant_usage('reader_along', 'admin')")
    conn.execute("SET ROLE reader_along; SET pg_gpt2.fast = off")
    with pytest.raises(psycopg.errors.InsufficientPrivilege, match="for the owner of the extension"):
        conn.execute(NUMBERS[0])
    (hint,) = conn.execute("SELECT hint FROM llm_doctor() WHERE item = 'pg_gpt2.fast'").fetchone()
    assert hint.startswith("pg_gpt2.fast = off is for the owner")
    conn.execute("RESET pg_gpt2.fast")
    conn.execute(NUMBERS[0])
    conn.execute("RESET ROLE; DROP OWNED BY reader_along; DROP ROLE reader_along")
