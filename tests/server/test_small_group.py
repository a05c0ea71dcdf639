"""In a control group of 900 MB nothing is killed: what does not fit is refused, and statements take what they ask for.

A group is made where that is allowed, as for root; elsewhere the same statements run without one, and only what they take is
compared with what they ask for.
"""

import contextlib
import os
import re
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from tests.server.conftest import CLUSTER, _last_line

LIMIT = 900 << 20
GROUPS = Path("/sys/fs/cgroup")
MODELS = {  # millions of weights: n_layer, n_head, d_model, n_positions, vocab
    10: (4, 6, 384, 1024, 8000),
    40: (8, 8, 512, 1024, 25000),
    60: (8, 12, 768, 1024, 4000),
}
OUTCOMES = (None, "53200")  # of a statement in the group

# Remembers what is asked for.
ASKED = """
CREATE OR REPLACE FUNCTION public.asked() RETURNS bigint LANGUAGE plpython3u AS $$
import sys
resources, host = (
    next(m for name, m in sys.modules.items() if name.startswith('pg_gpt2_') and name.endswith(end))
    for end in ('.server.resources', '.host')
)
if not hasattr(resources, 'sizes'):
    resources.sizes, require = [], resources.require_memory
    def remember(wanted, purpose):
        resources.sizes.append(wanted)
        require(wanted, purpose)
    resources.require_memory = host.require_memory = remember
asked, resources.sizes[:] = sum(resources.sizes), []
return asked
$$
"""


class Group:
    """A control group of version 1 or 2."""

    def __init__(self, folder: Path, limit: str, kills: str) -> None:
        self.folder, self._limit, self._kills = folder, limit, kills

    def limit(self, size: int) -> None:
        """So many bytes for all its processes."""
        (self.folder / self._limit).write_text(str(size))

    def kills(self) -> int:
        """Processes that the kernel killed for want of memory."""
        return int(re.search(r"^oom_kill (\d+)", (self.folder / self._kills).read_text(), re.MULTILINE)[1])


@pytest.fixture(scope="module")
def group() -> Iterator[Group | None]:
    """A new control group; None where none can be made."""
    name = f"pg_gpt2_{os.getpid()}"
    for found in (
        Group(GROUPS / "memory" / name, "memory.limit_in_bytes", "memory.oom_control"),
        Group(GROUPS / name, "memory.max", "memory.events"),
    ):
        try:
            found.folder.mkdir()
        except OSError:
            continue
        try:
            found.limit(LIMIT)
            found.kills()
        except (OSError, TypeError):
            found.folder.rmdir()
            continue
        yield found
        for _ in range(50):  # until the kernel has let go of its processes
            with contextlib.suppress(OSError):
                found.folder.rmdir()
                return
            time.sleep(0.1)
        return
    yield None


@pytest.fixture(scope="module")
def server(group: Group | None, cluster_dsn: str) -> Iterator[str]:
    """DSN of a server of its own in the group; of the tests' where there is none."""
    if group is None:
        yield cluster_dsn
        return
    directory = f"{_last_line(CLUSTER, 'state')}/test.{os.getpid()}.group"
    enter = f'echo $$ > {group.folder}/cgroup.procs && exec "$@"'
    try:
        yield _last_line("bash", "-c", enter, "bash", CLUSTER, "start", directory)
    finally:
        subprocess.run([CLUSTER, "stop", directory], check=True)


def anonymous(conn: psycopg.Connection) -> int:
    """Bytes of its own that a session's process has."""
    status = Path(f"/proc/{conn.info.backend_pid}/status").read_text()
    return int(re.search(r"^RssAnon:\s+(\d+) kB", status, re.MULTILINE)[1]) << 10


def taken(conn: psycopg.Connection, statement: str) -> tuple[int, str | None]:
    """Most bytes that a statement had beside what the session has before it, and its SQLSTATE if it failed."""
    before = most = anonymous(conn)
    done = threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.wait(0.002):
            most = max(most, anonymous(conn))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        conn.execute(statement)
        sqlstate = None
    except psycopg.Error as error:
        sqlstate = error.sqlstate or "lost"
    finally:
        done.set()
        watcher.join()
    return most - before, sqlstate


def fresh(dsn: str) -> psycopg.Connection:
    """A session that has loaded the package and remembers what is asked for."""
    conn = psycopg.connect(dsn, autocommit=True)
    conn.execute("SET client_min_messages = error")
    conn.execute("SELECT count(*) FROM llm_doctor()")
    conn.execute(ASKED)
    conn.execute("SELECT public.asked()")
    return conn


def statements(millions: int, folder: Path) -> dict[str, str]:
    """What is done with a model of that size."""
    model, file = f"m{millions}", folder / f"m{millions}.safetensors"
    sizes = ", ".join(map(str, MODELS[millions]))
    return {
        "make": f"SELECT llm_init_model('{model}', {sizes})",
        "first token": f"SELECT llm_generate_tokens('{{1,2,3}}', 1, model_name => '{model}')",
        "copy": f"SELECT llm_copy_model('{model}', 'copy{millions}')",
        "drop": f"SELECT llm_drop_model('copy{millions}')",
        "save": f"SELECT llm_checkpoint_save('{model}')",
        "load": f"UPDATE llm_param SET step = 1 WHERE model = '{model}';"
        f" SELECT llm_checkpoint_load('{model}', max(id)) FROM llm_checkpoint WHERE model = '{model}'",
        "export": f"SELECT pg_llm_export_safetensors('{file}', '{model}')",
        "import": f"SELECT pg_llm_import_safetensors('{file}', 'i{millions}')",
        "drop the import": f"SELECT llm_drop_model('i{millions}')",
        "handles": f"SELECT llm_materialize_params('{model}')",
        "data": "INSERT INTO llm_dataset (model, split, tokens, target) SELECT"
        f" '{model}', 'train', array_fill(i, '{{32}}'), array_fill(i, '{{32}}') FROM generate_series(1, 4) AS i",
        "train": f"SELECT llm_train('{model}', 1, batch_size => 1)",
        "import bytes": f"SELECT llm_import_safetensors(pg_read_binary_file('{file}'), 'b{millions}')",
        "drop all": f"SELECT llm_drop_model('{model}')",
    }


ALWAYS = {
    "make",
    "first token",
    "copy",
    "save",
    "load",
    "export",
    "import",
}  # need little more than their largest tensor


@pytest.mark.parametrize("millions", [10, 60])
def test_in_a_small_group_statements_work_or_are_refused_and_nothing_is_killed(
    group: Group | None, server: str, millions: int
) -> None:
    folder = Path(str(psycopg.conninfo.conninfo_to_dict(server)["host"])).parent / "files"
    outcomes = {}
    for name, statement in statements(millions, folder).items():
        with fresh(server) as conn:  # as cold as can be
            outcomes[name] = taken(conn, statement)[1]
        assert group is None or group.kills() == 0, name
    assert {name: outcome for name, outcome in outcomes.items() if outcome not in OUTCOMES} == {}
    assert {name for name in ALWAYS if outcomes[name]} == set()
    if group is not None:
        assert outcomes["train"] == (None if millions < 40 else "53200")


SLACK = 40 << 20  # bytes: what PL/Python and the server take for the rest, and what the C library keeps of pieces


def measured(millions: int, folder: Path, size: int) -> dict[str, str]:
    """Statements to measure: those that ask for much."""
    all_of_it = statements(millions, folder)
    chosen = ("make", "first token", "export", "import", "save", "load", "handles", "data", "train")
    return {name: all_of_it[name] for name in chosen} | {
        "a value": f"SELECT llm_variable(data, ARRAY[{size // 4}], true) FROM big",
        "an op": f"SELECT llm_op('gelu', ARRAY[llm_variable(data, ARRAY[{size // 4}], true)]) FROM big",
        "a value again": f"SELECT length(llm_value(llm_variable(data, ARRAY[{size // 4}], true))) FROM big",
    }


def test_statements_take_what_they_ask_for(
    connect: Callable[..., psycopg.Connection], dsn: str, server_files: Path
) -> None:
    """Beside their arguments, which the server and PL/Python have before our code runs."""
    size = 60_000_000
    connect().execute(f"CREATE TABLE big AS SELECT decode(repeat('0000803f', {size // 4}), 'hex') AS data")
    found = {}
    for name, statement in measured(40, server_files, size).items():
        with fresh(dsn) as conn:
            peak, sqlstate = taken(conn, statement)
            asked = conn.execute("SELECT public.asked()").fetchone()[0]
        assert sqlstate is None, name
        found[name] = (peak, asked + 2 * size * (" big" in statement))
    too_much = {name: (peak >> 20, asked >> 20) for name, (peak, asked) in found.items() if peak > 1.15 * asked + SLACK}
    assert too_much == {}, "megabytes taken, and asked for"
    assert found["make"][0] < 200 << 20, "a model of 150 MB is made without having it in memory"
    assert found["first token"][0] < 200 << 20
