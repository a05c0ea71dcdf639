"""The columns of docs/how-to/live-tables.md follow their texts under writers and workers at once, and kill -9 of backends and of
the server."""

import contextlib
import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
from psycopg import conninfo, errors

from tests.server import psql
from tests.server.live_tables.page import WORDS, WRONG, eventually, one, shown
from tests.server.test_faults import KILLS as OF_TRAINING
from tests.server.test_faults import wait_for_end
from tests.server.test_restart import Server

KILLS = max(6, OF_TRAINING // 5)
AUDIT = """
    CREATE TABLE entered (question bigint);
    CREATE TABLE written (question bigint, body text);
    CREATE FUNCTION enter() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN INSERT INTO public.entered VALUES (NEW.question); RETURN NULL; END $$;
    CREATE FUNCTION write() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN INSERT INTO public.written VALUES (NEW.id, NEW.body); RETURN NULL; END $$;
    CREATE TRIGGER audit AFTER INSERT ON question_queue FOR EACH ROW EXECUTE FUNCTION enter();
    CREATE TRIGGER audit AFTER UPDATE OF perplexity ON live_question FOR EACH ROW EXECUTE FUNCTION write();
"""


@contextlib.contextmanager
def workers(dsn: str, number: int) -> Iterator[None]:
    """So many of the page's loops."""
    parts = conninfo.conninfo_to_dict(dsn)
    environment = os.environ | {
        "PGHOST": str(parts["host"]), "PGPORT": str(parts["port"]), "PGUSER": "postgres", "PGDATABASE": str(parts["dbname"]),
        "PATH": f"{Path(psql.program()).parent}:{os.environ['PATH']}",
    }  # fmt: skip
    loops = [
        subprocess.Popen(["sh", "-c", shown("while true")], env=environment, start_new_session=True, stderr=subprocess.DEVNULL)
        for _ in range(number)
    ]  # fmt: skip
    try:
        yield
    finally:
        for loop in loops:
            os.killpg(loop.pid, signal.SIGKILL)
            loop.wait()


class Writer(threading.Thread):
    """Inserts, changes and deletes rows of its own until it is told to stop, over any number of restarts.

    `known`: what each of its rows may be; more than one thing where a commit may or may not have reached the server.
    """

    def __init__(self, dsn: str, seed: int) -> None:
        super().__init__(daemon=True)
        self.dsn, self.random, self.stop = dsn, random.Random(seed), threading.Event()
        self.known: dict[int, set[str | None]] = {}
        self.problems: list[BaseException] = []

    def run(self) -> None:
        while not self.stop.is_set():
            try:
                with psycopg.connect(self.dsn, autocommit=True) as conn:
                    while not self.stop.is_set():
                        self.write(conn)
            except psycopg.OperationalError as error:
                if isinstance(error, errors.DeadlockDetected):
                    self.problems.append(error)
                time.sleep(0.02)
            except BaseException as error:
                self.problems.append(error)
                return

    def text(self) -> str:
        return " ".join(self.random.choices(WORDS, k=self.random.randrange(2, 12)))

    def write(self, conn: psycopg.Connection) -> None:
        """One transaction: some new rows, or changes of some old ones in any order."""
        time.sleep(self.random.uniform(0, 0.02))
        if len(self.known) < 5 or self.random.random() < 0.3:
            texts = [self.text() for _ in range(self.random.choice([1, 1, 5]))]
            query = "INSERT INTO live_question (body) SELECT unnest(%s::text[]) RETURNING id, body"
            self.known.update({id_: {body} for id_, body in conn.execute(query, [texts])})
            return
        changes: dict[int, str | None] = {
            id_: None if self.random.random() < 0.1 else self.text()
            for id_ in self.random.sample(list(self.known), self.random.randrange(1, 4))
        }
        before = {id_: self.known[id_] for id_ in changes}
        after: dict[int, set[str | None]] = {}
        self.known |= {id_: before[id_] | {body} for id_, body in changes.items()}
        with conn.transaction(force_rollback=(back := self.random.random() < 0.1)):
            for id_, body in changes.items():
                statement = "DELETE FROM live_question" if body is None else "UPDATE live_question SET body = %(body)s"
                done = conn.execute(f"{statement} WHERE id = %(id)s", {"body": body, "id": id_})
                after[id_] = {body if done.rowcount else None}
        self.known |= before if back else after


@contextlib.contextmanager
def writing(dsn: str) -> Iterator[list[Writer]]:
    """Three writers, until the end of the block."""
    writers = [Writer(dsn, seed) for seed in range(3)]
    for writer in writers:
        writer.start()
    try:
        yield writers
    finally:
        for writer in writers:
            writer.stop.set()
        for writer in writers:
            writer.join(60)


def check(conn: psycopg.Connection, writers: list[Writer]) -> None:
    """When the queue is empty, everything is as the writers left it, filled from its text, and no work was done twice."""
    eventually(lambda: one(conn, "SELECT waiting + failed FROM question_backlog") == 0, 60)
    assert [writer.problems for writer in writers if writer.problems] == []
    found = dict(conn.execute("SELECT id, body FROM live_question").fetchall())
    known = {id_: bodies for writer in writers for id_, bodies in writer.known.items()}
    assert {id_: found.get(id_) for id_ in known if found.get(id_) not in known[id_]} == {}
    assert conn.execute(WRONG).fetchall() == []
    assert len(found) > 20
    repeated = """
        SELECT question FROM (SELECT question, count(*) AS entries FROM entered GROUP BY question) AS e
        JOIN (SELECT question, count(*) AS times FROM written GROUP BY question) AS w USING (question) WHERE times > entries
    """
    assert conn.execute(repeated).fetchall() == []


def test_writers_and_workers_at_once(dsn: str, conn: psycopg.Connection) -> None:
    conn.execute(AUDIT)
    with workers(dsn, 3):
        with writing(dsn) as writers:
            time.sleep(8)
        check(conn, writers)


def kill(server: Server) -> None:
    """Kill -9 every process of the server, and start it again."""
    postmaster = int((server.data / "postmaster.pid").read_text().split()[0])
    children = Path(f"/proc/{postmaster}/task/{postmaster}/children").read_text().split()
    for pid in (postmaster, *map(int, children)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    eventually(lambda: starts(server), 30)


def starts(server: Server) -> bool:
    """Whether it could be started, which it cannot as long as a killed process has its memory."""
    try:
        server.start()
    except subprocess.CalledProcessError:
        return False
    return True


def test_kill_9_of_backends_and_of_the_server_loses_and_repeats_nothing(server: Server, dsn: str) -> None:
    """The server ends all sessions when one is killed. PG_GPT2_KILLS says how many kills, a fifth of it."""
    moment = random.Random(KILLS)
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute(AUDIT)
    killed = []
    with workers(dsn, 2):
        with writing(dsn) as writers:
            for number in range(KILLS):
                eventually(lambda: at_work(dsn), 30)
                time.sleep(moment.uniform(0, 0.5))
                if number % 3 == 2:
                    kill(server)
                else:
                    killed.append(kill_backend(dsn, ["CALL question_fill%", "%SET body =%"][number % 3]))
        eventually(lambda: at_work(dsn), 30)
        with psycopg.connect(dsn, autocommit=True) as conn:
            check(conn, writers)
    assert any(killed)


def at_work(dsn: str) -> bool:
    """Whether the server is there and a worker is at work."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        query = "SELECT count(*) > 0 FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'CALL%'"
        return bool(one(conn, query))


def kill_backend(dsn: str, query: str) -> bool:
    """Kill -9 a session that runs such a statement, if there is one, and wait until the server has ended all others."""
    find = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND query LIKE %s"
    with psycopg.connect(dsn, autocommit=True) as conn:
        found = conn.execute(f"{find} AND pid <> pg_backend_pid()", [query]).fetchone()
        if not found:
            return False
        os.kill(found[0], signal.SIGKILL)
        wait_for_end(conn)
    return True
