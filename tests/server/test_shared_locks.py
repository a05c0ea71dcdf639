"""What a model shares may change while its lock is waited for: whoever then has the lock has those of the new sources too, and
no two sessions wait for each other."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psycopg
import pytest

from tests.server.conftest import Connect

Sql = Callable[..., object]
SOURCES = ("a", "z")  # before the target "m" in the order in which locks are taken, and after it
STEP = "SELECT llm_train_step('m', batch => ARRAY[1])"
RUN = "CALL llm_train_run('m', 100000, batch_size => 2, log_every => 0, commit_every => 1, flush_seconds => 0, wait => true)"
WAITS = "SELECT EXISTS (SELECT FROM pg_locks WHERE pid = %s AND NOT granted)"
HELD = """
    SELECT count(DISTINCT objid) FROM pg_locks
    WHERE locktype = 'advisory' AND granted AND pid = %s AND objid IN (hashtext('m')::oid, hashtext(%s)::oid)
"""


@pytest.fixture
def models(sql: Sql) -> Iterator[None]:
    sql("SELECT llm_init_model(m, 1, 1, 4, 16, 50) FROM unnest('{a,m,z}'::text[]) AS m")
    sql("INSERT INTO llm_dataset (id, tokens, target) SELECT n, '{1,2}', '{2,3}' FROM generate_series(1, 4) AS n")
    yield
    sql("DELETE FROM llm_param_share")
    sql("SELECT llm_drop_model(model) FROM llm_models WHERE NOT preset")
    sql("DELETE FROM llm_dataset")


class Session:
    """A session whose statements are to wait for a lock; `end` gives its error, if any."""

    def __init__(self, conn: psycopg.Connection) -> None:
        self.conn, self.pid = conn, conn.info.backend_pid
        self.error: psycopg.Error | None = None

    def begin(self, sql: Sql, *statements: str) -> None:
        """Execute in a thread, until it waits."""

        def work() -> None:
            try:
                for statement in statements:
                    self.conn.execute(statement)
            except psycopg.Error as error:
                self.error = error

        self._thread = threading.Thread(target=work)
        self._thread.start()
        while not sql(WAITS, self.pid):
            assert self._thread.is_alive(), self.error
            time.sleep(0.01)

    def end(self) -> psycopg.Error | None:
        self._thread.join(60)
        assert not self._thread.is_alive()
        return self.error


@pytest.fixture
def session(connect: Connect, models: None) -> Iterator[Callable[[], Session]]:
    """Makes sessions, which end before the models are dropped."""
    made: list[Session] = []

    def make() -> Session:
        made.append(Session(connect()))
        return made[-1]

    yield make
    for one in made:
        one.conn.close()


@contextmanager
def sharing(session: Callable[[], Session], source: str) -> Iterator[None]:
    """Within it, a session makes "m" share a tensor of `source`, and has not committed; afterwards it has."""
    holder = session().conn
    holder.execute("BEGIN")
    holder.execute("SELECT llm_share_param(%s, 'wte', NULL, 'm')", [source])
    yield
    holder.execute("COMMIT")


@pytest.mark.parametrize("source", SOURCES)
def test_a_statement_that_waited_has_the_lock_of_a_new_source(session, sql, source):
    waiter = session()
    with sharing(session, source):
        waiter.begin(sql, "BEGIN", STEP)
    assert waiter.end() is None
    assert sql(HELD, waiter.pid, source) == 2
    waiter.conn.execute("ROLLBACK")


@pytest.mark.parametrize("source", SOURCES)
def test_a_run_that_waited_has_the_lock_of_a_new_source(session, sql, source):
    waiter = session()
    with sharing(session, source):
        waiter.begin(sql, RUN)
    while not sql("SELECT EXISTS (SELECT FROM llm_train_log WHERE model = 'm')"):
        assert waiter.error is None
    held = sql(HELD, waiter.pid, source)
    assert sql("SELECT llm_train_stop('m')")
    assert waiter.end() is None
    assert held == 2
    assert sql(HELD, waiter.pid, source) == 0


@pytest.mark.parametrize("statement", [STEP, RUN.replace("100000", "1")])
def test_what_waited_waits_for_nobody_who_waits_for_it(session, sql, statement):
    """One has "m" and then needs "a"; the other, which is first to get "a", needs both: in the order of names."""
    one, other = session(), session()
    with sharing(session, "a"):
        one.begin(sql, statement)
        other.begin(sql, "SELECT llm_share_param('a', 'ln_f.bias', 0, 'm')")
    assert (one.end(), other.end()) == (None, None)


def test_whoever_waits_to_copy_a_checkpoint_does_not_hold_it(session, sql):
    """Who has the lock of the model may drop it."""
    saved = sql("SELECT llm_checkpoint_save('a')")
    holder, waiter = session().conn, session()
    holder.execute("BEGIN; SELECT llm_drop_model('m')")
    waiter.begin(sql, f"SELECT llm_copy_model('a', 'm', {saved})")
    holder.execute("SELECT llm_checkpoint_drop(%s)", [saved])
    holder.execute("COMMIT")
    assert isinstance(waiter.end(), psycopg.errors.UndefinedObject)
    saved = sql("SELECT llm_checkpoint_save('a')")
    sql("SELECT llm_copy_model('a', 'm', %s)", saved)


def test_an_adapter_that_got_another_base_has_the_lock_of_that_one(session, sql):
    """What shares a tensor of an adapter may share it of its base."""
    sql("SELECT llm_adapter_create('p', 'z'), llm_init_model('n', 1, 1, 4, 16, 50)")
    holder, waiter = session().conn, session()
    holder.execute("BEGIN; SELECT llm_drop_model('p'); SELECT llm_adapter_create('p', 'a')")
    waiter.begin(sql, "BEGIN", "SELECT llm_share_param('p', 'wte', NULL, 'n')")
    holder.execute("COMMIT")
    assert waiter.end() is None
    assert sql("SELECT source_model FROM llm_param_share WHERE target_model = 'n'") is None
    assert sql(HELD, waiter.pid, "a") == 1
    waiter.conn.execute("COMMIT")
    assert sql("SELECT source_model FROM llm_param_share WHERE target_model = 'n'") == "a"
    sql("SELECT llm_drop_model('n'), llm_drop_model('p')")
