"""ALTER EXTENSION UPDATE from 1.0, as open sessions see it, and what DROP EXTENSION leaves.

The later version is 1.0 with another number: its script is what build.py would have to write for one.
"""

import re
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import psycopg
import pytest

SCRIPT = (Path(__file__).parents[2] / "pg_gpt2--1.0.sql").read_text()
LATER = "1.0.1"
GENERATE = "SELECT llm_generate_tokens('{1,2}', 8, model_name => 'm', seed => 1, eos_token => -1)"
VERSION = "SELECT environment ->> 'pg_gpt2' FROM llm_run ORDER BY run_id DESC LIMIT 1"
LEFT = """
    SELECT (SELECT count(*) FROM pg_class WHERE relname LIKE 'llm%')
         + (SELECT count(*) FROM pg_proc WHERE proname ~ '^(pg_)?llm_')
         + (SELECT count(*) FROM pg_type WHERE typname ~ '_grads$|^adamw_state$')
         + (SELECT count(*) FROM pg_extension WHERE extname = 'pg_gpt2')
"""


def update_script() -> str:
    """Every function anew under the key of the changed sources, and the sources themselves."""
    functions = re.findall(r"^CREATE (?:FUNCTION|PROCEDURE) .*?\$\$.*?\$\$;$", SCRIPT, re.DOTALL | re.MULTILINE)
    modules = re.findall(r"^INSERT INTO llm_module .*?\$pg_gpt2_source\$\);$", SCRIPT, re.DOTALL | re.MULTILINE)
    assert len(functions) > 80
    assert modules
    script = "\n".join(["DELETE FROM llm_module;", *modules, *functions])
    script = script.replace('__version__ = "1.0"', f'__version__ = "{LATER}"')
    script = re.sub(r"'pg_gpt2 [0-9a-f]+ ", "'pg_gpt2 0123456789abcdef ", script)
    return re.sub(r"^CREATE (?=FUNCTION|PROCEDURE)", "CREATE OR REPLACE ", script, flags=re.MULTILINE)


@pytest.fixture
def later_version(conn: psycopg.Connection) -> Iterator[str]:
    """A version after 1.0, installed beside it."""
    (shared,) = conn.execute("SELECT setting FROM pg_config WHERE name = 'SHAREDIR'").fetchone()
    path = Path(shared) / "extension" / f"pg_gpt2--1.0--{LATER}.sql"
    path.write_text(update_script())
    yield LATER
    path.unlink()


def train(conn: psycopg.Connection) -> None:
    conn.execute("SELECT llm_train('m', 2, batch_size => 2, log_every => 0)")


def test_an_update_is_followed_by_open_sessions_and_keeps_everything(later_version, connect):
    conn, other = connect(), connect()
    conn.execute("SELECT llm_init_model('m', 1, 2, 8, 16, 50)")
    conn.execute("INSERT INTO llm_dataset (tokens, target) SELECT '{1,2,3}', '{2,3,4}' FROM generate_series(1, 6)")
    train(conn)
    assert conn.execute(VERSION).fetchone() == ("1.0",)
    tokens = other.execute(GENERATE).fetchone()
    assert conn.execute(GENERATE).fetchone() == tokens
    with conn.transaction(force_rollback=True):
        conn.execute(f"ALTER EXTENSION pg_gpt2 UPDATE TO '{later_version}'")
        assert conn.execute(GENERATE).fetchone() == tokens
        train(conn)
        assert conn.execute(VERSION).fetchone() == (later_version,)
    assert conn.execute(GENERATE).fetchone() == tokens
    conn.execute(f"ALTER EXTENSION pg_gpt2 UPDATE TO '{later_version}'")
    for session in (other, conn, connect()):
        assert session.execute(GENERATE).fetchone() == tokens
    train(other)
    assert conn.execute(VERSION).fetchone() == (later_version,)
    found = conn.execute("SELECT r.* FROM llm_run, llm_replay(run_id) AS r ORDER BY run_id LIMIT 1").fetchone()
    assert found[2] is None  # the run of 1.0 agrees
    assert "sources differ from the run's" in found[-1]


def test_an_update_under_load_is_not_noticed(later_version, new_database):
    """By sessions that generate all the time, by an open cursor, and by another database, which stays at its version."""
    dsn, elsewhere = new_database(), new_database()
    with ExitStack() as stack:
        conn, streaming, neighbour = (
            stack.enter_context(psycopg.connect(where, autocommit=True)) for where in (dsn, dsn, elsewhere)
        )
        for one in (conn, neighbour):
            one.execute("SELECT llm_init_model('m', 1, 2, 8, 16, 50)")
            one.execute(
                "INSERT INTO llm_dataset (tokens, target) SELECT '{1,2,3}', '{2,3,4}' FROM generate_series(1, 6)"
            )
        tokens = conn.execute(GENERATE).fetchone()
        streaming.execute("BEGIN")
        streaming.execute(
            "DECLARE c CURSOR FOR SELECT unnest(llm_generate_tokens(ARRAY[1, n], 8, model_name => 'm', seed => 1,"
            " eos_token => -1)) FROM generate_series(1, 4) AS n"
        )
        first = streaming.execute("FETCH 5 FROM c").fetchall()
        done = threading.Event()

        def generate() -> set[str]:
            found = set()
            with psycopg.connect(dsn, autocommit=True) as session:
                while not done.is_set():
                    found.add(str(session.execute(GENERATE).fetchone()))
            return found

        with ThreadPoolExecutor(3) as pool:
            running = [pool.submit(generate) for _ in range(3)]
            time.sleep(0.3)
            conn.execute(f"ALTER EXTENSION pg_gpt2 UPDATE TO '{later_version}'")
            time.sleep(0.3)
            done.set()
            assert [future.result(20) for future in running] == [{str(tokens)}] * 3
        rest = streaming.execute("FETCH ALL FROM c").fetchall()
        streaming.execute("COMMIT")
        assert len(first + rest) == 32
        assert neighbour.execute(GENERATE).fetchone() == tokens
        for one, version in ((conn, later_version), (neighbour, "1.0"), (conn, later_version)):
            train(one)
            assert one.execute(VERSION).fetchone() == (version,)
            assert (
                one.execute("SELECT value FROM llm_doctor() WHERE item = 'pg_gpt2'")
                .fetchone()[0]
                .startswith(f"{version} ")
            )


def test_drop_extension_leaves_nothing_behind(connect):
    conn = connect()
    conn.execute("DROP EXTENSION pg_gpt2 CASCADE")
    assert conn.execute(LEFT).fetchone() == (0,)
    conn.execute("CREATE EXTENSION pg_gpt2")
    assert conn.execute("SELECT count(*) FROM llm_models WHERE NOT preset").fetchone() == (0,)


def make_anew(conn: psycopg.Connection) -> None:
    conn.execute("DROP EXTENSION pg_gpt2 CASCADE")
    conn.execute("CREATE EXTENSION pg_gpt2")


def test_an_open_session_forgets_the_vocabulary_of_an_extension_that_was_dropped(connect):
    learn, encode = "SELECT llm_train_bpe(%s, 280, 'm')", "SELECT llm_encode('the theme of these', 'm')"
    open_session, conn = connect(), connect()
    conn.execute(learn, ["SELECT 'the theme of these themes'"])
    before = open_session.execute(encode).fetchone()
    make_anew(conn)
    conn.execute(learn, ["SELECT reverse('the theme of these themes')"])
    found = open_session.execute(encode).fetchone()
    assert found == connect().execute(encode).fetchone()
    assert found != before


def test_an_open_session_leaves_the_tape_of_an_extension_that_was_dropped(connect):
    """The sequence begins anew: two sessions must not have the same tape."""
    variable = "SELECT llm_variable('\\x0000803f'::bytea, ARRAY[1], false)"
    first, second, conn = (connect(options="-c pg_gpt2.tape=session") for _ in range(3))
    first.execute(variable)
    make_anew(conn)
    (handle,) = second.execute(variable).fetchone()
    first.execute(variable)
    tapes = {session.execute("SELECT llm_tape_id()").fetchone() for session in (first, second)}
    assert len(tapes) == 2
    with pytest.raises(psycopg.errors.UndefinedObject):
        first.execute("SELECT llm_value(%s)", (handle,))
