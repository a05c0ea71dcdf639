"""python -m tests.fuzz_sql: odd arguments for every function, on tampered rows, in two sessions at a time.

A failure is a SQLSTATE of class XX, a lost connection, a statement that outlives its timeout by half a second, or memory above a
cap. It is printed with its statements, and --case runs it again; the exit status is then 1.
"""

import argparse
import os
import random
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import psycopg
from psycopg import conninfo

from .cases import PREPARE, Case, Catalogue

TIMEOUT = 1.0  # seconds
HANGS = 10  # times that long, and a statement hangs, whether it works or not
MAX_MEMORY = "300MB"
CALLS_OF_A_SESSION = 300  # then another: its peak of memory is its own


class Fuzzer:
    """The cases of a seed against a database, and what came of them."""

    def __init__(self, dsn: str, catalogue: Catalogue, chosen: argparse.Namespace) -> None:
        self.dsn, self.catalogue, self.chosen = dsn, catalogue, chosen
        self.outcomes: Counter[str] = Counter()
        self.failures: dict[str, str] = {}
        self.longest = 0.0
        self.most = 0
        self._lock = threading.Lock()

    def session(self, number: int, end: float) -> None:
        """Cases of one of the sessions, until the time is over or there were enough."""
        conn, peak, done = None, 0, 0
        while time.monotonic() < end and done < self.chosen.calls / self.chosen.sessions:
            if conn is None or conn.closed or done % CALLS_OF_A_SESSION == 0:
                conn, peak = self._connect(conn)
            case = f"{self.chosen.seed}/{number}/{done}"
            self.run(conn, case, peak)
            done += 1

    def _connect(self, old: psycopg.Connection | None) -> tuple[psycopg.Connection, int]:
        """A new session, and its memory above which a case must not go; a server that restarts is waited for."""
        if old is not None:
            old.close()
        for _ in range(60):
            try:
                conn = psycopg.connect(self.dsn, autocommit=True)
                break
            except psycopg.OperationalError:
                time.sleep(0.5)
        else:
            raise SystemExit("the server does not come back")
        conn.execute(
            f"SET statement_timeout = '{TIMEOUT}s'; SET lock_timeout = '{TIMEOUT / 2}s'; SET client_min_messages = error"
        )
        conn.execute(f"SET pg_gpt2.max_memory = '{MAX_MEMORY}'; SET idle_in_transaction_session_timeout = '60s'")
        return conn, _peak(conn) + (self.chosen.megabytes << 20)

    def run(self, conn: psycopg.Connection, name: str, peak: int = 1 << 60) -> None:
        """One case; nothing of it stays, unless it commits."""
        case = self.catalogue.case(name)
        try:
            if not case.in_transaction:
                self._execute(conn, name, case, case.statements[-1])
            else:
                with conn.transaction(force_rollback=True):
                    for statement in case.statements:
                        with conn.transaction():
                            self._execute(conn, name, case, statement)
        except psycopg.Error:
            if conn.closed:
                self._fail(name, case, "the connection was lost")
        if not conn.closed:
            found = _peak(conn)
            self.most = max(self.most, found)
            if found > peak:
                self._fail(name, case, f"{found >> 20} MB of memory")
                conn.close()

    def _execute(self, conn: psycopg.Connection, name: str, case: Case, statement: str) -> None:
        """A statement, timed; its error is counted, and is none for those after it."""
        started, worked = time.monotonic(), _processor(conn)
        outcome = "00000"
        try:
            conn.execute(statement)
        except psycopg.Error as error:
            outcome = error.sqlstate or "no SQLSTATE"
            if outcome.startswith("XX"):
                self._fail(name, case, f"{outcome} {error.diag.message_primary}\n{error.diag.message_detail or ''}")
            if conn.closed or not case.in_transaction:
                raise
            raise psycopg.Rollback from None
        finally:
            took = time.monotonic() - started
            worked = _processor(conn) - worked
            with self._lock:
                self.outcomes[outcome] += 1
                self.longest = max(self.longest, took)
            latest = TIMEOUT + self.chosen.late
            if took > latest and (worked > latest or took > HANGS * latest):
                self._fail(name, case, f"{took:.2f} s, {worked:.2f} of the processor, with a timeout of {TIMEOUT} s")

    def _fail(self, name: str, case: Case, what: str) -> None:
        with self._lock:
            if what not in self.failures:
                print(f"--- case {name}: {what}\n" + ";\n".join(s[:600] for s in case.statements) + ";", flush=True)
            self.failures[what] = name


def _processor(conn: psycopg.Connection) -> float:
    """Seconds that a session's process has worked. On a machine that has more to do, a statement takes longer than it works, and
    so does a client that is sent megabytes."""
    if conn.closed:
        return 0.0
    try:
        fields = Path(f"/proc/{conn.info.backend_pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _peak(conn: psycopg.Connection) -> int:
    """Most bytes of memory that a session's process has had at once."""
    try:
        status = Path(f"/proc/{conn.info.backend_pid}/status").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("VmHWM")), 0)


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz_sql", description=__doc__)
    parser.add_argument("--dsn", default=os.environ.get("PG_GPT2_TEST_DSN"), help="of a throw-away cluster")
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--calls", type=float, default=float("inf"), help="at most so many cases, in all sessions")
    parser.add_argument("--sessions", type=int, default=2)
    parser.add_argument("--seed", default=str(random.randrange(1 << 32)))
    parser.add_argument("--late", type=float, default=0.5, help="seconds after a timeout (default 0.5)")
    parser.add_argument("--megabytes", type=int, default=800, help="by which a session's memory may grow (default 800)")
    parser.add_argument("--case", action="append", help="run this one alone, as a failure names it")
    chosen = parser.parse_args()
    print(f"seed {chosen.seed}", flush=True)
    with psycopg.connect(chosen.dsn, autocommit=True) as conn:
        name = f"fuzz_sql_{os.getpid()}"
        conn.execute(f"CREATE DATABASE {name} TEMPLATE template_pg_gpt2")
    dsn = conninfo.make_conninfo(chosen.dsn, dbname=name)
    folder = str(Path(str(conninfo.conninfo_to_dict(dsn)["host"])).parent / "files")
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute(PREPARE.replace("{folder}", folder))
        fuzzer = Fuzzer(dsn, Catalogue(conn, folder), chosen)
    began = time.monotonic()
    if chosen.case:
        for case in chosen.case:
            conn, peak = fuzzer._connect(None)
            print(*fuzzer.catalogue.case(case).statements, sep=";\n")
            fuzzer.run(conn, case, peak)
    else:
        threads = [
            threading.Thread(target=fuzzer.session, args=(n, began + chosen.seconds)) for n in range(chosen.sessions)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    outcomes = ", ".join(f"{count} {state}" for state, count in fuzzer.outcomes.most_common())
    print(f"{fuzzer.outcomes.total()} statements in {time.monotonic() - began:.0f} s: {outcomes}")
    print(
        f"longest {fuzzer.longest:.2f} s, most memory {fuzzer.most >> 20} MB, {len(fuzzer.failures)} kinds of failure"
    )
    sys.exit(bool(fuzzer.failures))


if __name__ == "__main__":
    main()
