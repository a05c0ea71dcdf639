"""Generation that goes on for long, in batches, and with several models at once."""

from datetime import timedelta

import psycopg
import pytest

TEXT = "CREATE TABLE docs AS SELECT string_agg('row ' || i * i, ' ') AS body FROM generate_series(1, 900) i"


@pytest.fixture(scope="module", autouse=True)
def models(module_conn: psycopg.Connection) -> None:
    """a, b, c: three models of the same shape and other weights; long: the window of GPT-2."""
    module_conn.execute(TEXT)
    for seed, name in enumerate("abc"):
        module_conn.execute("SELECT llm_train_bpe('SELECT body FROM docs', 280, %s)", [name])
        module_conn.execute("SELECT llm_init_model(%s, 2, 2, 64, 64, seed => %s)", [name, seed])
    module_conn.execute("SELECT llm_train_bpe('SELECT body FROM docs', 280, 'long')")
    module_conn.execute("SELECT llm_init_model('long', 1, 2, 32, 1024)")


def one(conn: psycopg.Connection, query: str, *values: object) -> object:
    return conn.execute(query, values).fetchone()[0]


def test_5000_tokens_from_a_window_of_1024_come_at_a_steady_rate(conn):
    """Past the window every 512 tokens pay one pass over half of it: the last stretch takes as long as the second."""
    with conn.transaction(), conn.cursor(name="long") as cursor:
        cursor.itersize = 512
        cursor.execute(
            "SELECT (llm_generate_stream('', 5000, model_name => 'long', seed => 1, eos_token => -1)).step,"
            " clock_timestamp() AS at"
        )
        times = [at for _, at in cursor]
    assert len(times) == 5000
    stretches = [times[end] - times[end - 512] for end in range(1535, 5000, 512)]
    early, late = stretches[: len(stretches) // 2], stretches[-(len(stretches) // 2) :]
    assert sum(late, timedelta()) < 3 * sum(early, timedelta())  # one that fell with the length would be far slower


@pytest.mark.parametrize("temperature", [0, 1])
def test_a_batch_gives_each_prompt_what_it_gets_alone(conn, temperature):
    """Ragged prompts, past the window, whatever else is in the batch."""
    prompts = ["row 1", "row 4 row 9 row 16 row 25 row 36", "9", "row row row row"]
    options = "150, %s, model_name => 'a', seed => %s, eos_token => -1"
    batch = dict(conn.execute(f"SELECT n, text FROM llm_generate_batch(%s, {options})", [prompts, temperature, 5]))
    smaller = dict(
        conn.execute(f"SELECT n, text FROM llm_generate_batch(%s, {options})", [prompts[:2], temperature, 5])
    )
    alone = [one(conn, f"SELECT llm_generate(%s, {options})", p, temperature, 5 + n) for n, p in enumerate(prompts)]
    assert list(batch.values()) == alone
    assert list(smaller.values()) == alone[:2]


def test_a_session_alternates_between_models(conn, connect):
    query = "SELECT llm_generate('row 9', 20, 0, model_name => %s)"
    alone = {name: one(connect(), query, name) for name in "abc"}
    mixed = [(name, one(conn, query, name)) for name in "abcacbbca"]
    assert mixed == [(name, alone[name]) for name in "abcacbbca"]


def test_memory_for_models_is_bounded_and_the_least_recently_used_goes_first(conn):
    query = "SELECT octet_length(llm_logits(ARRAY[1], %s))"
    conn.execute("SELECT llm_cache_clear()")
    for name in "ab":
        one(conn, query, name)
    (size,) = conn.execute("SELECT bytes FROM llm_cache_status() WHERE model = 'a'").fetchone()
    conn.execute("SELECT set_config('pg_gpt2.max_memory', %s, false)", [f"{size * 28 // 5 // 1024}kB"])
    one(conn, query, "a")
    one(conn, query, "c")
    kept = [name for (name,) in conn.execute("SELECT model FROM llm_cache_status() WHERE kind = 'weights'")]
    assert kept == ["a", "c"]
    assert one(conn, "SELECT llm_cache_clear()") == 2 * size
    assert conn.execute("SELECT * FROM llm_cache_status()").fetchall() == []


def test_what_max_memory_does_not_allow_is_refused(conn):
    conn.execute("SET pg_gpt2.max_memory = '100kB'")
    with pytest.raises(psycopg.errors.OutOfMemory, match="max_memory") as caught:
        conn.execute("SELECT llm_logits(ARRAY[1], 'b')")
    assert caught.value.diag.message_hint


def test_the_owners_cap_holds_whatever_a_session_sets(conn):
    conn.execute("BEGIN")
    conn.execute("INSERT INTO llm_limit VALUES ('max_memory', '100kB')")
    conn.execute("SET LOCAL pg_gpt2.max_memory = '1GB'")
    with pytest.raises(psycopg.errors.OutOfMemory):
        conn.execute("SELECT llm_logits(ARRAY[1], 'b')")
    conn.execute("ROLLBACK")
