"""Whoever has to wait for the lock of a model is told for whom, and what helps; and so is whoever does not want to wait."""

import threading
import time

import psycopg
import pytest

RUN = "CALL llm_train_run('m', 1, batch_size => 2, log_every => 0, wait => {})"
WRITERS = {
    "run": RUN.format("true"),
    "train": "SELECT llm_train('m', 1, batch_size => 2, log_every => 0)",
    "step": "SELECT llm_train_step('m')",
    "accumulate": "SELECT llm_accumulate_grads('m')",
    "init": "SELECT llm_init_model('m', 1, 1, 4, 16, 50)",
    "copy": "SELECT llm_copy_model('other', 'm')",
    "drop": "SELECT llm_drop_model('m')",
    "import": "SELECT llm_import_safetensors(string_agg(c, ''), 'm', true) FROM llm_export_safetensors('other') AS c",
    "loader": "SELECT llm_import_begin('m', to_jsonb(c) - $${model,preset,init_seed,chat_template}$$::text[], true) FROM"
    " llm_model_config AS c WHERE model = 'm'",
    "vocabulary": "SELECT llm_train_bpe($$VALUES ('low')$$, 257, 'm')",
    "share": "SELECT llm_share_param('other', 'wte', NULL, 'm')",
    "checkpoint": "SELECT llm_checkpoint_load('m', id) FROM llm_checkpoint",
}


@pytest.fixture(scope="module", autouse=True)
def _models(module_conn):
    module_conn.execute("SELECT llm_init_model(m, 1, 1, 4, 16, 50) FROM unnest('{m,other}'::text[]) AS m")
    module_conn.execute("SELECT llm_checkpoint_save('m')")
    module_conn.execute("INSERT INTO llm_dataset (tokens, target) SELECT '{1,2}', '{2,3}' FROM generate_series(1, 4)")


def hold(connect) -> psycopg.Connection:
    """A session that has changed the model and not said whether it will stay so."""
    conn = connect()
    conn.execute("BEGIN; SELECT llm_train_step('m', audit => 'none')")
    return conn


@pytest.mark.parametrize("writer", WRITERS)
def test_who_waits_is_told_for_whom(connect, writer):
    holder, waiter, said = hold(connect), connect(), []
    heard = threading.Event()

    def hear(notice: psycopg.errors.Diagnostic) -> None:
        said.append(notice.message_primary)
        heard.set()

    waiter.add_notice_handler(hear)
    thread = threading.Thread(target=lambda: end(waiter, WRITERS[writer]))
    thread.start()
    assert heard.wait(30)
    assert (
        f'waiting for the lock of model "m": session {holder.info.backend_pid} has it, idle in a transaction;'
        in said[0]
    )
    assert f"SELECT pg_terminate_backend({holder.info.backend_pid})" in said[0]
    assert thread.is_alive()
    connect().execute("SELECT pg_cancel_backend(%s)", [waiter.info.backend_pid])
    thread.join(30)
    assert not thread.is_alive()
    holder.execute("ROLLBACK")


def end(conn: psycopg.Connection, statement: str) -> None:
    """Run a statement that will be cancelled."""
    with pytest.raises(psycopg.errors.QueryCanceled, match="pg_gpt2: canceling statement"):
        conn.execute(statement)


def test_nobody_is_told_of_a_lock_that_is_free(connect):
    conn, said = connect(), []
    conn.add_notice_handler(lambda notice: said.append(notice.message_primary))
    conn.execute("BEGIN; SELECT llm_train_step('m'); SELECT llm_train_step('m'); ROLLBACK")
    conn.execute(RUN.format("true"))
    assert said == []


def test_who_does_not_wait_is_told_what_helps_and_it_does(connect):
    holder, conn = connect(), connect()
    thread = threading.Thread(
        target=lambda: end(holder, "SELECT llm_train('m', 100000, batch_size => 2, log_every => 0)")
    )
    thread.start()
    while not conn.execute("SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND granted)").fetchone()[
        0
    ]:
        time.sleep(0.01)
    with pytest.raises(psycopg.errors.LockNotAvailable, match="being trained by another session") as refused:
        conn.execute(RUN.format("false"))
    hint = refused.value.diag.message_hint
    assert hint.startswith(f"Session {holder.info.backend_pid} has it; ")
    assert "llm_train_stop('m') ends llm_train_run" in hint
    assert hint.endswith("wait => true waits for it.")
    conn.execute(hint.split("; ")[1].split(" ends")[0])
    thread.join(30)
    assert not thread.is_alive()
    conn.execute(RUN.format("false"))


def test_a_prepared_transaction_that_has_the_lock_is_named_as_one(connect):
    holder, conn = hold(connect), connect()
    holder.execute("PREPARE TRANSACTION 'held'")
    try:
        with pytest.raises(psycopg.errors.LockNotAvailable) as refused:
            conn.execute(RUN.format("false"))
        assert refused.value.diag.message_hint.startswith("A prepared transaction of pg_prepared_xacts has it")
    finally:
        holder.execute("ROLLBACK PREPARED 'held'")


def test_a_role_that_sees_little_is_told_all_the_same(connect, module_conn):
    module_conn.execute("CREATE ROLE waits LOGIN; SELECT llm_grant_usage('waits', 'train')")
    holder, conn = hold(connect), connect(user="waits")
    try:
        with pytest.raises(psycopg.errors.LockNotAvailable) as refused:
            conn.execute(RUN.format("false"))
        assert refused.value.diag.message_hint.startswith(f"Session {holder.info.backend_pid} has it; ")
    finally:
        holder.execute("ROLLBACK")
        conn.close()
        module_conn.execute("DROP OWNED BY waits; DROP ROLE waits")
