"""docs/how-to/live-tables.md does what it says: its own statements, under writers, failures, kill -9 and pg_cron.

In a cluster of its own, which has pg_cron loaded and is killed. A small model bears the name that the page uses.
"""

import contextlib
import os
import random
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import psycopg
import pytest
from psycopg import conninfo, errors

from tests.server import psql
from tests.server.conftest import CLUSTER
from tests.server.test_docs import MODEL, read_page
from tests.server.test_faults import KILLS as OF_TRAINING
from tests.server.test_faults import wait_for_end
from tests.server.test_restart import Server

KILLS = max(6, OF_TRAINING // 5)
PAGE = re.findall(r"^```(?:sql|sh|ini)\n(.*?)^```", read_page("docs/how-to/live-tables.md"), re.MULTILINE | re.DOTALL)
WORDS = ["How", "does", "the", "planner", "choose", "between", "an", "index", "and", "a", "scan", "of", "the", "table"]
VALUES = (
    "CREATE OR REPLACE FUNCTION question_values(ids bigint[], topics text[] DEFAULT '{}', model text DEFAULT '')"
    " RETURNS SETOF question_value "
)
# Without AVX-512 texts that share a pass have other last digits than one alone.
WRONG = """
    SELECT q.* FROM live_question AS q, LATERAL (SELECT
        llm_classify(body || E'\\nThe problem is with the ', ARRAY['backup', 'index', 'privileges', 'replication'],
                     model_name => 'postgresql-docs') AS topic,
        llm_perplexity(body, 'postgresql-docs') AS perplexity,
        llm_text_embedding(body, model_name => 'postgresql-docs') AS embedding
    ) AS v
    WHERE q.topic IS DISTINCT FROM v.topic
        OR q.model_step IS DISTINCT FROM (SELECT step FROM llm_models WHERE model = 'postgresql-docs')
        OR (q.perplexity IS NULL, q.embedding IS NULL) <> (v.perplexity IS NULL, v.embedding IS NULL)
        OR abs(q.perplexity / v.perplexity - 1) > 1e-4 OR llm_cosine(q.embedding, v.embedding) < 0.99999
"""
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
Database = Callable[[], str]


def shown(beginning: str) -> str:
    """The block of the page that has a line which begins so."""
    (block,) = [block for block in PAGE if re.search(f"^{re.escape(beginning)}", block, re.MULTILINE)]
    return block


def pasted(dsn: str, *blocks: str) -> None:
    """Paste blocks of the page into psql."""
    subprocess.run(
        [psql.program(), "-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", dsn, "-o", os.devnull],
        input="".join(blocks), text=True, check=True,
    )  # fmt: skip


def one(conn: psycopg.Connection, query: str, *values: object) -> object:
    row = conn.execute(query, values or None).fetchone()
    assert row is not None
    return row[0]


def eventually(holds: Callable[[], object], seconds: float) -> None:
    """Wait until it does, also while there is no server."""
    until = time.monotonic() + seconds
    while True:
        with contextlib.suppress(psycopg.OperationalError):
            if holds():
                return
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.1)


# --- the cluster ------------------------------------------------------------------------------------------------------------


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


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A cluster with the settings of the page, whose database is as the page leaves it; its template `prepared` has no job."""
    state = subprocess.run([CLUSTER, "state"], check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
    directory = Path(f"{state}/test.live.{os.getpid()}")  # the last part says to whom it belongs
    try:
        started = subprocess.run([CLUSTER, "start", directory], check=True, stdout=subprocess.PIPE, text=True)
        first = started.stdout.splitlines()[-1]
        prepare(conninfo.make_conninfo(first, dbname="postgres"))
        made = Server(directory, conninfo.make_conninfo(first, dbname="mine"))
        with (made.data / "postgresql.conf").open("a") as file:
            file.write(shown("shared_preload_libraries") + "synchronous_commit = on\n")
        made.control("-m", "fast", "restart")
        pasted(made.dsn, shown("CREATE EXTENSION pg_cron"))
        yield made
    finally:
        subprocess.run([CLUSTER, "stop", directory], check=True)


def prepare(dsn: str) -> None:
    """Make the databases `prepared`, with a model and what the page makes, and `mine`, a copy of it."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("CREATE DATABASE prepared TEMPLATE template_pg_gpt2")
        prepared = conninfo.make_conninfo(dsn, dbname="prepared")
        with psycopg.connect(prepared, autocommit=True) as other:
            other.execute("SELECT llm_train_bpe(%s, 300, %s)", [f"SELECT '{' '.join(WORDS)}'", MODEL])
            other.execute("SELECT llm_init_model(%s, 2, 2, 32, 32, seed => 1)", [MODEL])
        pasted(prepared, shown("CREATE TABLE live_question ("), shown("CREATE TABLE question_queue"))
        pasted(prepared, shown("CREATE TYPE question_value"), shown("CREATE PROCEDURE question_fill"))
        pasted(prepared, shown("CREATE VIEW question_backlog"), shown("CREATE ROLE filler"))
        conn.execute("CREATE DATABASE mine TEMPLATE prepared")


@pytest.fixture(scope="module")
def database(server: Server) -> Database:
    """`database()`: DSN of a new database as the page leaves it, without rows."""
    numbers = count()

    def make() -> str:
        name = f"live_{next(numbers)}"
        with psycopg.connect(conninfo.make_conninfo(server.dsn, dbname="postgres"), autocommit=True) as conn:
            conn.execute(f"CREATE DATABASE {name} TEMPLATE prepared")
        return conninfo.make_conninfo(server.dsn, dbname=name)

    return make


@pytest.fixture
def dsn(database: Database) -> str:
    return database()


@pytest.fixture
def conn(dsn: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(dsn, autocommit=True) as opened:
        yield opened


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


# --- writers ----------------------------------------------------------------------------------------------------------------


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


def test_pg_cron_runs_the_worker_and_goes_on_after_kill_9(server: Server) -> None:
    """Its job begins every minute, and stays for most of it."""
    done = "SELECT count(*) FROM live_question WHERE perplexity IS NOT NULL"
    add = "INSERT INTO live_question (body) SELECT 'How does the planner choose number ' || n FROM generate_series(1, 500) AS n"
    running = "SELECT job_pid FROM cron.job_run_details WHERE status = 'running' ORDER BY runid DESC LIMIT 1"
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


# --- one worker -------------------------------------------------------------------------------------------------------------


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
