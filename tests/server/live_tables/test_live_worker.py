"""One worker of docs/how-to/live-tables.md: which rows it takes, whom it waits for, what becomes of those that fail, and whose
rights it needs."""

import contextlib
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg import errors

from tests.server import psql
from tests.server.docs.pages import MODEL
from tests.server.live_tables.page import WRONG, Database, eventually, one, pasted, shown

VALUES = (
    "CREATE OR REPLACE FUNCTION question_values(ids bigint[], topics text[] DEFAULT '{}', model text DEFAULT '')"
    " RETURNS SETOF question_value "
)


def test_a_copy_of_100_000_rows_is_queued_by_one_statement(conn: psycopg.Connection) -> None:
    with conn.cursor().copy("COPY live_question (body) FROM STDIN") as copy:
        for number in range(100_000):
            copy.write_row([f"text {number}"])
    assert one(conn, "SELECT count(DISTINCT question) FROM question_queue") == 100_000
    assert one(conn, "SELECT count(DISTINCT xmin::text) FROM question_queue") == 1
    conn.execute(
        VALUES + "LANGUAGE sql AS"
        " $$SELECT id, body, 'index', 1::float8, '{1}'::real[], 1::bigint FROM live_question WHERE id = ANY (ids)$$"
    )
    began = time.monotonic()
    conn.execute("CALL question_fill(batch => 1000)")
    assert one(conn, "SELECT count(*) FROM live_question WHERE perplexity = 1") == 100_000
    assert time.monotonic() - began < 60, "the queue is slow"


def slowed(conn: psycopg.Connection, seconds: float) -> None:
    """Make every row take so long; its perplexity is the length of its text."""
    conn.execute(
        f"""
        {VALUES} LANGUAGE plpgsql AS $$
        BEGIN
            RETURN QUERY SELECT id, body, 'index', length(body)::float8, '{{1}}'::real[], 1::bigint
                FROM live_question WHERE id = ANY (ids);
            PERFORM pg_sleep({seconds} * cardinality(ids));
        END
        $$
        """
    )


@contextlib.contextmanager
def working(dsn: str, conn: psycopg.Connection, call: str = "CALL question_fill()") -> Iterator[None]:
    """While a worker, which has begun, empties the queue."""
    problems: list[BaseException] = []

    def work() -> None:
        try:
            with psycopg.connect(dsn, autocommit=True) as worker:
                worker.execute(call)
        except BaseException as error:
            problems.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    time.sleep(0.3)
    yield
    thread.join()
    assert problems == []


def test_a_writer_never_waits_for_the_model_and_its_later_text_wins(dsn: str, conn: psycopg.Connection) -> None:
    slowed(conn, 0.2)
    conn.execute("INSERT INTO live_question (body) SELECT 'text ' || n FROM generate_series(1, 5) AS n")
    conn.execute("SET lock_timeout = '100ms'")
    with working(dsn, conn):
        conn.execute("UPDATE live_question SET body = 'later' WHERE id < 4")
        conn.execute("DELETE FROM live_question WHERE id = 5")
    found = conn.execute("SELECT id, body, perplexity FROM live_question ORDER BY id").fetchall()
    assert found == [(1, "later", 5), (2, "later", 5), (3, "later", 5), (4, "text 4", 6)]
    assert one(conn, "SELECT count(*) FROM question_queue") == 0


def test_the_worker_waits_for_no_writer(dsn: str, conn: psycopg.Connection) -> None:
    """A row that is locked is put off without counting as a failure; others are filled."""
    conn.execute("INSERT INTO live_question (body) SELECT 'text ' || n FROM generate_series(1, 5) AS n")
    with psycopg.connect(dsn) as writer:
        writer.execute("UPDATE live_question SET body = 'open' WHERE id = 3")
        conn.execute("SET statement_timeout = '20s'")
        conn.execute("CALL question_fill()")
        assert conn.execute("SELECT id FROM live_question WHERE perplexity IS NULL").fetchall() == [(3,)]
        assert conn.execute("SELECT question, tries FROM question_queue").fetchall() == [(3, 0)]
        assert one(conn, "SELECT not_before > now() FROM question_queue")
    conn.execute("CALL question_fill()")
    assert one(conn, "SELECT perplexity IS NOT NULL FROM live_question WHERE id = 3")
    conn.execute("UPDATE question_queue SET not_before = now()")
    conn.execute("CALL question_fill()")
    assert one(conn, "SELECT count(*) FROM question_queue") == 0
    assert conn.execute(WRONG).fetchall() == []


def test_a_row_that_fails_is_tried_five_times_and_blocks_no_other(conn: psycopg.Connection) -> None:
    conn.execute(
        "INSERT INTO live_question (body) SELECT CASE n WHEN 4 THEN repeat('a', 17000000) ELSE 'text' END"
        " FROM generate_series(1, 50) AS n"
    )
    tries = 0
    while tries < 5:
        conn.execute("CALL question_fill()")
        assert conn.execute("SELECT id FROM live_question WHERE perplexity IS NULL").fetchall() == [(4,)]
        row = conn.execute("SELECT question, tries, error, not_before - now() FROM question_queue").fetchone()
        assert row is not None
        assert (row[0], row[1] > tries, "too long" in row[2]) == (4, True, True)
        tries = row[1]
        assert 0 < row[3].total_seconds() / (10 * 4 ** (tries - 1)) <= 1
        conn.execute("UPDATE question_queue SET not_before = now()")
    conn.execute("CALL question_fill()")
    assert one(conn, "SELECT tries FROM question_queue") == 5
    assert conn.execute("SELECT waiting, failed FROM question_backlog").fetchone() == (0, 1)


def test_a_cancel_ends_the_worker_and_counts_against_no_row(conn: psycopg.Connection) -> None:
    slowed(conn, 1)
    conn.execute("INSERT INTO live_question (body) VALUES ('a'), ('b')")
    conn.execute("SET statement_timeout = '300ms'")
    with pytest.raises(errors.QueryCanceled):
        conn.execute("CALL question_fill(1)")
    conn.execute("RESET statement_timeout")
    assert conn.execute("SELECT tries, error FROM question_queue").fetchall() == [(0, None), (0, None)]


def test_what_can_wait_does_not_delay_new_rows(dsn: str, conn: psycopg.Connection) -> None:
    slowed(conn, 0.1)
    conn.execute("ALTER TABLE live_question DISABLE TRIGGER USER")
    conn.execute("INSERT INTO live_question (body) SELECT 'old' FROM generate_series(1, 20)")
    conn.execute("ALTER TABLE live_question ENABLE TRIGGER USER")
    conn.execute(shown("INSERT INTO question_queue"))
    assert one(conn, "SELECT count(*) FROM question_queue WHERE priority = 1") == 20
    with working(dsn, conn, "CALL question_fill(batch => 2)"):
        conn.execute("INSERT INTO live_question (body) VALUES ('new')")
        eventually(lambda: one(conn, "SELECT perplexity IS NOT NULL FROM live_question WHERE body = 'new'"), 10)
        assert one(conn, "SELECT count(*) FROM live_question WHERE perplexity IS NULL") > 5


def test_after_training_the_rows_are_queued_once_more(conn: psycopg.Connection) -> None:
    conn.execute("INSERT INTO live_question (body) SELECT 'How does the planner choose' FROM generate_series(1, 3)")
    conn.execute("CALL question_fill()")
    conn.execute(shown("INSERT INTO question_queue"))
    assert one(conn, "SELECT count(*) FROM question_queue") == 0
    before = one(conn, "SELECT min(perplexity) FROM live_question")
    conn.execute("SELECT llm_dataset_load($$SELECT 'How does the planner choose'$$, %s, 4)", [MODEL])
    conn.execute("SELECT llm_train(%s, 3, lr_max => 0.01, log_every => 0)", [MODEL])
    conn.execute(shown("INSERT INTO question_queue"))
    assert one(conn, "SELECT count(*) FROM question_queue") == 3
    conn.execute("CALL question_fill()")
    assert one(conn, "SELECT max(perplexity) FROM live_question") < before
    assert conn.execute("SELECT DISTINCT model_step FROM live_question").fetchall() == [(3,)]


def test_writers_need_no_right_to_the_queue_and_the_worker_only_those_of_the_page(conn: psycopg.Connection) -> None:
    conn.execute("CREATE ROLE writer")
    conn.execute("GRANT SELECT, INSERT, UPDATE, DELETE ON live_question TO writer")
    conn.execute("SET ROLE writer")
    conn.execute("INSERT INTO live_question (body) VALUES ('first'), ('second')")
    conn.execute("UPDATE live_question SET body = 'third' WHERE body = 'first'")
    with pytest.raises(errors.InsufficientPrivilege):
        conn.execute("SELECT * FROM question_queue")
    conn.execute("SET ROLE filler")
    conn.execute("CALL question_fill()")
    with pytest.raises(errors.InsufficientPrivilege):
        conn.execute("UPDATE live_question SET body = 'fourth'")
    conn.execute("RESET ROLE")
    assert conn.execute("SELECT count(*), count(perplexity) FROM live_question").fetchone() == (2, 2)
    conn.execute("DROP OWNED BY writer")
    conn.execute("DROP ROLE writer")


def test_a_restore_brings_values_and_queue_back_and_computes_nothing(
    dsn: str, conn: psycopg.Connection, database: Database
) -> None:
    conn.execute("INSERT INTO live_question (body) VALUES ('filled')")
    conn.execute("CALL question_fill()")
    conn.execute("INSERT INTO live_question (body) VALUES ('waits')")
    pg_dump = Path(psql.program()).with_name("pg_dump")
    tables = [f"--table={table}" for table in ("live_question", "question_queue")]
    dump = subprocess.run(
        [pg_dump, "-d", dsn, "--clean", *tables], check=True, stdout=subprocess.PIPE, text=True
    ).stdout
    with psycopg.connect(dsn, autocommit=True) as other:
        other.execute("SELECT llm_drop_model(%s)", [MODEL])
    pasted(dsn, "DROP VIEW question_backlog;", dump)
    assert conn.execute("SELECT body, perplexity IS NOT NULL FROM live_question ORDER BY id").fetchall() == [
        ("filled", True),
        ("waits", False),
    ]
    assert conn.execute("SELECT question FROM question_queue").fetchall() == [(2,)]
