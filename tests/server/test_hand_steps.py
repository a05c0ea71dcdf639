"""llm_train_step keeps what it trained in the session's memory, and uses it only where the rows are still what it wrote."""

from collections.abc import Callable, Iterator

import psycopg
import pytest

Sql = Callable[..., object]
STEP = "SELECT llm_train_step('m', lr_max => 0.05, seed => 3)"
STATE = """
    SELECT md5(string_agg(concat_ws(' ', name, token_id, md5(data), md5(m), md5(v), step), ',' ORDER BY name, token_id))
    FROM llm_param WHERE model = 'm'
"""
KEPT = "SELECT count(*) FROM llm_cache_status() WHERE kind = 'training' AND model = 'm'"


@pytest.fixture
def model(sql: Sql) -> Iterator[str]:
    """A small model and its data."""
    sql("SELECT llm_init_model('m', 2, 2, 16, 16, 50, seed => 3)")
    sql("""
        INSERT INTO llm_dataset (model, tokens, target)
        SELECT 'm', ARRAY[n, 1, 2, 3, 4], ARRAY[1, 2, 3, 4, 5] FROM generate_series(6, 14) n
    """)
    yield "m"
    sql("SELECT llm_drop_model('m')")
    sql("DELETE FROM llm_dataset")


BETWEEN = {
    "nothing": [],
    "rollback": ["BEGIN", STEP, "ROLLBACK"],
    "rollback to a savepoint": ["BEGIN", STEP, "SAVEPOINT a", STEP, "ROLLBACK TO a", STEP, "COMMIT"],
    "release of a savepoint": ["BEGIN", "SAVEPOINT a", STEP, "RELEASE a", STEP, "COMMIT"],
    "VACUUM FULL": ["VACUUM FULL llm_param"],
    "an update by hand": ["UPDATE llm_param SET data = v WHERE model = 'm' AND name = 'ln_f.bias'"],
    "an update that is rolled back": ["BEGIN", "UPDATE llm_param SET data = v WHERE model = 'm'", "ROLLBACK"],
    "a load": ["SELECT llm_checkpoint_save('m')", STEP, "SELECT llm_checkpoint_load('m', max(id)) FROM llm_checkpoint"],
    "a run": ["SELECT llm_train('m', 2, log_every => 0)"],
    "a setting": ["SET pg_gpt2.attention_chunk = 2", STEP, "RESET pg_gpt2.attention_chunk"],
    "another model": ["SELECT llm_train_step('other')"],
    "generation": ["SELECT llm_generate_tokens('{1}', 3, model_name => 'm', seed => 1)"],
    "another shape": [
        "SELECT llm_drop_model('m')",
        "SELECT llm_init_model('m', 1, 2, 8, 16, 50)",
    ],
}


@pytest.mark.parametrize("between", BETWEEN.values(), ids=BETWEEN)
def test_what_is_kept_never_shows(sql, conn, connect, model, between):
    """The same statements in one session, and each in a session of its own that keeps nothing."""
    sql("UPDATE llm_dataset SET model = NULL")
    statements = [STEP, STEP, *between, STEP, STEP]
    results = []
    for clears in (False, True):
        sql("DELETE FROM llm_train_log")
        sql("DELETE FROM llm_run")
        sql("SELECT llm_drop_model(model) FROM llm_models WHERE NOT preset")
        sql("SELECT llm_init_model('m', 2, 2, 16, 16, 50, seed => 3)")
        sql("SELECT llm_init_model('other', 2, 2, 16, 16, 50, seed => 4)")
        other = connect()
        found = []
        for statement in statements:
            if clears:
                other.execute("SELECT llm_cache_clear()")
            cursor = other.execute(statement)
            found.append(cursor.fetchall() if statement == STEP else None)
        results.append(
            (found, sql(STATE), other.execute("SELECT step, loss, grad_norm FROM llm_train_log ORDER BY at").fetchall())
        )
    assert results[0] == results[1]
    sql("SELECT llm_drop_model('other')")


def test_two_sessions_take_turns(sql, connect, model):
    first, second = connect(), connect()
    losses = [session.execute(STEP).fetchone() for session in (first, second, first, first, second)]
    wanted = sql(STATE)
    sql("SELECT llm_drop_model('m')")
    sql("SELECT llm_init_model('m', 2, 2, 16, 16, 50, seed => 3)")
    sql("""
        INSERT INTO llm_dataset (model, tokens, target)
        SELECT 'm', ARRAY[n, 1, 2, 3, 4], ARRAY[1, 2, 3, 4, 5] FROM generate_series(6, 14) n
    """)
    assert [first.execute(STEP).fetchone() for _ in losses] == losses
    assert sql(STATE) == wanted


def test_a_step_that_fails_leaves_nothing_behind(sql, conn, model):
    sql(STEP)
    saved = sql("SELECT llm_checkpoint_save('m')")
    wanted = sql(STATE)
    with pytest.raises(psycopg.errors.NumericValueOutOfRange, match="diverged"):
        sql("SELECT llm_train_step('m', lr_max => 1e30, wd => 1e30)")
    with pytest.raises(psycopg.errors.DivisionByZero):
        sql(f"{STEP} / 0")
    assert sql(STATE) == wanted
    loss = sql(STEP)
    sql("SELECT llm_cache_clear()")
    with conn.transaction(force_rollback=True):
        sql("SELECT llm_checkpoint_load('m', %s)", saved)
        assert sql(STATE) == wanted
        assert sql(STEP) == loss


def test_it_is_shown_and_given_up_like_any_cache(sql, connect, model):
    sql(STEP)
    assert sql(KEPT) == 1
    size = 12 * sql("SELECT n_params FROM llm_models WHERE model = 'm'")
    assert sql("SELECT bytes FROM llm_cache_status() WHERE kind = 'training'") == size
    assert sql("SELECT llm_cache_clear()") >= size
    assert sql(KEPT) == 0
    sql(STEP)
    sql("SET pg_gpt2.max_memory = '130kB'")  # room to load the weights, and not for the moments beside them
    sql("SELECT llm_logits('{1}', 'm')")
    assert sql(KEPT) == 0


def test_a_role_that_may_not_read_the_weights_gains_nothing_from_what_is_kept(sql, conn, model):
    sql(STEP)
    sql("CREATE ROLE reader_of_nothing")
    sql("GRANT EXECUTE ON ALL ROUTINES IN SCHEMA public TO reader_of_nothing")
    sql("GRANT SELECT ON llm_model_config, llm_dataset TO reader_of_nothing")
    sql("SET ROLE reader_of_nothing")
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        sql(STEP)
    sql("RESET ROLE")
    sql("DROP OWNED BY reader_of_nothing")
    sql("DROP ROLE reader_of_nothing")
