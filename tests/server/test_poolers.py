"""Behind a real pgbouncer, where a session is many clients': nobody meets another's tape, mode or prepared statement."""

import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
from pg_llm_client import PGLLMClient
from psycopg import conninfo, errors

CLIENTS, TRIES = 6, 15  # 90 in all, through two sessions
PORT = 6432
CONFIGURATION = """
[databases]
* = host={host} port={port} user={user}
[pgbouncer]
auth_type = any
listen_addr =
listen_port = {own_port}
unix_socket_dir = {folder}
pool_mode = {mode}
default_pool_size = 2
min_pool_size = 2
server_round_robin = 1
server_reset_query = DISCARD ALL
ignore_startup_parameters = extra_float_digits
logfile = {folder}/pgbouncer.log
pidfile = {folder}/pgbouncer.pid
"""
VARIABLE = "SELECT llm_variable(pg_llm_tensor(ARRAY[%s]), '{1}', true)"
ON_MY_TAPE = "SELECT (pg_llm_values(data))[1] FROM llm_tensor_rt WHERE tape_id = llm_tape_id() ORDER BY id"

Client = Callable[[psycopg.Connection, int], list[float]]


@pytest.fixture
def pooler(dsn: str, server_files: Path) -> Iterator[Callable[[str], str]]:
    """`pooler(mode)`: the DSN of this module's database through a pgbouncer in that mode."""
    program = shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin")
    assert program, "there is no pgbouncer: docker/provision.sh test installs it"
    parts = conninfo.conninfo_to_dict(dsn)
    folder = server_files / "pooler"
    folder.mkdir()
    folder.chmod(0o777)
    running: list[subprocess.Popen] = []

    def start(mode: str) -> str:
        file = folder / "pgbouncer.ini"
        file.write_text(CONFIGURATION.format(**parts, own_port=PORT, folder=folder, mode=mode))
        as_server = [] if os.getuid() else ["-u", os.environ.get("PG_GPT2_SERVER_USER", "postgres")]
        running.append(subprocess.Popen([program, "-q", *as_server, file]))
        address = conninfo.make_conninfo(dsn, host=folder, port=PORT)
        until = time.monotonic() + 30
        while time.monotonic() < until:
            try:
                psycopg.connect(address).close()
                return address
            except psycopg.OperationalError:
                time.sleep(0.05)
        raise AssertionError((folder / "pgbouncer.log").read_text())

    yield start
    for process in running:
        process.terminate()
        process.wait()
    shutil.rmtree(folder)


def all_clients(address: str, work: Client) -> list[tuple[int, list[float]]]:
    """(number, what was found under it) of every try of every client, at once, in autocommit."""
    found: list[tuple[int, list[float]]] = []
    problems: list[BaseException] = []

    def client(number: int) -> None:
        try:
            with psycopg.connect(address, autocommit=True, prepare_threshold=None) as conn:
                for n in range(TRIES):
                    found.append((100 * number + n, work(conn, 100 * number + n)))
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=client, args=[number]) for number in range(1, CLIENTS + 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not problems
    assert len(found) == CLIENTS * TRIES
    return found


def in_autocommit(conn: psycopg.Connection, number: int) -> list[float]:
    """What a client finds on its tape after it has made a variable, in a statement of its own."""
    conn.execute(VARIABLE, [number])
    return [value for (value,) in conn.execute(ON_MY_TAPE)]


def in_a_transaction(conn: psycopg.Connection, number: int) -> list[float]:
    """The same in a transaction."""
    with conn.transaction():
        return in_autocommit(conn, number)


@pytest.mark.parametrize("mode", ["transaction", "statement"])
def test_no_statement_finds_the_tape_of_another_client(pooler, mode):
    found = all_clients(pooler(mode), in_autocommit)
    assert [entry for entry in found if entry[1]] == []


def test_a_transaction_has_its_own_tape_behind_a_pooler(pooler):
    found = all_clients(pooler("transaction"), in_a_transaction)
    assert [entry for entry in found if entry[1] != [entry[0]]] == []


def test_a_session_that_was_asked_for_ends_with_its_client(pooler):
    """In session mode the pooler sends DISCARD ALL between clients; each finds all that it made, and nothing else."""

    def session(conn: psycopg.Connection, number: int) -> list[float]:
        conn.execute("SET pg_gpt2.tape = 'session'")
        return in_autocommit(conn, number)

    found = all_clients(pooler("session"), session)
    assert all(values == [100 * (number // 100) + n for n in range(number % 100 + 1)] for number, values in found)


@pytest.mark.parametrize("mode", ["transaction", "statement"])
def test_a_handle_of_another_owner_is_an_error_that_names_poolers(pooler, mode):
    with psycopg.connect(pooler(mode), autocommit=True, prepare_threshold=None) as conn:
        (handle,) = conn.execute(VARIABLE, [7]).fetchone()
        for call in ("llm_value(%s)", "llm_grad(%s)", "llm_backprop(%s)", "llm_op('gelu', ARRAY[%s]::bigint[])"):
            with pytest.raises(errors.UndefinedObject) as caught:
                conn.execute(f"SELECT {call}", [handle])
            assert "pooler" in caught.value.diag.message_hint
        nested = (
            "SELECT pg_llm_values(llm_value(llm_op('scale', ARRAY[llm_variable(%b, '{1}', true)], '{\"factor\": 2}')))"
        )
        assert conn.execute(nested, [b"\0\0\x80?"]).fetchone() == ([2.0],)


@pytest.mark.parametrize("mode", ["transaction", "session"])
def test_the_mode_does_not_reach_the_next_client(pooler, mode):
    address = pooler(mode)
    for _ in range(4):
        with psycopg.connect(address, autocommit=True, prepare_threshold=None) as conn:
            if mode == "session":
                conn.execute("SET pg_gpt2.tape = 'session'")
            with conn.transaction():
                assert conn.execute("SELECT flag FROM llm_autograd_mode").fetchone() == (False,)
                conn.execute("UPDATE llm_autograd_mode SET flag = true")
                assert conn.execute("SELECT flag FROM llm_autograd_mode").fetchone() == (True,)
            assert conn.execute("SELECT flag FROM llm_autograd_mode").fetchone() == (mode == "session",)


@pytest.fixture(scope="module")
def model(module_conn: psycopg.Connection) -> None:
    """A small model with a vocabulary and data."""
    module_conn.execute("SELECT llm_train_bpe($$SELECT 'low lower lowest newer wider'$$, 265, 'm')")
    module_conn.execute("SELECT llm_init_model('m', 1, 2, 16, 32)")
    module_conn.execute("SELECT llm_dataset_load($$SELECT repeat('low lower ', 50)$$, 'm', 8)")


@pytest.mark.parametrize("mode", ["transaction", "statement"])
def test_a_run_that_commits_works_behind_a_pooler(pooler, model, mode):
    with psycopg.connect(pooler(mode), autocommit=True, prepare_threshold=None) as conn:
        conn.execute("CALL llm_train_run('m', 2, commit_every => 1, log_every => 0)")


def test_the_client_works_behind_a_pooler(pooler, model):
    """Also over a connection that would prepare statements, which this pgbouncer loses."""
    with psycopg.connect(pooler("transaction"), autocommit=True) as pooled:
        for _ in range(8):  # psycopg prepares what it has run five times
            client = PGLLMClient(pooled, model="m")
            text = client.generate("low", max_tokens=3, seed=1)
            assert [event.text for event in client.stream("low", max_tokens=3, seed=1)][-1] == text
            assert client.perplexity("low lower") > 0
        source = "SELECT repeat('low lower ', 50)"
        assert client.train(2, source=source, block_size=8, log_every=0) < client.train(2, commit_every=1, log_every=0)


@pytest.mark.parametrize("mode", ["transaction", "statement", "session"])
def test_rows_of_a_query_stay_with_their_client_behind_a_pooler(pooler, model, mode):
    """The cursor that they are read with is of the server, and nobody else's: also where readers stop early."""

    def work(conn: psycopg.Connection, number: int) -> list[float]:
        source = f"SELECT i, 'low ' || i FROM generate_series({number}, {number + 39}) AS i"
        call = f"llm_perplexity_rows($${source}$$, 'm')"
        keys = [int(key) for (key,) in conn.execute(f"SELECT key FROM {call}")]
        first = conn.execute(f"SELECT ({call}).key LIMIT 1").fetchone()[0]
        return [keys == list(range(number, number + 40)), int(first) == number]

    address = pooler(mode)
    assert all(all(result) for _, result in all_clients(address, work))
    with psycopg.connect(address, autocommit=True, prepare_threshold=None) as conn:
        assert conn.execute("SELECT count(*) FROM pg_cursors WHERE name LIKE 'pg_gpt2 %'").fetchone() == (0,)
