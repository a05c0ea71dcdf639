"""docker/cluster.sh: what happens to a cluster that is there already."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from tests.server.conftest import CLUSTER


class Checkout:
    """A cluster as `make up` has it, in a place of its own."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.environment = os.environ | {"PG_GPT2_STATE": str(place)}

    def command(self, name: str) -> tuple[str, str]:
        """The last line of stdout, and stderr."""
        done = subprocess.run(
            [CLUSTER, name], env=self.environment, capture_output=True, text=True, check=True, timeout=300
        )
        return (done.stdout.splitlines() or [""])[-1], done.stderr


@pytest.fixture
def checkout(server_files: Path) -> Iterator[Checkout]:
    """The server's NumPy need not be installed once more."""
    made = Checkout(server_files.parent / "up")
    made.place.mkdir()
    for environment in server_files.parent.parent.glob("python3.*"):
        (made.place / environment.name).symlink_to(environment)
    try:
        yield made
    finally:
        made.command("remove")


def started(dsn: str) -> object:
    with psycopg.connect(dsn) as conn:
        conn.execute("SELECT llm_token_count('a') FROM pg_sleep(0) WHERE false")
        return conn.execute("SELECT pg_postmaster_start_time()").fetchone()


def test_a_cluster_is_restarted_when_postgresql_was_upgraded(checkout):
    dsn, _ = checkout.command("up")
    first = started(dsn)
    again, said = checkout.command("up")
    assert (again, started(again)) == (dsn, first)
    assert "upgraded" not in said
    (copy,) = (checkout.place / "main" / "pg").rglob("bin/postgres")
    older = copy.read_bytes() + b"\0"
    copy.unlink()  # it runs: it cannot be written to
    copy.write_bytes(older)
    copy.chmod(0o755)
    again, said = checkout.command("up")
    assert again == dsn
    assert "PostgreSQL was upgraded since the cluster was started: restarting it" in said
    assert copy.read_bytes() == older[:-1]
    assert started(dsn) > first
    _, said = checkout.command("up")
    assert "upgraded" not in said


def test_a_run_removes_what_a_killed_run_of_the_same_process_id_left(checkout):
    """In a namespace of its own, as docker/elsewhere.sh makes one, each run has the id that the one before had."""
    script = 'mkdir -p "$PG_GPT2_STATE/test.$$/pg" "$PG_GPT2_STATE/test.$$/data"; exec "$0" run sh -c "echo ran"'
    done = subprocess.run(
        ["bash", "-c", script, CLUSTER], env=checkout.environment, capture_output=True, text=True, timeout=300
    )
    assert (done.returncode, done.stdout) == (0, "ran\n"), done.stderr
    assert "whose owner is gone" in done.stderr
