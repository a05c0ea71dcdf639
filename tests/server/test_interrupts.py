"""Every statement ends soon after its timeout, and takes no more memory than it asked for, whatever its arguments.

Every parameter of every function in turn takes values as large as a caller can make them in passing, while the others have good
ones. What a function would need consistent large arguments for is in the tests of its topic.
"""

import time
from pathlib import Path

import psycopg
import pytest

from tests.server.test_hostile import EXAMPLES, PARAMETERS, arguments

TIMEOUT, LATE = 1.0, 0.5  # seconds
CAP = 300 << 20  # bytes, pg_gpt2.max_memory
COPIES = 6  # of an argument: the server's, toasted and not, PL/Python's, the result's
ATTEMPTS = 5  # at being in time, on a machine that does other things as well

PREPARE = """
    CREATE TABLE large (bytes bytea, letters text, words text, integers integer[], bigints bigint[], floats float8[],
                        texts text[], longs text[], object jsonb);
    ALTER TABLE large ALTER bytes SET STORAGE EXTERNAL, ALTER letters SET STORAGE EXTERNAL, ALTER words SET STORAGE EXTERNAL;
    INSERT INTO large SELECT
        decode(repeat('0000803f', 16000000), 'hex'), repeat('z', 30000000), repeat('low <|endoftext|> ', 1500000),
        array_fill(1, ARRAY[3000000]), array_fill(1::bigint, ARRAY[1000000]), array_fill(1.0::float8, ARRAY[3000000]),
        array_fill('low'::text, ARRAY[100000]), array_fill(repeat('z', 100000), ARRAY[100]),
        jsonb_build_object('ids', to_jsonb(array_fill(1, ARRAY[1000000])), 'shape', to_jsonb(array_fill(1, ARRAY[100000])));
"""
LARGE = {
    "bytea": ["bytes"],
    "text": ["letters", "words"],
    "integer[]": ["integers"],
    "bigint[]": ["bigints"],
    "double precision[]": ["floats"],
    "text[]": ["texts", "longs"],
    "jsonb": ["object"],
    "integer": ["2147483647", "100000"],
    "bigint": ["9223372036854775807", "100000"],
}


def value(name: str) -> str:
    return name if name.isdigit() else f"(SELECT {name} FROM public.large)"


@pytest.fixture(autouse=True, scope="module")
def models(module_conn):
    module_conn.execute("CREATE TABLE t AS SELECT 'low lower lowest the cat sat on the mat ' AS x")
    module_conn.execute("SELECT llm_train_bpe('SELECT x FROM t', 270, 'm')")
    module_conn.execute("SELECT llm_init_model('m', 2, 2, 16, 32)")
    module_conn.execute("SELECT llm_copy_model('m', name) FROM unnest('{x,y}'::text[]) AS name")
    module_conn.execute("SELECT llm_share_param('y', 'wte', 0, 'x')")
    module_conn.execute("SELECT llm_dataset_load('SELECT repeat(x, 50) FROM t', 'm', 16, val_fraction => 0.2)")
    module_conn.execute("SELECT llm_checkpoint_save('m')")
    module_conn.execute("SELECT llm_train('m', 2, batch_size => 2, log_every => 0)")
    module_conn.execute(PREPARE)


def status(pid: int, field: str) -> int:
    """Bytes that the kernel reports of a process."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(f"{field}:"))


def waited(pid: int) -> float:
    """Seconds that a process was ready to run and had no core, because the machine does other things as well."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9


def measured(conn: psycopg.Connection, statement: str) -> tuple[float, int]:
    """Seconds that a statement took under the timeout, but for those without a core, and by how many bytes its session's memory
    grew at most."""
    pid = conn.info.backend_pid
    Path(f"/proc/{pid}/clear_refs").write_text("5")
    before = status(pid, "RssAnon")
    started = time.monotonic() - waited(pid)
    try:
        conn.execute(statement)
    except psycopg.Error as error:
        if error.sqlstate in (None, "XX000"):  # the session is gone, or a defect
            raise
    return time.monotonic() - waited(pid) - started, status(pid, "VmHWM") - status(pid, "RssShmem") - before


@pytest.mark.parametrize("function", EXAMPLES)
def test_whatever_its_arguments_it_ends_in_time_and_within_its_memory(connect, module_conn, function):
    names, types, is_procedure = module_conn.execute(PARAMETERS, [function]).fetchone()
    good = arguments(EXAMPLES[function], names)
    conn = connect()
    conn.execute("SELECT llm_generate('low', 1, model_name => 'm')")  # loads the package
    conn.execute(f"SET statement_timeout = '{TIMEOUT}s'; SET pg_gpt2.max_memory = '{CAP}'")
    (size,) = conn.execute("SELECT pg_column_size(bytes) FROM large").fetchone()
    late, large = [], []
    for name, kind in zip(names, types):
        for big in LARGE.get(kind, ()):
            given = ", ".join(f"{key} => {shown}" for key, shown in {**good, name: value(big)}.items())
            statement = f"CALL {function}({given})" if is_procedure else f"BEGIN; SELECT {function}({given}); ROLLBACK"
            for _ in range(ATTEMPTS):
                seconds, grown = measured(conn, statement)
                conn.rollback()  # of what an error left open
                if seconds <= TIMEOUT + LATE:
                    break
            else:
                late.append((name, big, seconds))
            if grown > CAP + COPIES * size:
                large.append((name, big, grown >> 20))
    assert (late, large) == ([], [])
