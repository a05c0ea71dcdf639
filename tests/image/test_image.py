"""The image of docker/Dockerfile, started as docker/compose.yaml starts it, and seen by a client.

`make test-image`: tests/image/run.sh builds the image and runs this. buildah runs a container in a chroot, among the
processes and in the network of this test.
"""

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
assert "PG_GPT2_BUILDAH" in os.environ, "tests/image/run.sh runs this: make test-image"
BUILDAH = os.environ["PG_GPT2_BUILDAH"].split()
STATE = Path(os.environ["PG_GPT2_IMAGE_STATE"])
COMPOSE = yaml.safe_load((ROOT / "docker/compose.yaml").read_text())["services"]["pg_gpt2"]
PASSWORD = "a secret"
FROM_OUTSIDE = f"host=127.0.0.2 port={COMPOSE['ports'][0].split(':')[-1]} user=postgres dbname=postgres"


def buildah(*arguments: str) -> str:
    return subprocess.run([*BUILDAH, *arguments], check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


class Container:
    """A new one of the image, with the volume of compose.yaml in a directory that outlives it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.config = json.loads(buildah("inspect", "--type", "image", "localhost/pg_gpt2"))["OCIv1"]["config"]
        self.volume = STATE / "volume"
        self.volume.mkdir(exist_ok=True)
        self.log = STATE / f"{name}.log"
        buildah("from", "--pull-never", "--name", name, "localhost/pg_gpt2")
        command = [*self.config["Entrypoint"], *self.config["Cmd"]]
        mount = f"{self.volume}:{COMPOSE['volumes'][0].partition(':')[2]}"
        run = [
            "run",
            "--isolation",
            "chroot",
            "--env",
            f"POSTGRES_PASSWORD={PASSWORD}",
            "--volume",
            mount,
            name,
            "--",
            *command,
        ]
        self.process = subprocess.Popen([*BUILDAH, *run], stdout=self.log.open("w"), stderr=subprocess.STDOUT)

    def exec(self, *command: str) -> subprocess.CompletedProcess[str]:
        """As `docker exec`."""
        run = [*BUILDAH, "run", "--isolation", "chroot", self.name, "--", *command]
        return subprocess.run(run, capture_output=True, text=True)

    def is_healthy(self) -> bool:
        assert COMPOSE["healthcheck"]["test"][0] == "CMD"
        return self.exec(*COMPOSE["healthcheck"]["test"][1:]).returncode == 0

    def wait(self) -> None:
        """As `docker compose up --wait`, with time for a machine that does other work."""
        end = time.monotonic() + 300
        while not self.is_healthy():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < end, self.log.read_text()
            time.sleep(0.5)

    def stop(self) -> int:
        """As `docker stop`: the image's signal to the server; the exit status."""
        server = int((self.volume / "postmaster.pid").read_text().split()[0])
        os.kill(server, signal.Signals[self.config["StopSignal"]])
        return self.process.wait(60)

    def remove(self) -> None:
        if self.process.poll() is None:
            self.process.kill()  # what it started ends with the namespace of run.sh
            self.process.wait()
        buildah("rm", self.name)


@pytest.fixture(scope="module", autouse=True)
def _machine() -> None:
    """What an engine gives a container: the memory that compose.yaml asks for, and clients that come from another address."""
    for command in (
        ["mount", "-t", "tmpfs", "-o", f"size={COMPOSE['shm_size'].removesuffix('b')}", "tmpfs", "/dev/shm"],
        ["ip", "link", "set", "lo", "up"],
        ["ip", "address", "add", "127.0.0.2/32", "dev", "lo"],
    ):
        subprocess.run(command, check=True)


@pytest.fixture(scope="module")
def started() -> Iterator[Container]:
    """After its first start."""
    container = Container("first")
    try:
        container.wait()
        yield container
    finally:
        container.remove()


@pytest.fixture
def conn(started: Container) -> Iterator[psycopg.Connection]:
    with psycopg.connect(FROM_OUTSIDE, password=PASSWORD, autocommit=True) as connection:
        yield connection


def test_the_extension_is_there(conn):
    version = re.search(r"default_version *= *'(.*)'", (ROOT / "pg_gpt2.control").read_text())
    assert conn.execute("SELECT extversion FROM pg_extension WHERE extname = 'pg_gpt2'").fetchone() == version.groups()


def test_the_models_are_loaded_and_the_first_is_the_default(started, conn):
    shipped = sorted(path.parent.name for path in (ROOT / "loaders/shipped").glob("*/config.json"))
    assert [row[0] for row in conn.execute("SELECT model FROM llm_models WHERE NOT preset ORDER BY 1")] == shipped
    assert conn.execute("SHOW pg_gpt2.model").fetchone() == (shipped[0],)
    assert [name for name in shipped if f"loaded model {name}\n" in started.log.read_text()] == shipped


def test_it_generates_text(conn):
    first, again = (
        conn.execute("SELECT llm_generate('A transaction', 20, temperature => 0)").fetchone()[0] for _ in "12"
    )
    assert first == again
    assert len(first.split()) > 5


def test_the_command_of_the_installation_page_works(started):
    page = (ROOT / "docs/install.md").read_text()
    statement = re.search(r'^docker exec -it pg_gpt2 psql -U postgres -c "(.*)"$', page, re.MULTILINE)[1]
    done = started.exec("psql", "-XAtU", "postgres", "-c", statement)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_the_doctor_finds_nothing_to_mend(conn):
    findings = conn.execute("SELECT * FROM llm_doctor()").fetchall()
    assert len(findings) > 10
    assert [row for row in findings if row[2] != "ok"] == []


@pytest.mark.parametrize("password", [None, "another"])
def test_a_client_needs_the_password(started, password):
    with pytest.raises(psycopg.OperationalError, match="password"):
        psycopg.connect(FROM_OUTSIDE, password=password)


def test_a_second_start_keeps_the_data(started, conn):
    conn.execute("SELECT llm_copy_model('postgresql-docs', 'mine')")
    expected = conn.execute("SELECT llm_generate('A table', 8, temperature => 0, model_name => 'mine')").fetchone()
    conn.close()
    assert started.stop() == 0
    assert not started.is_healthy()
    container = Container("second")
    try:
        container.wait()
        assert "loaded model" not in container.log.read_text()
        with psycopg.connect(FROM_OUTSIDE, password=PASSWORD) as connection:
            again = connection.execute(
                "SELECT llm_generate('A table', 8, temperature => 0, model_name => 'mine')"
            ).fetchone()
        assert again == expected
        assert container.stop() == 0
    finally:
        container.remove()
