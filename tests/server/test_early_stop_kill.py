"""kill -9 of a run with patience and keep_best: the whole server restarts after each, so this module has it to itself."""

import contextlib
import os
import signal
import time

import psycopg

from tests.server.early_stop.runs import RUN, call, make_model, outcome, start
from tests.server.test_faults import reconnect, wait_for_end
from tests.server.test_train_run import one, steps

KILLS = 6


def test_kill_9_loses_neither_the_best_weights_nor_the_count(new_database):
    dsn = psycopg.conninfo.make_conninfo(new_database(), options="-c synchronous_commit=on")
    conn = psycopg.connect(dsn, autocommit=True)
    make_model(conn, "whole")
    conn.execute(call("whole"))
    wanted = outcome(conn, "whole")
    make_model(conn, "m")
    for _ in range(KILLS):
        before = steps(conn, "m")
        worker, thread = start(lambda: psycopg.connect(dsn, autocommit=True), call("m", function=RUN))
        while thread.is_alive() and steps(conn, "m") <= before:
            time.sleep(0.001)
        with contextlib.suppress(ProcessLookupError):
            os.kill(worker.info.backend_pid, signal.SIGKILL)
        thread.join()
        worker.close()
        wait_for_end(conn)
        conn = reconnect(dsn)
        assert steps(conn, "m") > before or outcome(conn, "m")[1] == "early"
        if outcome(conn, "m")[1] == "early":
            break
    else:
        conn.execute(call("m", function=RUN))
    assert outcome(conn, "m") == wanted
    assert one(conn, "SELECT count(*) FROM llm_run WHERE model = 'm'") == 1
    assert conn.execute(
        "SELECT count(*), (SELECT count(*) FROM llm_checkpoint_blob) FROM llm_checkpoint"
    ).fetchone() == (0, 0)
    conn.close()
