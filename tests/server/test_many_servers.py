"""Rows on three servers: partitions that are foreign tables over views which call models there.

A coordinator, and two servers that compute; each has the same model, and the coordinator all rows, to compare. How one sets it up
is a page that tests/server/docs runs: docs/how-to/many-servers.md.
"""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg import conninfo

from tests.bench.clusters import Clusters
from tests.server.test_rows import AVX512

SERVERS = ("two", "three")
MODEL = """
    SET client_min_messages = warning;
    SELECT llm_train_bpe($$SELECT 'many hands make light work, too many cooks spoil the broth'$$, 280, 'm');
    SELECT llm_init_model('m', 2, 2, 32, 64, seed => 1);
    CREATE TABLE note (id integer PRIMARY KEY, body text);
    CREATE VIEW read_note AS
    SELECT id, body, llm_perplexity(body, 'm') AS perplexity, llm_text_embedding(body, model_name => 'm') AS embedding,
           llm_classify(body, '{" make", " cooks", " the"}', model_name => 'm') AS choice,
           llm_generate(body, 8, temperature => 0, model_name => 'm') AS text
    FROM note;
    CREATE VIEW long_note AS
    SELECT id, llm_generate(body, 1000000, seed => id, model_name => 'm', eos_token => -1) AS text FROM note;
    CREATE VIEW scored AS
    SELECT key::integer AS id, perplexity FROM llm_perplexity_rows('SELECT id, body FROM public.note ORDER BY id', 'm');
"""
COLUMNS = {
    "read_note": "id integer, body text, perplexity double precision, embedding real[], choice text, text text",
    "long_note": "id integer, text text",
    "scored": "id integer, perplexity double precision",
}
REMOTE = "SELECT count(*) > 0 FROM pg_stat_activity WHERE application_name = 'postgres_fdw' AND state = 'active'"


@pytest.fixture(scope="module")
def sessions(clusters: Clusters) -> Iterator[dict[str, psycopg.Connection]]:
    """A session of a database of each server; the first has the partitions."""
    opened = {}
    for place, name in enumerate(("one", *SERVERS)):
        with psycopg.connect(clusters[name], autocommit=True) as conn:
            conn.execute("CREATE DATABASE many TEMPLATE template_pg_gpt2")
        opened[name] = psycopg.connect(conninfo.make_conninfo(clusters[name], dbname="many"), autocommit=True)
        opened[name].execute(MODEL)
        mine = f"WHERE id % 2 = {place - 1}" if place else ""
        opened[name].execute(
            f"INSERT INTO note SELECT id, 'many hands ' || id FROM generate_series(1, 40) AS id {mine}"
        )
    one = opened["one"]
    one.execute("CREATE EXTENSION postgres_fdw")
    for view, columns in COLUMNS.items():
        one.execute(f"CREATE TABLE all_{view} ({columns}) PARTITION BY LIST (id)")
    for place, name in enumerate(SERVERS):
        one.execute(
            f"CREATE SERVER {name} FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host '{clusters.host(name)}', dbname 'many',"
            " connect_timeout '5', async_capable 'true', fetch_size '5')"
        )
        one.execute(f"CREATE USER MAPPING FOR CURRENT_USER SERVER {name} OPTIONS (user 'postgres')")
        ids = ", ".join(str(id) for id in range(1, 41) if id % 2 == place)
        for view in COLUMNS:
            one.execute(
                f"CREATE FOREIGN TABLE {view}_{name} PARTITION OF all_{view} FOR VALUES IN ({ids}) SERVER {name}"
                f" OPTIONS (table_name '{view}')"
            )
    yield opened
    for conn in opened.values():
        conn.close()
    for name in opened:
        with psycopg.connect(clusters[name], autocommit=True) as conn:
            conn.execute("DROP DATABASE many WITH (FORCE)")


def active(conn: psycopg.Connection) -> bool:
    """Whether a query of another server runs there."""
    return conn.execute(REMOTE).fetchone() == (True,)


def wait_until(condition: object, seconds: float, what: str) -> None:
    until = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < until, what
        time.sleep(0.02)


@pytest.mark.parametrize("view", ["read_note", "scored"])
def test_rows_of_all_servers_are_what_one_server_computes(sessions: dict[str, psycopg.Connection], view: str) -> None:
    one = sessions["one"]
    plan = "\n".join(line for (line,) in one.execute(f"EXPLAIN SELECT * FROM all_{view}"))
    assert plan.count("Async Foreign Scan") == 2, plan
    found = one.execute(f"SELECT * FROM all_{view} ORDER BY id").fetchall()
    expected = one.execute(f"SELECT * FROM {view} ORDER BY id").fetchall()
    assert len(found) == 40
    if view == "scored" and not AVX512:  # texts share passes with others here than there
        assert [id for id, _ in found] == [id for id, _ in expected]
        assert [value for _, value in found] == pytest.approx([value for _, value in expected], rel=1e-5)
    else:
        assert found == expected


def test_only_what_is_asked_for_is_sent(sessions: dict[str, psycopg.Connection]) -> None:
    """So that other rows and columns are not computed, and servers that have none of the rows are not asked."""
    plan = "\n".join(
        line for (line,) in sessions["one"].execute("EXPLAIN VERBOSE SELECT choice FROM all_read_note WHERE id = 3")
    )
    assert "SELECT choice FROM public.read_note WHERE ((id = 3))" in plan
    assert plan.count("Remote SQL") == 1


def test_servers_compute_at_the_same_time_and_a_cancel_ends_it_everywhere(
    sessions: dict[str, psycopg.Connection],
) -> None:
    """What runs would take minutes on each."""
    one, others = sessions["one"], [sessions[name] for name in SERVERS]
    ended: list[BaseException] = []

    def query() -> None:
        try:
            one.execute("SELECT sum(length(text)) FROM all_long_note")
        except psycopg.Error as error:
            ended.append(error)

    running = threading.Thread(target=query)
    running.start()
    try:
        wait_until(lambda: all(active(conn) for conn in others), 30, "both servers are active at once")
        assert running.is_alive()
    finally:
        one.cancel()
        running.join(timeout=30)
    assert [type(error) for error in ended] == [psycopg.errors.QueryCanceled]
    wait_until(lambda: not any(active(conn) for conn in others), 5, "a cancel ends the work of the others")
    assert one.execute("SELECT count(*) FROM all_scored").fetchone() == (40,)


def test_a_timeout_here_ends_the_work_there(sessions: dict[str, psycopg.Connection]) -> None:
    one = sessions["one"]
    with pytest.raises(psycopg.errors.QueryCanceled):
        one.execute("SET statement_timeout = '500ms'; SELECT count(text) FROM all_long_note")
    one.execute("RESET statement_timeout")
    wait_until(lambda: not any(active(sessions[name]) for name in SERVERS), 5, "a timeout ends the work")


def test_an_error_of_a_model_there_is_an_error_here(sessions: dict[str, psycopg.Connection]) -> None:
    """With its SQLSTATE, message and hint."""
    sessions["two"].execute(
        "ALTER TABLE note RENAME TO gone; CREATE TABLE kept AS SELECT * FROM llm_model_config WHERE model = 'm';"
        " DELETE FROM llm_model_config WHERE model = 'm'"
    )
    try:
        with pytest.raises(psycopg.errors.UndefinedObject, match='model "m" does not exist') as raised:
            sessions["one"].execute("SELECT perplexity FROM all_read_note")
        assert "llm_models" in (raised.value.diag.message_hint or "")
    finally:
        sessions["two"].execute(
            "ALTER TABLE gone RENAME TO note; INSERT INTO llm_model_config SELECT * FROM kept; DROP TABLE kept"
        )


def test_a_server_that_cannot_be_reached_is_named(sessions: dict[str, psycopg.Connection], clusters: Clusters) -> None:
    """What the others have can be asked for; and when it is back, all."""
    one, folder = sessions["one"], Path(clusters.host("three"))
    expected = one.execute("SELECT id, perplexity FROM all_scored ORDER BY id").fetchall()
    folder.rename(folder.with_name("gone"))
    try:
        sessions["three"].execute(
            "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE application_name = 'postgres_fdw'"
        )
        for _ in range(2):
            with pytest.raises(psycopg.errors.SqlclientUnableToEstablishSqlconnection, match='server "three"'):
                one.execute("SELECT id, perplexity FROM all_scored")
        assert one.execute("SELECT count(*) FROM all_scored WHERE id IN (2, 4)").fetchone() == (2,)
    finally:
        folder.with_name("gone").rename(folder)
    assert one.execute("SELECT id, perplexity FROM all_scored ORDER BY id").fetchall() == expected
