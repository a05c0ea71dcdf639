"""A fast shutdown under load, and what is there after it: in a cluster of its own, which is stopped and started again."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest

ROOT = Path(__file__).resolve().parents[2]
CLUSTER = ROOT / "docker" / "cluster.sh"
SOON = 2.0  # seconds; a session ends within 0.5, the rest is for a busy machine
GENERATE = "SELECT llm_generate_tokens('{1,2}', 8, 0, model_name => 'm', eos_token => -1)"
RUN = "CALL llm_train_run('m', 100000, batch_size => 2, log_every => 0, commit_every => 1, flush_seconds => 0)"
LOAD = {
    "generation": "SELECT llm_generate_tokens('{1}', 1000000, model_name => 'm', eos_token => -1)",
    "a batch": "SELECT * FROM llm_generate_batch(array_fill('low'::text, '{8}'), 100000, model_name => 'm', eos_token => -1)",
    "tokenizing": "SELECT llm_token_count(repeat('lower ', 30000000), 'm')",
    "training": "SELECT llm_train('n', 100000, log_every => 0)",
    "a training that waits": "SELECT llm_train_step('n')",
    "a run": RUN,
}


class Server:
    """A cluster that `docker/cluster.sh start` made, which can be stopped and started."""

    def __init__(self, directory: Path, dsn: str) -> None:
        self.data, self.dsn = directory / "data", dsn
        self.pg_ctl = next((directory / "pg").glob("**/bin/pg_ctl"))
        owner = self.data.stat()
        self._user = {"user": owner.st_uid, "group": owner.st_gid, "extra_groups": []} if os.getuid() == 0 else {}
        pid = (self.data / "postmaster.pid").read_text().split()[0]
        pairs = Path("/proc", pid, "environ").read_bytes().split(b"\0")
        self._environment = {
            name: value for name, _, value in (os.fsdecode(pair).partition("=") for pair in pairs if pair)
        }

    def control(self, *command: str) -> None:
        """pg_ctl, as the server's user."""
        subprocess.run(
            [self.pg_ctl, "-D", self.data, "-w", "-t", "60", *command],
            check=True, cwd="/", env=self._environment, stdout=subprocess.DEVNULL, **self._user,
        )  # fmt: skip

    def start(self) -> None:
        """Start again, with the log that it had."""
        self.control("-l", str(self.data.parent / "log"), "start")


@pytest.fixture(scope="module")
def server(cluster_dsn: str) -> Iterator[Server]:
    """A server with models `m` and `n`."""
    state = subprocess.run([CLUSTER, "state"], check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
    directory = Path(f"{state}/test.restart.{os.getpid()}")  # the last part says to whom it belongs
    try:
        started = subprocess.run([CLUSTER, "start", directory], check=True, stdout=subprocess.PIPE, text=True)
        found = Server(directory, started.stdout.splitlines()[-1])
        with psycopg.connect(found.dsn, autocommit=True) as conn:
            conn.execute("SELECT llm_train_bpe($$SELECT 'low lower lowest newer wider'$$, 265, 'm')")
            conn.execute("SELECT llm_init_model('m', 3, 4, 256, 64, seed => 1), llm_copy_model('m', 'n')")
            conn.execute(
                "SELECT llm_dataset_load($$SELECT repeat('low lower ', 500)$$, model, 32) FROM unnest('{m,n}'::text[]) AS model"
            )
        yield found
    finally:
        subprocess.run([CLUSTER, "stop", directory], check=True)


def test_a_fast_shutdown_ends_whatever_runs_and_loses_nothing_that_was_committed(server):
    with psycopg.connect(server.dsn, autocommit=True) as conn:
        digest = conn.execute(
            "SELECT md5(string_agg(md5(data), '' ORDER BY name)) FROM llm_param WHERE model = 'n'"
        ).fetchone()
    ends: dict[str, float] = {}

    def load(name: str) -> str:
        try:
            with psycopg.connect(server.dsn, autocommit=True, options="-c synchronous_commit=on") as conn:
                conn.execute(LOAD[name])
        except psycopg.OperationalError as error:
            ends[name] = time.monotonic()
            return str(error.sqlstate)
        return "success"

    with ThreadPoolExecutor(len(LOAD)) as pool:
        running: dict[str, Future] = {}
        for name in LOAD:
            running[name] = pool.submit(load, name)
            time.sleep(0.5)  # so that the one that is to wait is the second
        with psycopg.connect(server.dsn, autocommit=True) as conn:
            for _ in range(300):
                if conn.execute("SELECT count(*) > 1 FROM llm_train_log WHERE model = 'm'").fetchone()[0]:
                    break
                time.sleep(0.1)
        early = {name for name, future in running.items() if future.done()}
        asked = time.monotonic()
        server.control("-m", "fast", "stop")
        outcomes = {name: future.result(10) for name, future in running.items()}
    assert early <= {"tokenizing"}, f"all else takes long: {outcomes}"
    assert {outcomes[name] for name in outcomes if name not in early} <= {"57P01", "None"}, outcomes
    late = {name: end - asked for name, end in ends.items() if end - asked > SOON}
    assert late == {}
    server.start()
    with psycopg.connect(server.dsn, autocommit=True) as conn:
        assert (
            conn.execute(
                "SELECT md5(string_agg(md5(data), '' ORDER BY name)) FROM llm_param WHERE model = 'n'"
            ).fetchone()
            == digest
        )
        logged, last = conn.execute("SELECT count(*), max(step) FROM llm_train_log WHERE model = 'm'").fetchone()
        assert logged == last > 0
        assert conn.execute("SELECT DISTINCT step FROM llm_param WHERE model = 'm'").fetchall() == [(last,)]
        assert conn.execute("SELECT status FROM llm_run").fetchall() == [("running",)]
        conn.execute("SELECT set_config('statement_timeout', '3s', false)")
        with pytest.raises(psycopg.errors.QueryCanceled):
            conn.execute(RUN)  # goes on
        conn.execute("RESET statement_timeout")
        assert conn.execute("SELECT count(*), max(step) > %s FROM llm_run CROSS JOIN llm_train_log", [last]).fetchone()[
            1
        ]
        assert conn.execute("SELECT count(*) FROM llm_run").fetchone() == (1,)


def test_clients_that_reconnect_get_the_same_answers_over_restarts_under_load(server):
    def ask_until(end: float) -> set[str]:
        found = set()
        while time.monotonic() < end:
            try:
                with psycopg.connect(server.dsn, autocommit=True) as conn:
                    while time.monotonic() < end:
                        found.add(str(conn.execute(GENERATE.replace("'m'", "'n'")).fetchone()))
            except psycopg.OperationalError:
                time.sleep(0.02)
        return found

    with psycopg.connect(server.dsn, autocommit=True) as conn:
        expected = {str(conn.execute(GENERATE.replace("'m'", "'n'")).fetchone())}
    with ThreadPoolExecutor(4) as pool:
        asking = [pool.submit(ask_until, time.monotonic() + 6) for _ in range(4)]
        for mode in ("fast", "immediate"):
            time.sleep(1)
            server.control("-m", mode, "stop")
            left = list((server.data / "base" / "pgsql_tmp").glob("*.new"))
            server.start()
            assert len(left) <= 1
        assert [future.result(20) for future in asking] == [expected] * 4
    names = [path.name for path in (server.data / "base" / "pgsql_tmp").glob("pgsql_tmp_pg_gpt2_*")]
    assert len(names) == 1, "the files of before are gone, and one was made"


LOGITS = "SELECT md5(llm_logits('{1,2,3}', 'big'))"
ROW = "FROM llm_param WHERE model = 'big' AND name = 'ln_f.weight'"


def connected(dsn: str) -> psycopg.Connection:
    """A session, as soon as the server takes one."""
    for _ in range(300):
        with contextlib.suppress(psycopg.OperationalError):
            return psycopg.connect(dsn, autocommit=True)
        time.sleep(0.1)
    raise TimeoutError


def crash(dsn: str) -> None:
    """Kill a session with -9, which ends all, and wait until that is seen: until another has been ended by the server."""
    with (
        contextlib.suppress(psycopg.OperationalError),
        psycopg.connect(dsn, autocommit=True) as conn,
        psycopg.connect(dsn) as killed,
    ):
        os.kill(killed.info.backend_pid, signal.SIGKILL)
        while True:
            conn.execute("SELECT pg_sleep(0.1)")
    while True:
        with contextlib.suppress(psycopg.OperationalError), psycopg.connect(dsn):
            return


def changed(dsn: str, value: int) -> tuple[tuple, tuple, tuple]:
    """Change the model; the place and transaction of its row, what a reader answers, and what is true."""
    with connected(dsn) as conn, connected(dsn) as reader, psycopg.connect(dsn) as writing:
        conn.execute(
            f"UPDATE llm_param SET data = set_byte(data, 3, {value}) WHERE model = 'big' AND name = 'ln_f.weight'"
        )
        answer = reader.execute(LOGITS).fetchone()
        assert reader.execute("SELECT shared FROM llm_cache_status() WHERE model = 'big'").fetchone() == (True,)
        writing.execute("SELECT pg_current_xact_id()")  # who may have written maps no file
        return conn.execute(f"SELECT ctid, xmin, cmin {ROW}").fetchone(), answer, writing.execute(LOGITS).fetchone()


def test_a_change_that_a_crash_lost_leaves_no_file_though_its_transaction_and_place_come_again(server):
    """With synchronous_commit = off, where a crash does not remove temporary files, either."""
    with psycopg.connect(server.dsn, autocommit=True) as conn:
        conn.execute("SELECT llm_init_model('big', 2, 4, 256, 64, 4096, seed => 1)")
        for setting in ("remove_temp_files_after_crash = off", "wal_writer_delay = '10s'"):
            conn.execute(f"ALTER SYSTEM SET {setting}")
        conn.execute("SELECT pg_reload_conf()")
    for _ in range(5):
        with connected(server.dsn) as conn:
            conn.execute("CHECKPOINT")
        lost, *_ = changed(server.dsn, 64)
        crash(server.dsn)
        again, answer, truth = changed(server.dsn, 65)
        assert answer == truth
        crash(server.dsn)
        if lost == again:
            return
    raise AssertionError("no transaction came again")
