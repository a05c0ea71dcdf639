"""A cluster with the settings of docs/how-to/live-tables.md, and databases as that page leaves them: a small model bears the name
that it uses. Each file of tests has a cluster of its own, since some kill it.
"""

import os
import subprocess
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import psycopg
import pytest
from psycopg import conninfo

from tests.server.conftest import CLUSTER
from tests.server.docs.pages import MODEL
from tests.server.live_tables.page import WORDS, Database, pasted, shown
from tests.server.test_restart import Server


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A cluster with the settings of the page, whose database is as the page leaves it, but without a job."""
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
