"""CALL llm_train_run: what is committed stays, what is interrupted goes on, and the end is that of an uninterrupted run."""

import contextlib
import json
import re
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest

CALL = (
    "CALL llm_train_run(%s, 40, batch_size => 4, lr_max => 1e-3, commit_every => 4, flush_seconds => 0, log_every => 0)"
)
STATE = """
    SELECT md5(string_agg(concat_ws(' ', name, token_id, md5(data), md5(m), md5(v), step), ',' ORDER BY name, token_id))
    FROM llm_param WHERE model = %s
"""
LOG = "SELECT step, lr, loss, grad_norm, tokens FROM llm_train_log WHERE model = %s ORDER BY step"


def make_model(conn: psycopg.Connection, name: str) -> None:
    """Models of any name begin with the same weights and have the same data."""
    if conn.execute("SELECT to_regclass('docs')").fetchone() == (None,):
        conn.execute(
            "CREATE TABLE docs AS SELECT string_agg('row ' || i * i, ' ') AS body FROM generate_series(1, 900) i"
        )
    conn.execute("SELECT llm_train_bpe('SELECT body FROM docs', 280, %s)", [name])
    conn.execute("SELECT llm_init_model(%s, 2, 2, 32, 32, seed => 5)", [name])
    conn.execute("SELECT llm_dataset_load('SELECT body FROM docs', %s, 16)", [name])


def one(conn: psycopg.Connection, query: str, *values: object) -> object:
    return conn.execute(query, values).fetchone()[0]


@pytest.fixture(scope="module")
def uninterrupted(module_conn) -> tuple[object, list]:
    make_model(module_conn, "whole")
    module_conn.execute(CALL, ["whole"])
    return one(module_conn, STATE, "whole"), module_conn.execute(LOG, ["whole"]).fetchall()


def steps(conn: psycopg.Connection, model: str) -> int:
    return one(conn, "SELECT coalesce(max(step), 0) FROM llm_train_progress WHERE model = %s", model)


def start(connect: Callable[[], psycopg.Connection], model: str) -> tuple[psycopg.Connection, threading.Thread]:
    """Call llm_train_run in a session and thread of its own; how it ends shows in the tables."""
    session = connect()

    def call() -> None:
        with contextlib.suppress(psycopg.Error):
            session.execute(CALL, [model])

    thread = threading.Thread(target=call)
    thread.start()
    return session, thread


def wait_for_steps(conn: psycopg.Connection, model: str, count: int) -> None:
    while steps(conn, model) < count:
        time.sleep(0.005)


def cancel(conn: psycopg.Connection, pid: int) -> None:
    conn.execute("SELECT pg_cancel_backend(%s)", [pid])


def terminate(conn: psycopg.Connection, pid: int) -> None:
    conn.execute("SELECT pg_terminate_backend(%s)", [pid])


@pytest.mark.parametrize("end", [cancel, terminate], ids=["cancel", "terminate"])
@pytest.mark.parametrize("after", [4, 12, 24])
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(conn, connect, uninterrupted, end, after):
    model = f"{end.__name__}{after}"
    make_model(conn, model)
    session, thread = start(connect, model)
    wait_for_steps(conn, model, after)
    end(conn, session.info.backend_pid)
    thread.join()
    made = steps(conn, model)
    assert after <= made < 40
    assert made % 4 == 0
    connect().execute(CALL, [model])
    assert one(conn, "SELECT count(*) FROM llm_run WHERE model = %s", model) == 1
    assert (one(conn, STATE, model), conn.execute(LOG, [model]).fetchall()) == uninterrupted


def test_a_finished_run_is_not_resumed(conn, uninterrupted):
    make_model(conn, "again")
    conn.execute(CALL, ["again"])
    conn.execute(CALL, ["again"])
    assert one(conn, "SELECT array_agg(status) FROM llm_run WHERE model = 'again'") == ["finished", "finished"]


def test_a_run_whose_data_changed_is_not_resumed(conn, connect):
    make_model(conn, "changed")
    session, thread = start(connect, "changed")
    wait_for_steps(conn, "changed", 4)
    cancel(conn, session.info.backend_pid)
    thread.join()
    conn.execute("DELETE FROM llm_dataset WHERE id = (SELECT max(id) FROM llm_dataset WHERE model = 'changed')")
    conn.execute(CALL, ["changed"])
    assert one(conn, "SELECT array_agg(status ORDER BY run_id) FROM llm_run WHERE model = 'changed'") == [
        "abandoned",
        "finished",
    ]


def test_data_that_go_during_a_run_are_said_to_have_been_changed(conn, connect):
    make_model(conn, "robbed")
    call = "CALL llm_train_run('robbed', 1000000, commit_every => 1, flush_seconds => 0, log_every => 0)"
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(connect().execute, call)
        wait_for_steps(conn, "robbed", 2)
        conn.execute("DELETE FROM llm_dataset WHERE model = 'robbed'")
        with pytest.raises(psycopg.Error, match='the data of model "robbed" were changed by somebody else') as caught:
            running.result()
    assert caught.value.sqlstate == "22000"
    assert one(conn, "SELECT status FROM llm_train_progress WHERE model = 'robbed'") == "interrupted"


def test_an_interrupted_run_does_not_look_like_a_running_one(conn, connect):
    make_model(conn, "cut")
    session, thread = start(connect, "cut")
    wait_for_steps(conn, "cut", 4)
    status = "SELECT status FROM llm_train_progress WHERE model = 'cut'"
    assert one(conn, status) == "running"
    cancel(conn, session.info.backend_pid)
    thread.join()
    assert one(conn, status) == "interrupted"
    assert one(conn, "SELECT llm_train_stop('cut')") is False
    connect().execute(CALL, ["cut"])
    assert one(conn, status) == "finished"


def test_a_stopped_run_ends_cleanly_and_goes_on(conn, connect, uninterrupted):
    make_model(conn, "stopped")
    conn.execute("SET pg_gpt2.threads = 1")
    slow = CALL.replace("40, ", "4000, ")
    session = connect()
    thread = threading.Thread(target=lambda: session.execute(slow, ["stopped"]))
    thread.start()
    wait_for_steps(conn, "stopped", 4)
    assert one(conn, "SELECT llm_train_stop('stopped')") is True
    thread.join()
    assert one(conn, "SELECT status FROM llm_run WHERE model = 'stopped'") == "stopped"
    assert 4 <= steps(conn, "stopped") < 4000
    assert one(conn, "SELECT llm_train_stop('stopped')") is False


@pytest.mark.parametrize("commit_every", [3, 1000])
def test_a_cancelled_run_tells_what_is_kept(connect, commit_every):
    """The step that llm_train_progress shows afterwards, and that the same call goes on from."""
    conn, told = connect(), []
    model = f"cancelled {commit_every}"
    make_model(conn, model)
    conn.add_notice_handler(lambda notice: told.append(notice.message_primary))
    call = "CALL llm_train_run(%s, 100000, batch_size => 4, commit_every => %s, flush_seconds => 0, log_every => 0)"
    for _ in range(2):
        conn.execute("SET statement_timeout = '2s'")
        with pytest.raises(psycopg.errors.QueryCanceled):
            conn.execute(call, [model, commit_every])
        conn.execute("RESET statement_timeout")
    run, step = conn.execute("SELECT run_id, step FROM llm_train_progress WHERE model = %s", [model]).fetchone()
    kept = [line for line in told if "is kept" in line]
    if commit_every > 100:
        assert kept == [f"no step of run {run} is kept; the same call goes on from these weights"] * 2
        return
    first, second = (int(found) for found in re.findall(rf"run {run} is kept up to step (\d+) of 100000", str(kept)))
    assert 0 < first < second == step
    assert f"resuming run {run} after step {first}" in told


def test_a_second_trainer_is_told_and_readers_go_on(conn, connect):
    make_model(conn, "busy")
    session = connect()
    thread = threading.Thread(target=lambda: session.execute(CALL.replace("40, ", "4000, "), ["busy"]))
    thread.start()
    wait_for_steps(conn, "busy", 4)
    with pytest.raises(psycopg.errors.LockNotAvailable, match="being trained by another session"):
        conn.execute(CALL, ["busy"])
    assert one(conn, "SELECT count(*) FROM llm_generate_tokens(ARRAY[1, 2], 3, model_name => 'busy', seed => 1)") == 1
    conn.execute("SELECT llm_train_stop('busy')")
    thread.join()


def test_a_call_inside_a_transaction_block_fails_at_once(connect):
    conn = connect()
    conn.execute("BEGIN")
    with pytest.raises(psycopg.errors.InvalidTransactionTermination) as caught:
        conn.execute(CALL, ["whole"])
    assert "autocommit" in caught.value.diag.message_hint


@pytest.mark.parametrize(
    "change",
    ["data = set_byte(data, 0, 1 + get_byte(data, 0) % 255)", "m = NULL", "v = m", "step = step - 1", "grad = m"],
)
def test_weights_changed_by_somebody_else_end_the_run_and_are_kept(conn, connect, change):
    make_model(conn, "touched")
    session = connect()
    errors: list[psycopg.Error] = []

    def call() -> None:
        try:
            session.execute(CALL.replace("40, ", "4000, "), ["touched"])
        except psycopg.Error as error:
            errors.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    wait_for_steps(conn, "touched", 4)
    conn.execute(f"UPDATE llm_param SET {change} WHERE model = 'touched' AND name = 'ln_f.bias'")
    thread.join()
    conn.execute("SELECT llm_drop_model('touched')")
    assert [error.sqlstate for error in errors] == ["22000"]
    assert "changed by somebody else" in str(errors[0])


MOVED = {
    "VACUUM FULL": ["VACUUM FULL llm_param"],
    "CLUSTER": ["CLUSTER llm_param USING llm_param_pkey"],
    "as pg_repack does": [
        "BEGIN",
        "LOCK llm_param",
        "CREATE TEMP TABLE copied AS TABLE llm_param",
        "DELETE FROM llm_param",
        "INSERT INTO llm_param SELECT * FROM copied",
        "DROP TABLE copied",
        "COMMIT",
    ],
    "an update of nothing": ["UPDATE llm_param SET data = data WHERE model = 'moved' AND name = 'wte'"],
}


@pytest.mark.parametrize("statements", MOVED.values(), ids=MOVED)
def test_rows_that_are_only_moved_do_not_end_a_run(conn, connect, uninterrupted, statements):
    make_model(conn, "moved")
    with contextlib.closing(connect()) as session:
        thread = threading.Thread(target=session.execute, args=[CALL, ["moved"]])
        thread.start()
        while thread.is_alive():
            for statement in statements:
                conn.execute(statement)
        thread.join()
    weights, log = uninterrupted
    assert conn.execute(LOG, ["moved"]).fetchall() == log
    assert one(conn, STATE, "moved") == weights
    assert one(conn, "SELECT string_agg(status, ' ') FROM llm_run WHERE model = 'moved'") == "finished"
    conn.execute("SELECT llm_drop_model('moved')")


@pytest.mark.parametrize("end", ["finishes", "stops"])
def test_the_callers_search_path_is_there_again_after_a_run(connect, end):
    """In a DO block or a procedure, statements that follow the CALL are of its last transaction."""
    conn = connect()
    name = f"path_{end}"
    make_model(conn, name)
    conn.execute(f"CREATE SCHEMA {name}; CREATE TABLE {name}.ticket (n integer)")
    conn.execute(f"SET search_path = {name}, public")
    steps = 1 if end == "finishes" else 100000
    if end == "stops":
        conn.execute("""
            CREATE FUNCTION stop() RETURNS trigger LANGUAGE plpgsql SET search_path = public
                AS $$BEGIN NEW.stop_requested := true; RETURN NEW; END$$;
            CREATE TRIGGER stop BEFORE INSERT OR UPDATE ON public.llm_run FOR EACH ROW EXECUTE FUNCTION stop();
        """)
    try:
        conn.execute(f"""
            DO $$
            BEGIN
                CALL llm_train_run('{name}', {steps}, log_every => 0);
                INSERT INTO ticket SELECT count(*) FROM ticket;
                COMMIT;
                CALL llm_train_run('{name}', {steps}, log_every => 0);
                CALL llm_train_run('{name}', {steps}, log_every => 0);
                INSERT INTO ticket SELECT count(*) FROM ticket;
            END $$
        """)
    finally:
        conn.execute("DROP TRIGGER IF EXISTS stop ON public.llm_run")
    assert one(conn, "SELECT count(*) FROM ticket") == 2
    assert one(conn, "SHOW search_path") == f"{name}, public"
    status = "stopped" if end == "stops" else "finished"
    assert status in {row[0] for row in conn.execute("SELECT status FROM llm_run WHERE model = %s", [name])}


def test_the_callers_search_path_is_there_again_after_an_error_or_a_cancel(connect):
    conn = connect()
    make_model(conn, "path_error")
    conn.execute("SET search_path = public, pg_temp")
    with pytest.raises(psycopg.errors.InvalidParameterValue):
        conn.execute("CALL llm_train_run('path_error', -1)")
    assert one(conn, "SHOW search_path") == "public, pg_temp"
    conn.execute(  # inside a subtransaction it may not commit
        "DO $$BEGIN CALL llm_train_run('path_error', 1); EXCEPTION WHEN invalid_transaction_termination THEN"
        " PERFORM FROM docs LIMIT 1; END$$"
    )
    conn.execute("SET statement_timeout = '500ms'")
    with pytest.raises(psycopg.errors.QueryCanceled):
        conn.execute(
            "DO $$BEGIN CALL llm_train_run('path_error', 100000, commit_every => 1, flush_seconds => 0); END$$"
        )
    conn.execute("RESET statement_timeout")
    assert one(conn, "SHOW search_path") == "public, pg_temp"
    assert one(conn, "SELECT count(*) > 0 FROM docs")


def test_every_evaluation_is_shown(conn):
    make_model(conn, "evaluated")
    conn.execute("UPDATE llm_dataset SET split = 'val' WHERE id % 10 = 0 AND model = 'evaluated'")
    for log_every in (4, 0):
        said: list[str] = []
        conn.add_notice_handler(lambda notice, said=said: said.append(notice.message_primary))
        call = "SELECT llm_train('evaluated', 10, batch_size => 2, eval_every => 3, log_every => %s)"
        conn.execute(call, [log_every])
        steps_said = [int(text.split("/")[0].removeprefix("step ")) for text in said]
        validated = [step for step, text in zip(steps_said, said, strict=True) if "validation loss" in text]
        assert validated == [3, 6, 9, 10]
        assert steps_said == ([1, 3, 4, 6, 8, 9, 10] if log_every else validated)


def test_every_option_of_a_call_is_recorded(conn):
    make_model(conn, "recorded")
    conn.execute("UPDATE llm_dataset SET split = 'val' WHERE id % 10 = 0 AND model = 'recorded'")
    for given in ({"lr_schedule": "linear"}, {"patience": 2, "min_delta": 0.25, "keep_best": True}):
        call = "SELECT llm_train('recorded', 6, batch_size => 2, eval_every => 3, options => %s)"
        config = one(conn, "SELECT config FROM llm_run WHERE run_id = %s", one(conn, call, json.dumps(given)))
        defaults = {"lr_schedule": "cosine", "patience": None, "min_delta": 0, "keep_best": False, "eval_every": 3}
        assert {name: config[name] for name in defaults} == defaults | given


def test_how_often_a_run_is_evaluated_makes_it_no_other_run(conn, connect):
    """Without patience and keep_best."""
    make_model(conn, "asked")
    conn.execute("UPDATE llm_dataset SET split = 'val' WHERE id % 10 = 0 AND model = 'asked'")
    session, thread = start(connect, "asked")
    wait_for_steps(conn, "asked", 4)
    cancel(conn, session.info.backend_pid)
    thread.join()
    conn.execute(CALL.replace("log_every => 0", "log_every => 0, eval_every => 5"), ["asked"])
    assert one(conn, "SELECT array_agg(status) FROM llm_run WHERE model = 'asked'") == ["finished"]
    assert one(conn, "SELECT count(*) > 0 FROM llm_train_log WHERE model = 'asked' AND val_loss IS NOT NULL") is True
