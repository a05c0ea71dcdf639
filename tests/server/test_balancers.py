"""Behind a real HAProxy and a real pgpool, as docs/how-to/poolers.md sets them up; and whether its list of functions is whole."""

import os
import re
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg import conninfo

from tests.bench.clusters import Clusters
from tests.server.test_hostile import EXAMPLES

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "how-to" / "poolers.md").read_text()
HAPROXY = re.search(r"```haproxy\n(.*?)```", PAGE, re.DOTALL)[1]
LIST = re.search(r"^read_only_function_list = '(.*)'$", PAGE, re.MULTILINE)[1]
MODEL = """
    SET client_min_messages = warning;
    SELECT llm_train_bpe($$SELECT 'low lower lowest'$$, 270, 'm');
    SELECT llm_init_model('m', 1, 2, 16, 32, seed => 1);
    CREATE TABLE here AS SELECT '{name}' AS name;
    CREATE TABLE written (by text);
    CREATE ROLE haproxy LOGIN;
"""
WHERE = "SELECT name, llm_generate('low', 5, seed => 1, model_name => 'm') FROM here"
PGPOOL = """
    backend_clustering_mode = 'streaming_replication'
    backend_hostname0 = '{one}'
    backend_port0 = 5432
    backend_weight0 = 0
    backend_flag0 = 'ALWAYS_PRIMARY|DISALLOW_TO_FAILOVER'
    backend_hostname1 = '{two}'
    backend_port1 = 5432
    backend_weight1 = 1
    backend_flag1 = 'DISALLOW_TO_FAILOVER'
    load_balance_mode = on
    sr_check_period = 0
    listen_addresses = ''
    pcp_listen_addresses = ''
    port = 5999
    socket_dir = '{folder}'
    pcp_socket_dir = '{folder}'
    pid_file_name = '{folder}/pgpool.pid'
    work_dir = '{folder}'
    num_init_children = 2
    memqcache_total_size = 1MB
    read_only_function_list = '{reading}'
"""


@pytest.fixture(scope="module")
def hosts(clusters: Clusters) -> Iterator[dict[str, str]]:
    """Two servers that have the same model, in the database balanced."""
    for name in ("one", "two"):
        with psycopg.connect(clusters[name], autocommit=True) as conn:
            conn.execute("CREATE DATABASE balanced TEMPLATE template_pg_gpt2")
        with psycopg.connect(conninfo.make_conninfo(clusters[name], dbname="balanced"), autocommit=True) as conn:
            conn.execute(MODEL.format(name=name))
    yield {name: clusters.host(name) for name in ("one", "two")}
    for name in ("one", "two"):
        with psycopg.connect(clusters[name], autocommit=True) as conn:
            conn.execute("DROP DATABASE balanced WITH (FORCE)")
            conn.execute("DROP ROLE haproxy")


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Callable[..., None]]:
    """`started(program, ...)`: it runs until the test ends."""
    running: list[subprocess.Popen] = []

    def start(program: str, *arguments: str | Path) -> None:
        found = shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin")
        assert found, f"there is no {program}: docker/provision.sh test installs it"
        running.append(subprocess.Popen([found, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))

    yield start
    for process in running:
        process.terminate()
        process.wait(timeout=30)


def connect(folder: Path, port: int) -> psycopg.Connection:
    """A session through what listens in `folder`, as soon as that answers."""
    until = time.monotonic() + 30
    while True:
        try:
            return psycopg.connect(
                host=str(folder), port=port, user="postgres", dbname="balanced", autocommit=True, prepare_threshold=None
            )
        except psycopg.OperationalError:
            assert time.monotonic() < until
            time.sleep(0.1)


def haproxy(folder: Path, hosts: dict[str, str], timeout: str = "1d") -> Path:
    """The configuration of the page, with sockets of files in the place of hosts and ports."""
    text = re.sub(r"bind :(\d+)", rf"bind unix@{folder}/.s.PGSQL.\1", HAPROXY).replace("1d", timeout)
    for name, host in hosts.items():
        text = text.replace(f"{name}.example:5432", f"unix@{host}/.s.PGSQL.5432")
    file = folder / "haproxy.cfg"
    file.write_text(text)
    return file


def test_haproxy_reads_on_all_servers_and_writes_on_one(hosts, started, tmp_path):
    started("haproxy", "-db", "-f", haproxy(tmp_path, hosts))
    reading = [connect(tmp_path, 5433) for _ in range(4)]
    found = [conn.execute(WHERE).fetchone() for conn in reading]
    assert Counter(name for name, _ in found) == {"one": 2, "two": 2}
    assert len({text for _, text in found}) == 1
    with connect(tmp_path, 5434) as conn:
        assert conn.execute("SELECT name FROM here").fetchone() == ("one",)
        with conn.transaction(), conn.cursor("stream") as cursor:
            cursor.itersize = 1
            cursor.execute(
                "SELECT (llm_generate_stream('low', 1000000, seed => 1, model_name => 'm', eos_token => -1)).*"
            )
            assert [cursor.fetchone()[0] for _ in range(3)] == [1, 2, 3]
    for conn in reading:
        conn.close()


def test_haproxy_cuts_a_silent_statement_at_a_timeout_that_is_short(hosts, started, tmp_path):
    """What the page warns of, and why its timeouts are long."""
    started("haproxy", "-db", "-f", haproxy(tmp_path, hosts, "1s"))
    with pytest.raises(psycopg.OperationalError, match="closed the connection"), connect(tmp_path, 5433) as conn:
        conn.execute("SELECT pg_sleep(10)")


@pytest.mark.parametrize("reading", [LIST, ""])
def test_pgpool_reads_on_the_standby_and_writes_on_the_primary(hosts, started, tmp_path, reading):
    """`two` passes for a standby. With no list, pgpool looks up that llm_generate is VOLATILE, and so on the primary it stays."""
    file = tmp_path / "pgpool.conf"
    file.write_text(PGPOOL.format(**hosts, folder=tmp_path, reading=reading))
    (tmp_path / "pcp.conf").touch()
    started("pgpool", "-n", "-f", file, "-F", tmp_path / "pcp.conf")
    with connect(tmp_path, 5999) as conn:
        assert conn.execute("SELECT name FROM here").fetchone() == ("two",)
        assert conn.execute(WHERE).fetchone()[0] == ("two" if reading else "one")
        assert conn.execute("SELECT name, llm_perplexity('low lower', 'm') FROM here").fetchone()[0] == "two"
        assert conn.execute("SELECT name, llm_checkpoint_save('m') FROM here").fetchone()[0] == "one"
        conn.execute("INSERT INTO written VALUES ('pgpool')")
        with conn.transaction():
            conn.execute("INSERT INTO written VALUES ('pgpool')")
            assert conn.execute(WHERE).fetchone()[0] == "one"
        assert conn.execute(
            "/*NO LOAD BALANCE*/ SELECT name, count(*) FROM here, written GROUP BY name"
        ).fetchone() == ("one", 2)
        conn.execute("DELETE FROM written")


def test_pgpools_list_has_what_reads_and_nothing_that_writes(conn):
    """Every function of the topics that read, called in a transaction that may not write; and none that is no function."""
    patterns = [re.compile(f"^{pattern}$", re.IGNORECASE) for pattern in LIST.split(",")]
    known = {
        name
        for topic in (ROOT / "sql").glob("*.sql")
        for name in re.findall(r"^CREATE FUNCTION (llm_\w+)", topic.read_text(), re.MULTILINE)
        if not name.endswith(("_sent", "_declared"))
    }
    listed = {name for name in known if any(pattern.match(name) for pattern in patterns)}
    for topic in ("generation", "json", "scoring", "choosing", "rows"):
        assert (
            not set(re.findall(r"^CREATE FUNCTION (llm_\w+?)\(", (ROOT / f"sql/{topic}.sql").read_text(), re.MULTILINE))
            & known - listed
        )
    assert [pattern.pattern for pattern in patterns if not any(pattern.match(name) for name in known)] == []
    conn.execute("CREATE TABLE t AS SELECT 'low lower lowest the cat sat on the mat ' AS x")
    conn.execute("SELECT llm_train_bpe('SELECT x FROM t', 270, 'm'), llm_init_model('m', 2, 2, 16, 32)")
    conn.execute("SELECT llm_dataset_load('SELECT repeat(x, 50) FROM t', 'm', 16, val_fraction => 0.2)")
    conn.execute("SET default_transaction_read_only = on")
    for name in sorted(listed):
        conn.execute(f"SELECT {name}({EXAMPLES[name]})")
