"""Whatever statement fails, whenever a process dies, wherever room ends: what is stored is whole, and training goes on from it.

The hooks are the tests' own: a stand-in for plpy in one session, signals, and a limit on the size of files.
"""

import contextlib
import hashlib
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from itertools import count

import psycopg
import pytest
from pg_gpt2.core.config import GPT2Config
from psycopg import conninfo, errors

KILLS = int(os.environ.get("PG_GPT2_KILLS", "50"))
WAL_SEGMENT = 16 << 20  # a file of WAL must fit under a limit of sizes, or the server stops
CONFIG = GPT2Config(2, 2, 16, 16, 50)
OPTIONS = "batch_size => 2, lr_max => 0.01, log_every => 0, audit => 'full'"
RUN = f"CALL llm_train_run(%s, 6, {OPTIONS}, commit_every => 2, flush_seconds => 0)"
STATE = """
    SELECT md5(string_agg(concat_ws(' ', name, token_id, md5(data), md5(m), md5(v), step), ',' ORDER BY name, token_id))
    FROM llm_param WHERE model = %s
"""
LOG = "SELECT step, lr, loss, grad_norm, tokens, batch, batch_digest FROM llm_train_log WHERE model = %s ORDER BY step"
TABLES = (
    *("llm_model_config", "llm_param", "llm_run", "llm_train_log", "llm_tape", "llm_tensor_rt", "llm_tensor_map"),
    *("llm_checkpoint", "llm_checkpoint_blob", "llm_checkpoint_part", "llm_checkpoint_restore", "llm_dataset"),
)

# Makes the n-th statement of this session fail as a statement fails: by an error of the server. Looks for a cancel, whose
# number depends on time, do not count. Returns how many there were since the last call.
FAIL_AT = """
CREATE FUNCTION fail_at(n integer) RETURNS integer LANGUAGE plpython3u AS $$
import sys
db = next(module for name, module in sys.modules.items() if name.endswith('.db') and hasattr(module, 'sources_digest'))
class Failing:
    def __init__(self, n):
        self.n, self.count = n, 0
    def __getattr__(self, name):
        return getattr(plpy, name)
    def _next(self):
        self.count += 1
        if self.count == self.n:
            plpy.execute('SELECT 1 / 0')
    def execute(self, plan, *arguments):
        if plan is not db._plans.get(('SELECT 1', ())):
            self._next()
        return plpy.execute(plan, *arguments)
    def cursor(self, *arguments):
        self._next()
        return plpy.cursor(*arguments)
    def commit(self):
        self._next()
        plpy.commit()
before = getattr(db.plpy, 'count', 0)
db.plpy = Failing(n)
return before
$$
"""

# The server ignores the signal that comes with it, so that a write fails with an error.
LIMIT_FILES = """
CREATE FUNCTION limit_files(size bigint) RETURNS void LANGUAGE plpython3u AS $$
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
$$
"""


def one(conn: psycopg.Connection, query: str, *values: object) -> object:
    return conn.execute(query, values).fetchone()[0]


def prepare(conn: psycopg.Connection, config: GPT2Config = CONFIG) -> None:
    """A model `start`, and data for models of any name."""
    conn.execute(
        "SELECT llm_init_model('start', %s, %s, %s, %s, %s, seed => 3)",
        [config.n_layer, config.n_head, config.d_model, config.n_positions, config.vocab],
    )
    conn.execute("""
        INSERT INTO llm_dataset (tokens, target)
        SELECT ARRAY[n, 1, 2, 3, 4], ARRAY[1, 2, 3, 4, 5] FROM generate_series(6, 20) n
    """)


def check_invariants(conn: psycopg.Connection, model: str) -> int:
    """Weights, step counts and log of `model` belong together; the number of steps."""
    with conn.transaction():
        conn.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        rows = conn.execute(
            "SELECT name, data, step FROM llm_param WHERE model = %s ORDER BY name, token_id", [model]
        ).fetchall()
        logged = conn.execute(
            "SELECT step, weights_digest FROM llm_train_log WHERE model = %s ORDER BY step", [model]
        ).fetchall()
    tensors: dict[str, bytes] = {}
    for name, data, _ in rows:
        tensors[name] = tensors.get(name, b"") + data
    assert [step for step, _ in logged] == list(range(1, len(logged) + 1))
    assert {step for _, _, step in rows} == {len(logged)}
    if logged:
        weights = b"".join(tensors[name] for name in CONFIG.param_shapes())
        assert logged[-1][1] == hashlib.sha256(weights).hexdigest()
    return len(logged)


# --- a statement fails ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def failing(module_conn: psycopg.Connection) -> psycopg.Connection:
    """A session that has `fail_at`, with what the tests begin with."""
    module_conn.execute(FAIL_AT)
    prepare(module_conn)
    module_conn.execute("SELECT llm_copy_model('start', 'whole')")
    module_conn.execute(RUN, ["whole"])
    return module_conn


def fails(conn: psycopg.Connection, n: int, statement: str, *values: object) -> bool:
    """Make the n-th statement within `statement` fail; whether there was one."""
    conn.execute("SELECT fail_at(%s)", [n])
    failed = False
    try:
        conn.execute(statement, values or None)
    except errors.DivisionByZero:
        failed = True
    assert failed == (one(conn, "SELECT fail_at(0)") >= n), "a failure was swallowed"
    return failed


def contents(conn: psycopg.Connection) -> list[object]:
    """A digest of every row of every table."""
    return [
        one(conn, f"SELECT md5(coalesce(string_agg(md5(t::text), '' ORDER BY md5(t::text)), '')) FROM {t} AS t")
        for t in TABLES
    ]


@pytest.mark.parametrize(
    "statement",
    [
        f"SELECT llm_train('m', 3, {OPTIONS})",
        "SELECT llm_train_step('m', audit => 'full')",
        "SELECT llm_checkpoint_save('m')",
        "SELECT llm_checkpoint_load('m', (SELECT max(id) FROM llm_checkpoint))",
        "SELECT llm_checkpoint_drop((SELECT max(id) FROM llm_checkpoint))",
        "SELECT llm_copy_model('m', 'copy', (SELECT max(id) FROM llm_checkpoint))",
        "SELECT llm_drop_model('m')",
    ],
)
def test_whichever_statement_fails_nothing_has_changed(failing, statement):
    conn = failing
    conn.execute("SELECT llm_copy_model('start', 'm')")
    conn.execute("SELECT llm_checkpoint_save('m')")
    conn.execute("SELECT llm_train_step('m', audit => 'full')")
    before = contents(conn)
    n = 1
    while fails(conn, n, statement):
        assert contents(conn) == before
        n += 1
    assert n > 3
    assert contents(conn) != before
    conn.execute("SELECT llm_drop_model(model) FROM llm_models WHERE model IN ('m', 'copy')")


def test_whichever_statement_of_a_committing_run_fails_it_goes_on_from_the_last_commit(failing):
    conn = failing
    wanted = one(conn, STATE, "whole"), conn.execute(LOG, ["whole"]).fetchall()
    reached = set()
    for n in count(1):
        conn.execute("SELECT llm_copy_model('start', 'm')")
        failed = fails(conn, n, RUN, "m")
        steps = check_invariants(conn, "m")
        assert steps % 2 == 0
        reached.add(steps)
        if steps < 6:
            conn.execute(RUN, ["m"])
        assert (one(conn, STATE, "m"), conn.execute(LOG, ["m"]).fetchall()) == wanted
        conn.execute("SELECT llm_drop_model('m')")
        if not failed:
            break
    assert reached == {0, 2, 4, 6}


# --- a process dies ---------------------------------------------------------------------------------------------------------


def test_kill_9_at_random_moments_loses_only_the_steps_since_the_last_commit(new_database):
    """The whole server restarts after each, so it comes with a database of its own. PG_GPT2_KILLS says how many."""
    call = f"CALL llm_train_run(%s, 200, {OPTIONS}, commit_every => 2, flush_seconds => 0)"
    moment = random.Random(KILLS)
    # Throw-away clusters do not wait for the disk, and then a commit may be lost.
    dsn = conninfo.make_conninfo(new_database(), options="-c synchronous_commit=on")
    conn = psycopg.connect(dsn, autocommit=True)
    prepare(conn)
    conn.execute("SELECT llm_copy_model('start', 'whole')")
    conn.execute(call, ["whole"])
    wanted = one(conn, STATE, "whole"), conn.execute(LOG, ["whole"]).fetchall()
    conn.execute("SELECT llm_copy_model('start', 'm')")
    for _ in range(KILLS):
        worker = psycopg.connect(dsn, autocommit=True)
        thread = threading.Thread(target=call_and_ignore, args=(worker, call))
        thread.start()
        time.sleep(moment.uniform(0.02, 0.4))
        steps = check_invariants(conn, "m")
        os.kill(worker.info.backend_pid, signal.SIGKILL)
        thread.join()
        worker.close()
        wait_for_end(conn)
        conn = reconnect(dsn)
        assert check_invariants(conn, "m") >= steps
        if one(conn, "SELECT count(*) FROM llm_run WHERE model = 'm' AND status = 'finished'"):
            assert (one(conn, STATE, "m"), conn.execute(LOG, ["m"]).fetchall()) == wanted
            conn.execute("SELECT llm_drop_model('m')")
            conn.execute("SELECT llm_copy_model('start', 'm')")
    conn.execute(call, ["m"])
    assert (one(conn, STATE, "m"), conn.execute(LOG, ["m"]).fetchall()) == wanted
    conn.close()


def call_and_ignore(conn: psycopg.Connection, call: str) -> None:
    """How it ends shows in the tables."""
    with contextlib.suppress(psycopg.Error):
        conn.execute(call, ["m"])


def wait_for_end(conn: psycopg.Connection) -> None:
    """Until the server, which ends every session when one was killed, has ended this one."""
    with contextlib.suppress(psycopg.OperationalError):
        for _ in range(1000):
            conn.execute("SELECT pg_sleep(0.01)")
        raise TimeoutError("the server did not notice")
    conn.close()


def reconnect(dsn: str) -> psycopg.Connection:
    """A session as soon as the server is back."""
    for _ in range(1000):
        try:
            return psycopg.connect(dsn, autocommit=True)
        except psycopg.OperationalError:
            time.sleep(0.02)
    raise TimeoutError("the server did not come back")


# --- there is no room -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def large(new_database: Callable[..., str]) -> Iterator[psycopg.Connection]:
    """A model `m` whose tables and files need more than the largest file that `no_room` allows."""
    with psycopg.connect(new_database(), autocommit=True) as conn:
        conn.execute(LIMIT_FILES)
        prepare(conn, GPT2Config(2, 4, 256, 16, 5000))
        conn.execute("SELECT llm_copy_model('start', 'm')")
        conn.execute(f"SELECT llm_train('m', 1, {OPTIONS})")
        yield conn


@contextlib.contextmanager
def no_room(conn: psycopg.Connection) -> Iterator[None]:
    """No file that the session writes can be larger than a segment of WAL."""
    conn.execute("SELECT limit_files(%s)", [WAL_SEGMENT])
    try:
        yield
    finally:
        conn.execute("SELECT limit_files(-1)")


@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
def test_without_room_for_its_file_there_is_no_checkpoint(large, server_files, suffix):
    folder = server_files / f"no_room{suffix}"
    folder.mkdir()
    folder.chmod(0o777)
    path = folder / f"checkpoint{suffix}"
    before = contents(large)
    with no_room(large), pytest.raises(errors.DiskFull) as caught:
        large.execute("SELECT llm_checkpoint_save('m', '', %s)", [str(path)])
    assert str(path) in str(caught.value)
    assert "room" in caught.value.diag.message_hint
    assert list(folder.iterdir()) == []
    assert contents(large) == before
    saved = one(large, "SELECT llm_checkpoint_save('m', '', %s)", str(path))
    assert one(large, "SELECT llm_checkpoint_load('m', %s)", saved) == 1
    large.execute("SELECT llm_checkpoint_drop(%s)", [saved])
    path.unlink()
    folder.rmdir()


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT llm_checkpoint_save('m')",
        "SELECT llm_copy_model('m', 'copy')",
        f"SELECT llm_train('m', 3, {OPTIONS})",
        f"CALL llm_train_run('m', 3, {OPTIONS})",
    ],
)
def test_without_room_for_a_table_nothing_has_changed(large, statement):
    large.execute("VACUUM llm_param")  # which a table full of dead rows would otherwise have room in
    before = (
        one(large, STATE, "m"),
        large.execute(LOG, ["m"]).fetchall(),
        one(large, "SELECT count(*) FROM llm_checkpoint"),
    )
    with no_room(large), pytest.raises(psycopg.Error, match="File too large"):
        large.execute(statement)
    assert before == (
        one(large, STATE, "m"),
        large.execute(LOG, ["m"]).fetchall(),
        one(large, "SELECT count(*) FROM llm_checkpoint"),
    )
    large.execute(statement)
    large.execute("SELECT llm_drop_model(model) FROM llm_models WHERE NOT preset AND model <> 'start'")
    large.execute("VACUUM FULL llm_param")
    large.execute("VACUUM FULL llm_checkpoint_blob")
    large.execute("SELECT llm_copy_model('start', 'm')")
    large.execute(f"SELECT llm_train('m', 1, {OPTIONS})")


# --- bloat ------------------------------------------------------------------------------------------------------------------


def test_after_a_vacuum_a_hundred_commits_do_not_grow_the_tables(new_database):
    tables = ("llm_param", "llm_tape", "llm_tensor_rt", "llm_tensor_map", "llm_run")
    call = f"CALL llm_train_run('m', 100, {OPTIONS}, commit_every => 1, flush_seconds => 0)"
    with psycopg.connect(new_database(), autocommit=True) as conn:
        prepare(conn, GPT2Config(2, 2, 64, 16, 500))
        conn.execute("SELECT llm_copy_model('start', 'm')")

        def sizes() -> dict[str, int]:
            return {table: one(conn, "SELECT pg_total_relation_size(%s::regclass)", table) for table in tables}

        reached = []
        for _ in range(4):
            conn.execute(call)
            reached.append(sizes())
            for table in tables:
                conn.execute(f"VACUUM {table}")
        weights = one(conn, "SELECT sum(octet_length(data)) FROM llm_param")
        assert reached[0]["llm_param"] > 10 * weights  # of dead rows
        assert one(conn, "SELECT max(step) FROM llm_param WHERE model = 'm'") == 400
        # Pages that an index gave up are taken again one VACUUM later.
        assert reached[1]["llm_param"] < 1.05 * reached[0]["llm_param"]
        page = 8192  # each run is a row of llm_run that stays, some of which begin a page
        assert {t: size for t, size in reached[3].items() if size > 1.01 * reached[2][t] + page} == {}
