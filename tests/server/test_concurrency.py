"""Many sessions at once: fifty that open a model, readers beside trainers, drop and import under a generation, and no deadlock.

The order of locks is in docs/promises.md.
"""

import itertools
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from psycopg import errors

SESSIONS = 50
LOGITS = "SELECT md5(llm_logits('{1,2,3}', 'm'))"
OWN = "SELECT coalesce(sum(bytes), 0) FROM llm_cache_status() WHERE kind = 'weights' AND NOT shared"


@pytest.fixture(autouse=True, scope="module")
def models(module_conn):
    module_conn.execute("SELECT llm_train_bpe($$SELECT 'low lower lowest newer wider'$$, 265, 'm')")
    module_conn.execute("SELECT llm_init_model('m', 3, 4, 256, 32, seed => 1)")  # 9 MB, which sessions share
    module_conn.execute(
        "INSERT INTO llm_dataset (tokens, target) SELECT '{1,2,3}', '{2,3,4}' FROM generate_series(1, 8)"
    )


def one(conn: psycopg.Connection, query: str) -> object:
    return conn.execute(query).fetchone()[0]


def test_fifty_sessions_open_the_same_model_at_once_and_hold_no_copy(connect):
    sessions = [connect() for _ in range(SESSIONS)]
    start = threading.Barrier(SESSIONS)

    def open_model(conn: psycopg.Connection) -> object:
        start.wait(60)
        return one(conn, LOGITS)

    with ThreadPoolExecutor(SESSIONS) as pool:
        assert len(set(pool.map(open_model, sessions))) == 1
    assert sum(one(conn, OWN) for conn in sessions) == 0


def test_readers_beside_two_trainers_see_committed_states_only(connect):
    """One trainer works and the other waits or is refused; what a reader sees was logged as committed."""
    connect().execute("SELECT llm_init_model('t', 1, 2, 16, 16, 265)")
    names = ["wte", "wpe", *(f"h.0.{part}" for part in PARTS), "ln_f.weight", "ln_f.bias"]
    whole = f"string_agg(data, '' ORDER BY array_position(ARRAY{names}, name))"
    state = f"SELECT encode(sha256({whole}), 'hex') FROM llm_param WHERE model = 't'"
    done = threading.Event()

    def read() -> set[object]:
        conn, seen = connect(), set()
        while not done.is_set():
            one(conn, "SELECT md5(llm_logits('{1,2}', 't'))")
            seen.add(one(conn, state))
        return seen

    def train(wait: str) -> str:
        conn = connect()
        try:
            conn.execute(
                "CALL llm_train_run('t', 10, batch_size => 2, commit_every => 1, flush_seconds => 0, log_every => 0,"
                f" wait => {wait})"
            )
        except errors.LockNotAvailable:
            return "refused"
        return "finished"

    before = one(connect(), state)
    with ThreadPoolExecutor(5) as pool:
        readers = [pool.submit(read) for _ in range(3)]
        trainers = [pool.submit(train, wait) for wait in ("true", "false")]
        waiting, hasty = (trainer.result(60) for trainer in trainers)
        done.set()
        seen = set.union(*(reader.result(60) for reader in readers))
    assert (waiting, hasty) in (("finished", "refused"), ("finished", "finished"))
    logged = {row[0] for row in connect().execute("SELECT weights_digest FROM llm_train_log WHERE model = 't'")}
    assert seen <= logged | {before}


PARTS = ("ln_1.weight", "ln_1.bias", "attn.c_attn.weight", "attn.c_attn.bias", "attn.c_proj.weight", "attn.c_proj.bias")
PARTS += ("ln_2.weight", "ln_2.bias", "mlp.c_fc.weight", "mlp.c_fc.bias", "mlp.c_proj.weight", "mlp.c_proj.bias")


@pytest.mark.parametrize(
    "change",
    [
        "SELECT llm_drop_model('gone')",
        "SELECT llm_import_safetensors(string_agg(c, ''), 'gone', true) FROM llm_export_safetensors('other') AS c",
    ],
    ids=["drop", "import"],
)
def test_a_generation_goes_on_with_the_weights_that_it_began_with(connect, change):
    conn, other = connect(), connect()
    other.execute("SELECT llm_copy_model('m', 'gone'), llm_init_model('other', 3, 4, 256, 32, 265, seed => 2)")
    statement = "SELECT llm_generate_tokens('{{1}}', {}, 0, model_name => 'gone', eos_token => -1)"
    expected = one(conn, statement.format(3))
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(one, conn, statement.format(400))
        time.sleep(0.2)
        other.execute(change)
        found = running.result(60)
    assert found[:3] == expected
    assert len(found) == 400
    if "drop" in change:
        with pytest.raises(errors.UndefinedObject):
            conn.execute(statement.format(3))
    else:
        assert one(conn, statement.format(3)) == one(other, statement.format(3).replace("gone", "other"))
        other.execute("SELECT llm_drop_model('gone')")
    other.execute("SELECT llm_drop_model('other')")


CHANGES = (
    "SELECT llm_train('{}', 1, log_every => 0)",
    "SELECT llm_train_step('{}')",
    "SELECT llm_checkpoint_save('{}')",
    "SELECT llm_checkpoint_load('{}', max(id)) FROM llm_checkpoint WHERE model = '{}'",
    "SELECT llm_checkpoint_prune('{}', 1)",
    "SELECT llm_share_param('a', 'wpe', 0, '{}')",
    "SELECT llm_unshare_param('{}', 'wpe')",
    "SELECT llm_drop_model('{}')",
    "SELECT llm_init_model('{}', 1, 2, 16, 16, 265)",
    "SELECT llm_copy_model('a', '{}')",
    "SELECT llm_copy_model('{}', '{}', max(id)) FROM llm_checkpoint WHERE model = '{}'",
    "SELECT llm_adapter_create('{}', 'a', r => 2)",
    """SELECT llm_import_begin('{}', '{"n_layer": 1, "n_head": 2, "d_model": 16, "n_positions": 16, "vocab": 265}', true)""",
    "SELECT llm_adapter_merge('{}', 'c')",
    "SELECT llm_checkpoint_load('a', max(id)) FROM llm_checkpoint WHERE model = 'a'",
    # one row: two users' statements over many rows can take them in different orders, whatever the extension does
    "UPDATE llm_bpe_vocab SET score = 1 WHERE model = 'm' AND token_id = 0",
)


def test_no_two_of_the_functions_that_change_models_deadlock(connect):
    """Each is a transaction; those that share weights lock several models, in the order of their names."""
    connect().execute(
        "SELECT llm_init_model('a', 1, 2, 16, 16, 265), llm_copy_model('a', 'b'), llm_copy_model('a', 'c')"
    )
    connect().execute("SELECT llm_checkpoint_save('a')")
    deadlocks: list[str] = []
    refusals: set[str] = set()

    def work(seed: int) -> int:
        conn, choice = connect(options="-c deadlock_timeout=100ms -c lock_timeout=20s"), random.Random(seed)
        end = time.monotonic() + 6
        for count in itertools.count():
            if time.monotonic() > end:
                return count
            statement = choice.choice(CHANGES).replace("{}", choice.choice("bc"))
            try:
                conn.execute(statement)
            except errors.DeadlockDetected as error:
                deadlocks.append(f"{statement}: {error.diag.message_detail}")
            except psycopg.Error as error:
                refusals.add(str(error.sqlstate))
        raise AssertionError

    with ThreadPoolExecutor(6) as pool:
        assert min(pool.map(work, range(6))) > 0
    assert deadlocks == []
    # of models that are there already, not there, without weights, shared, or changed meanwhile
    assert refusals <= {"22004", "42710", "42704", "55000", "2BP01", "22000", "22023", "23505", "40001"}
