"""Connections to a throw-away cluster: the one that PG_GPT2_TEST_DSN names (make test), else one started here.

Every module gets a database of its own, copied from a template that has the extension, so that modules do not see each
other's models. `connect()` opens more sessions in it, `new_database()` makes more databases.
"""

import os
import subprocess
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import conninfo, sql

from tests.bench.clusters import Clusters

ROOT = Path(__file__).resolve().parents[2]
CLUSTER = ROOT / "docker" / "cluster.sh"

Connect = Callable[..., psycopg.Connection]


def _last_line(*command: str | Path) -> str:
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1]


@pytest.fixture(scope="session")
def cluster_dsn() -> Iterator[str]:
    """DSN of database `pg_gpt2` of the throw-away cluster, as a superuser. A second worker of pytest has a cluster of its own."""
    if "PG_GPT2_TEST_DSN" in os.environ and os.environ.get("PYTEST_XDIST_WORKER", "gw0") == "gw0":
        yield os.environ["PG_GPT2_TEST_DSN"]
        return
    subprocess.run(["/usr/bin/python3", ROOT / "build.py"], check=True)
    # The name ends in our process id: if we are killed, a later `cluster.sh run` sees that and cleans up.
    directory = f"{_last_line(CLUSTER, 'state')}/test.{os.getpid()}"
    try:
        yield _last_line(CLUSTER, "start", directory)
    finally:
        subprocess.run([CLUSTER, "stop", directory], check=True)


@pytest.fixture(scope="session")
def clusters() -> Iterator[Clusters]:
    """More throw-away clusters, by name, each made when it is first asked for."""
    with Clusters() as made:
        yield made


@pytest.fixture(scope="session")
def server_files(cluster_dsn: str) -> Path:
    """A directory where tests and the server exchange files: either may write, both read what the other wrote."""
    return Path(conninfo.conninfo_to_dict(cluster_dsn)["host"]).parent / "files"  # type: ignore[arg-type]


@pytest.fixture
def put(server_files: Path) -> Iterator[Callable[[str, bytes], str]]:
    """`put(name, bytes)`: a file that the server can read; its path there. It is removed after the test."""
    made = []

    def write(name: str, data: bytes) -> str:
        path = server_files / name
        path.write_bytes(data)
        path.chmod(0o644)
        made.append(path)
        return str(path)

    yield write
    for path in made:
        path.unlink(missing_ok=True)


@pytest.fixture
def target(server_files: Path) -> Iterator[Path]:
    """Path of a file that the server is to write; removed after the test."""
    path = server_files / "written"
    yield path
    path.unlink(missing_ok=True)


@pytest.fixture(scope="session")
def new_database(cluster_dsn: str) -> Callable[..., str]:
    """`new_database(template='template_pg_gpt2')`: DSN of a new database; `template0` has no extension."""
    numbers = count(1)

    def make(template: str = "template_pg_gpt2") -> str:
        name = f"test_{os.getpid()}_{next(numbers)}"
        with psycopg.connect(cluster_dsn, autocommit=True) as conn:
            conn.execute(
                sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), sql.Identifier(template))
            )
        return conninfo.make_conninfo(cluster_dsn, dbname=name)

    return make


@pytest.fixture(scope="module")
def dsn(cluster_dsn: str, new_database: Callable[..., str]) -> Iterator[str]:
    """DSN of this module's database, which is dropped afterwards."""
    made = new_database()
    yield made
    name = conninfo.conninfo_to_dict(made)["dbname"]
    with psycopg.connect(cluster_dsn, autocommit=True) as conn:
        conn.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(str(name))))


@pytest.fixture
def connect(dsn: str) -> Iterator[Connect]:
    """`connect(**parameters)`: a new autocommit session in this module's database, closed after the test."""
    opened: list[psycopg.Connection] = []

    def open_session(**parameters: Any) -> psycopg.Connection:
        conn = psycopg.connect(conninfo.make_conninfo(dsn, **parameters), autocommit=True)
        opened.append(conn)
        return conn

    yield open_session
    for conn in opened:
        conn.close()


@pytest.fixture
def conn(connect: Connect) -> psycopg.Connection:
    """A session of this test's own, in autocommit mode."""
    return connect()


@pytest.fixture(name="sql")
def first_value(conn: psycopg.Connection) -> Callable[..., object]:
    """`sql(statement, *parameters)`: the first value of the first row, if there is one."""

    def execute(statement: str, *parameters: object) -> object:
        cursor = conn.execute(statement, parameters or None)
        row = cursor.fetchone() if cursor.description else None
        return row[0] if row else None

    return execute


@pytest.fixture(scope="module")
def module_conn(dsn: str) -> Iterator[psycopg.Connection]:
    """One session for all tests of a module: for those that only read what one fixture prepared."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        yield conn
