"""Workers and leaders that die, hang or refuse: a NOTICE and the same bits, or an error before the first step."""

import contextlib
import os
import random
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg import conninfo
from psycopg.types.json import Jsonb

from tests.server.conftest import CLUSTER
from tests.server.test_faults import reconnect
from tests.server.test_train_run import make_model, steps
from tests.server.test_workers import CALL, STATE, add_server, leader, options, train  # noqa: F401

KILLS = int(os.environ.get("PG_GPT2_WORKER_KILLS", "3"))  # of each kind; 20 in a long form
STEPS = 24
BUSY = "SELECT pid FROM pg_stat_activity WHERE query LIKE '%llm_worker_%' AND pid <> pg_backend_pid()"


@pytest.fixture(scope="module")
def wanted(leader) -> str:  # noqa: F811
    """What a run on one server leaves."""
    make_model(leader, "alone")
    return train(leader, "alone", options(0), STEPS)


def started(
    conn: psycopg.Connection, model: str, thread: threading.Thread, failures: list[psycopg.Error], count: int = 4
) -> None:
    """Wait until so many steps are committed."""
    while steps(conn, model) < count:
        assert thread.is_alive(), failures
        time.sleep(0.005)


def listening(session: psycopg.Connection) -> tuple[psycopg.Connection, list[str]]:
    """The session, and the NOTICEs that it will get."""
    said: list[str] = []
    session.add_notice_handler(lambda notice: said.append(str(notice.message_primary)))
    return session, said


def call(session: psycopg.Connection, model: str, said: object, failures: list[psycopg.Error]) -> threading.Thread:
    """Train in a thread of its own."""

    def work() -> None:
        try:
            session.execute(CALL.format(steps=STEPS, more=""), [model, said])
        except psycopg.Error as error:
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    return thread


def test_a_worker_killed_at_any_moment_changes_no_bit(leader, connect, wanted):  # noqa: F811
    draw = random.Random(3)
    for number in range(KILLS):
        model, failures = f"killed {number}", []
        make_model(leader, model)
        session, said = listening(connect())
        thread = call(session, model, options(2), failures)
        started(leader, model, thread, failures)
        time.sleep(draw.random() * 0.2)
        killed = leader.execute(
            f"SELECT count(pg_terminate_backend(pid)) FROM ({BUSY} AND datname <> current_database() LIMIT 1) AS a"
        ).fetchone()
        thread.join()
        assert not failures
        assert leader.execute(STATE, [model]).fetchone() == (wanted,)
        if killed == (1,) and any("others compute" in one for one in said):
            (noted,) = leader.execute(
                "SELECT count(*) FROM llm_train_log WHERE model = %s AND servers::text LIKE '%%failure%%'", [model]
            ).fetchone()
            assert noted == 1
            (lost,) = (one for one in said if "others compute its shards" in one)
            assert "\n" not in lost  # libpq says it in three lines


def test_a_lost_worker_is_tried_again(leader, connect, wanted):  # noqa: F811
    """Where it is back, it computes shards again; with the same bits."""
    make_model(leader, "back")
    (session, said), failures = listening(connect()), []
    session.execute("SELECT count(*) FROM llm_doctor()")
    session.execute("""
        CREATE FUNCTION soon() RETURNS void LANGUAGE plpython3u AS $$
            import sys
            next(m for name, m in sys.modules.items() if name.endswith('.server.training.worker')).RETRY = 0.05
        $$""")
    session.execute("SELECT llm_train_stop('back')")
    session.execute("SELECT soon()")
    thread = call(session, "back", options(2), failures)
    started(leader, "back", thread, failures)
    leader.execute(f"SELECT pg_terminate_backend(pid) FROM ({BUSY} AND datname <> current_database() LIMIT 1) AS a")
    thread.join()
    assert not failures
    assert leader.execute(STATE, ["back"]).fetchone() == (wanted,)
    assert any(one.endswith("is back") for one in said), said


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_a_killed_leader_goes_on_with_other_workers(leader, connect, wanted, workers):  # noqa: F811
    model, failures = f"led {workers}", []
    make_model(leader, model)
    session = connect()
    thread = call(session, model, options(2), failures)
    started(leader, model, thread, failures, 8)
    leader.execute("SELECT pg_terminate_backend(%s)", [session.info.backend_pid])
    thread.join()
    assert failures
    assert train(leader, model, options(workers), STEPS) == wanted
    assert leader.execute("SELECT count(*) FROM llm_run WHERE model = %s", [model]).fetchone() == (1,)


def big_model(conn: psycopg.Connection, model: str) -> None:
    """One of which a shard takes some seconds."""
    conn.execute("SELECT llm_init_model(%s, 4, 4, 256, 256, 2000)", [model])
    conn.execute(
        "INSERT INTO llm_dataset (model, tokens, target) SELECT %s, array_agg(i), array_agg(i)"
        " FROM generate_series(1, 64) AS row, generate_series(1, 256) AS i GROUP BY row",
        [model],
    )


LONG = (
    "CALL llm_train_run('{}', 100, batch_size => 64, log_every => 0, audit => 'none',"
    """ options => '{{"workers": ["w1", "w2"], "shards": 3}}')"""
)


def busy(conn: psycopg.Connection) -> int:
    """How many sessions compute a shard."""
    return conn.execute(
        "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query LIKE '%llm_worker_shard%'"
        " AND pid <> pg_backend_pid()"
    ).fetchone()[0]


def gone(conn: psycopg.Connection) -> float:
    """Seconds until nobody computes a shard any more."""
    began = time.monotonic()
    while busy(conn) and time.monotonic() < began + 20:
        time.sleep(0.01)
    return time.monotonic() - began


@pytest.mark.parametrize("how", ["cancel", "timeout", "terminate"])
def test_the_end_of_a_call_ends_the_work_elsewhere(leader, connect, how):  # noqa: F811
    """Within a second; twice as long here, on a machine with other work."""
    model = f"long {how}"
    big_model(leader, model)
    session, failures = connect(), []
    if how == "timeout":
        session.execute("SET statement_timeout = '12s'")

    def work() -> None:
        try:
            session.execute(LONG.format(model))
        except psycopg.Error as error:
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    while busy(leader) < 2:
        assert thread.is_alive(), failures
        time.sleep(0.01)
    if how != "timeout":
        function = {"cancel": "pg_cancel_backend", "terminate": "pg_terminate_backend"}[how]
        leader.execute(f"SELECT {function}(%s)", [session.info.backend_pid])
    thread.join()
    assert gone(leader) < 2
    assert failures[0].sqlstate == (None if how == "terminate" else "57014") or how == "terminate"
    if how != "terminate":
        assert session.execute("SELECT dblink_get_connections()").fetchone() == (None,)


@pytest.mark.parametrize("ended", [True, False])
def test_all_connections_end_though_the_end_of_one_fails(leader, connect, ended):  # noqa: F811
    """What ended the run is the error that is told."""
    model, session = f"ending {ended}", connect()
    make_model(leader, model)
    if ended:
        session.execute("UPDATE llm_dataset SET target = array_fill(-100, ARRAY[16]) WHERE model = %s", [model])
    session.execute("BEGIN; ALTER FUNCTION dblink_disconnect(text) RENAME TO ends")
    session.execute(
        "CREATE FUNCTION dblink_disconnect(name text) RETURNS text LANGUAGE sql AS"
        " $$SELECT CASE name WHEN 'pg_gpt2_worker_0' THEN (1 / length(left(name, 0)))::text ELSE public.ends(name) END$$; COMMIT"
    )
    try:
        with pytest.raises(psycopg.Error) as raised:
            train(session, model, options(3))
        assert ("carries loss" if ended else "division by zero") in str(raised.value)
        assert session.execute("SELECT dblink_get_connections()").fetchone() == (["pg_gpt2_worker_0"],)
    finally:
        session.execute("DROP FUNCTION dblink_disconnect(text); ALTER FUNCTION ends RENAME TO dblink_disconnect")


class Proxy:
    """A way to a server's socket that can stop to pass anything on."""

    def __init__(self, path: str) -> None:
        self.path, self.hangs = path, threading.Event()
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.port = self.listening.getsockname()[1]
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self) -> None:
        while True:
            try:
                near, _ = self.listening.accept()
            except OSError:
                return
            far = socket.socket(socket.AF_UNIX)
            far.connect(self.path)
            for one, other in ((near, far), (far, near)):
                threading.Thread(target=self.copy, args=(one, other), daemon=True).start()

    def copy(self, one: socket.socket, other: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := one.recv(1 << 16):
                while self.hangs.is_set():
                    time.sleep(0.05)
                other.sendall(data)
        for end in (one, other):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


def test_a_network_that_hangs_is_given_up(leader, connect, wanted, new_database):  # noqa: F811
    dsn = new_database()
    at = conninfo.conninfo_to_dict(dsn)
    proxy = Proxy(f"{at['host']}/.s.PGSQL.{at['port']}")
    add_server(leader, "far", dsn, host="127.0.0.1", port=str(proxy.port))
    make_model(leader, "hung")
    (session, said), failures = listening(connect()), []
    thread = call(session, "hung", Jsonb({"workers": ["far", "w1"], "shards": 4, "worker_timeout": 4}), failures)
    started(leader, "hung", thread, failures)
    proxy.hangs.set()
    thread.join()
    proxy.listening.close()
    assert not failures
    assert leader.execute(STATE, ["hung"]).fetchone() == (wanted,)
    assert 'server "far" has not answered for 4 seconds; others compute its shards' in said


@pytest.fixture(scope="module")
def second_cluster(tmp_path_factory) -> Iterator[tuple[str, Path]]:
    """DSN and directory of a cluster of its own."""
    state = subprocess.run([CLUSTER, "state"], check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
    directory = Path(f"{state}/workers.{os.getpid()}")
    started = subprocess.run([CLUSTER, "start", directory], check=True, stdout=subprocess.PIPE, text=True)
    yield started.stdout.splitlines()[-1], directory
    subprocess.run([CLUSTER, "stop", directory], check=True)


def test_kill_9_of_a_workers_session_and_its_server_changes_no_bit(leader, connect, wanted, second_cluster):  # noqa: F811
    """Its whole server restarts: whatever was connected is lost."""
    dsn, _ = second_cluster
    add_server(leader, "other", dsn)
    make_model(leader, "shot")
    session, failures = connect(), []
    thread = call(session, "shot", Jsonb({"workers": ["other", "w1"], "shards": 4}), failures)
    started(leader, "shot", thread, failures)
    with psycopg.connect(dsn, autocommit=True) as there:
        (pid,) = there.execute(BUSY).fetchone()
    os.kill(pid, signal.SIGKILL)
    thread.join()
    assert not failures
    assert leader.execute(STATE, ["shot"]).fetchone() == (wanted,)


def test_a_worker_ends_when_its_leader_is_killed(leader, second_cluster, new_database):  # noqa: F811
    """kill -9 of the leader's session: the worker's, which computes, ends within a second. Here the leader is in the second
    cluster, whose server restarts."""
    dsn, _ = second_cluster
    with reconnect(dsn) as there:  # the test before may have shot it
        there.execute("CREATE EXTENSION IF NOT EXISTS dblink")
        for name in ("w1", "w2"):
            add_server(there, name, new_database())
        big_model(there, "orphaned")
        session = psycopg.connect(dsn, autocommit=True)
        with contextlib.suppress(psycopg.Error):
            thread = threading.Thread(target=lambda: call_long(session), daemon=True)
            thread.start()
        while busy(leader) < 2:
            time.sleep(0.01)
        os.kill(session.info.backend_pid, signal.SIGKILL)
    assert gone(leader) < 2
    thread.join()


ANSWERS = {
    "nothing": "SELECT NULL::text",
    "no numbers": "SELECT repeat('x', 16)",
    "too few numbers": "SELECT '0000AA=='",
    "another character": "SELECT translate(public.right_one(first, count), '0', '~')",
    "an error": "SELECT (1 / (count - count))::text",
}


@pytest.mark.parametrize("answer", ANSWERS)
def test_a_worker_that_answers_with_anything_else_changes_no_bit(leader, connect, new_database, wanted, answer):  # noqa: F811
    """It is given up with a NOTICE, before anything of it is used."""
    model, name, dsn = f"answered {answer}", f"w {answer}", new_database()
    add_server(leader, name, dsn)
    with psycopg.connect(dsn, autocommit=True) as there:
        there.execute("ALTER FUNCTION llm_worker_gradients RENAME TO right_one")
        there.execute(
            "CREATE FUNCTION llm_worker_gradients(first bigint, count integer) RETURNS text LANGUAGE sql"
            f" AS $${ANSWERS[answer]}$$"
        )
    make_model(leader, model)
    session, said = listening(connect())
    session.execute(CALL.format(steps=STEPS, more=""), [model, Jsonb({"workers": [name], "shards": 4})])
    expected = "division by zero" if answer == "an error" else "has not answered what it was asked"
    (lost,) = (one for one in said if "others compute" in one)
    assert expected in lost
    assert leader.execute(STATE, [model]).fetchone() == (wanted,)


def call_long(session: psycopg.Connection) -> None:
    with contextlib.suppress(psycopg.Error):
        session.execute(LONG.format("orphaned"))


@pytest.mark.parametrize("what", ["unknown", "password", "no extension", "no privilege", "unreachable"])
def test_what_a_worker_lacks_is_an_error_before_the_first_step(leader, new_database, what):  # noqa: F811
    """tests/server/provoked.py has the others: dblink, versions, processors."""
    model, dsn = f"lacks {what}", new_database("template0" if what == "no extension" else "template_pg_gpt2")
    make_model(leader, model)
    name = f"lacking {what}"
    if what != "unknown":
        more = {"host": "/nowhere"} if what == "unreachable" else {}
        add_server(leader, name, dsn, **more)
    role = {"password": "nobody", "no privilege": f"powerless_{os.getpid()}"}.get(what)
    if role:
        leader.execute(
            psycopg.sql.SQL("ALTER USER MAPPING FOR PUBLIC SERVER {} OPTIONS (SET user {})").format(
                psycopg.sql.Identifier(name), psycopg.sql.Literal(role)
            )
        )
    if what == "no privilege":
        leader.execute(f"CREATE ROLE {role} LOGIN")
    expected = {
        "unknown": ("42704", "does not exist"),
        "password": ("08001", "could not establish connection"),
        "unreachable": ("08001", "could not establish connection"),
        "no extension": ("55000", "does not have the extension pg_gpt2"),
        "no privilege": ("42501", "permission denied for function llm_worker_begin"),
    }[what]
    with pytest.raises(psycopg.Error) as raised:
        train(leader, model, Jsonb({"workers": [name], "shards": 2}))
    assert raised.value.sqlstate == expected[0]
    assert expected[1] in raised.value.diag.message_primary
    assert f'server "{name}"' in raised.value.diag.message_primary
    assert raised.value.diag.message_hint
    assert leader.execute("SELECT count(*) FROM llm_run WHERE model = %s", [model]).fetchone() == (0,)
    assert leader.execute("SELECT dblink_get_connections()").fetchone() == (None,)
    if what == "no privilege":
        leader.execute(f"DROP ROLE {role}")
