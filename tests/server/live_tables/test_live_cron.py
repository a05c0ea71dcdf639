"""pg_cron runs the worker of docs/how-to/live-tables.md, and goes on after kill -9."""

import os
import signal

import psycopg

from tests.server.live_tables.page import WRONG, eventually, one, pasted, shown
from tests.server.test_faults import wait_for_end
from tests.server.test_restart import Server


def test_pg_cron_runs_the_worker_and_goes_on_after_kill_9(server: Server) -> None:
    """Its job begins every minute, and stays for most of it."""
    done = "SELECT count(*) FROM live_question WHERE perplexity IS NOT NULL"
    add = "INSERT INTO live_question (body) SELECT 'How does the planner choose number ' || n FROM generate_series(1, 500) AS n"
    running = "SELECT job_pid FROM cron.job_run_details WHERE status = 'running' ORDER BY runid DESC LIMIT 1"
    pasted(server.dsn, shown("CREATE EXTENSION pg_cron"))
    with psycopg.connect(server.dsn, autocommit=True) as conn:
        conn.execute(add)
        eventually(lambda: one(conn, done) > 0, 90)
        assert one(conn, "SELECT username FROM cron.job") == "filler"
        before = one(conn, done)
        os.kill(one(conn, running), signal.SIGKILL)
        wait_for_end(conn)
    assert before < 500, "it was to be killed at work"
    eventually(lambda: filled(server) == 500, 120)
    with psycopg.connect(server.dsn, autocommit=True) as conn:
        assert conn.execute(WRONG).fetchall() == []
        assert one(conn, "SELECT count(DISTINCT question) FROM question_queue") == 0


def filled(server: Server) -> object:
    with psycopg.connect(server.dsn, autocommit=True) as conn:
        return one(conn, "SELECT count(*) FROM live_question WHERE perplexity IS NOT NULL")
