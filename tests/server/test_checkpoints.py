"""Checkpoints: what is saved comes back bit for bit, is stored once, and is removed when nothing needs it."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psycopg
import pytest
from pg_gpt2.config import GPT2Config
from psycopg import errors

STATE = """
    SELECT md5(string_agg(row, ',' ORDER BY name, token_id)) FROM (
        SELECT name, token_id, concat_ws(' ', name, token_id, shape, step, md5(data), md5(m), md5(v), md5(grad)) AS row
        FROM llm_param WHERE model = %s) AS rows
"""
Sql = Callable[..., object]


@pytest.fixture
def model(conn: psycopg.Connection, sql: Sql) -> Iterator[str]:
    """A small model that has been trained for two steps, in several blocks."""
    sql("SELECT llm_init_model('m', 2, 2, 16, 16, 50, seed => 3)")
    sql("""
        INSERT INTO llm_dataset (model, tokens, target)
        SELECT 'm', ARRAY[n, 1, 2, 3, 4], ARRAY[1, 2, 3, 4, 5] FROM generate_series(6, 20) n
    """)
    sql("""
        INSERT INTO llm_param (model, name, token_id, shape, data)
        SELECT model, name, 20, '{30,16}', substr(data, 20 * 64 + 1) FROM llm_param WHERE model = 'm' AND name = 'wte'
    """)
    sql("""
        UPDATE llm_param SET shape = '{20,16}', data = substr(data, 1, 20 * 64)
        WHERE model = 'm' AND name = 'wte' AND token_id = 0
    """)
    train(sql, 2)
    yield "m"
    sql("SELECT llm_drop_model(model) FROM llm_models WHERE NOT preset")
    assert sql("SELECT count(*) FROM llm_checkpoint_blob") == 0
    assert sql("SELECT count(*) FROM llm_checkpoint_restore") == 0


def train(sql: Sql, steps: int, model: str = "m") -> object:
    return sql("SELECT llm_train(%s, %s, batch_size => 2, lr_max => 0.01, log_every => 0)", model, steps)


def save(sql: Sql, *arguments: object) -> int:
    return sql(f"SELECT llm_checkpoint_save({', '.join(['%s'] * len(arguments))})", *arguments)  # type: ignore[return-value]


@pytest.fixture(params=["database", ".safetensors", ".npz"])
def saved(request: pytest.FixtureRequest, sql: Sql, model: str, server_files: Path) -> Iterator[int]:
    """A checkpoint of the model in each of the places that can hold one."""
    path = None if request.param == "database" else server_files / f"checkpoint{request.param}"
    yield save(sql, model, "a note", path and str(path))
    if path is not None:
        path.unlink(missing_ok=True)


def test_training_again_from_a_checkpoint_gives_the_same_bits(sql, saved):
    at_save = sql(STATE, "m")
    first_run = train(sql, 10)
    after = sql(STATE, "m")
    assert after != at_save
    assert sql("SELECT llm_checkpoint_load('m', %s)", saved) == 2
    assert sql(STATE, "m") == at_save
    second_run = train(sql, 10)
    assert sql(STATE, "m") == after
    losses = "SELECT array_agg(loss ORDER BY step) FROM llm_train_log WHERE run_id = %s"
    assert sql(losses, first_run) == sql(losses, second_run)


def test_generation_follows_a_load_in_open_sessions(sql, connect, saved):
    other = connect()
    ask = "SELECT llm_loss('m', ARRAY[1], ARRAY[2], training => false)"
    before = other.execute(ask).fetchone()
    train(sql, 2)
    assert other.execute(ask).fetchone() != before
    sql("SELECT llm_checkpoint_load('m', %s)", saved)
    assert other.execute(ask).fetchone() == before


def test_a_load_is_rolled_back_with_its_transaction(sql, conn, saved):
    train(sql, 1)
    now = sql(STATE, "m")
    with conn.transaction(force_rollback=True):
        sql("SELECT llm_checkpoint_load('m', %s)", saved)
    assert sql(STATE, "m") == now


def test_a_model_that_lost_everything_is_whole_after_a_load(sql, saved):
    before = sql(STATE, "m")
    sql("DELETE FROM llm_param WHERE model = 'm'")
    sql("UPDATE llm_model_config SET n_layer = 7, n_head = 4 WHERE model = 'm'")
    sql("SELECT llm_checkpoint_load('m', %s)", saved)
    assert sql(STATE, "m") == before
    assert sql("SELECT ROW(n_layer, n_head, vocab)::text FROM llm_model_config WHERE model = 'm'") == "(2,2,50)"


def test_a_fork_trains_as_the_original_did(sql, saved):
    at_save = sql(STATE, "m")
    train(sql, 3)
    sql("SELECT llm_copy_model('m', 'fork', %s)", saved)
    assert sql(STATE, "fork") == at_save
    sql("""
        INSERT INTO llm_dataset (model, tokens, target)
        SELECT 'fork', tokens, target FROM llm_dataset WHERE model = 'm' ORDER BY id
    """)
    train(sql, 3, "fork")
    assert sql(STATE, "fork") == sql(STATE, "m")


def test_a_new_model_without_moments_is_saved_as_it_is(sql, model, server_files):
    sql("SELECT llm_init_model('new', 1, 2, 8, 16, 50)")
    before = sql(STATE, "new")
    for suffix in (".safetensors", ".npz"):
        path = server_files / f"new{suffix}"
        one = save(sql, "new", "", str(path))
        sql("UPDATE llm_param SET m = data, v = data, grad = data, step = 4 WHERE model = 'new'")
        assert sql("SELECT llm_checkpoint_load('new', %s)", one) == 0
        assert sql(STATE, "new") == before
        path.unlink()


def test_a_gradient_is_not_part_of_a_checkpoint(sql, model):
    before = sql(STATE, "m")
    one = save(sql, "m")
    sql("UPDATE llm_param SET grad = data WHERE model = 'm' AND name = 'wpe'")
    sql("SELECT llm_checkpoint_load('m', %s)", one)
    assert sql(STATE, "m") == before


def test_steps_by_hand_after_a_load_begin_a_new_manual_run(sql, model):
    step = "SELECT llm_train_step('m')"
    one = save(sql, "m")
    first = sql(step)
    sql("SELECT llm_checkpoint_load('m', %s)", one)
    assert sql(step) == first
    assert sql(
        "SELECT array_agg(ROW(run_id = r, step)::text ORDER BY run_id) FROM llm_train_log, "
        "(SELECT run_id r FROM llm_run WHERE status = 'manual') x WHERE step = 3 AND model = 'm'"
    ) == ["(f,3)", "(t,3)"]


def test_a_checkpoint_knows_the_run_that_it_came_from(sql, model):
    run = "SELECT run_id FROM llm_checkpoint WHERE id = %s"
    sql("SELECT llm_init_model('untrained', 1, 2, 8, 16, 50)")
    assert sql(run, save(sql, "untrained")) is None
    early = save(sql, "m")
    first = sql(run, early)
    second = train(sql, 1)
    assert sql(run, save(sql, "m")) == second
    sql("SELECT llm_checkpoint_load('m', %s)", early)
    assert sql(run, save(sql, "m")) == first
    third = train(sql, 1)
    assert sql(run, save(sql, "m")) == third
    sql("SELECT llm_copy_model('m', 'fork', %s)", early)
    assert sql(run, save(sql, "fork")) == first


# --- stored once, removed when unused ---------------------------------------------------------------------------------------


def blobs(sql: Sql) -> object:
    return sql("SELECT count(*) FROM llm_checkpoint_blob")


def test_equal_tensors_are_stored_once(sql, model):
    save(sql, "m")
    once = blobs(sql)
    save(sql, "m")
    assert blobs(sql) == once
    sql("SELECT llm_copy_model('m', 'twin')")
    save(sql, "twin")
    assert blobs(sql) == once
    sql("UPDATE llm_param SET data = overlay(data PLACING '\\x00' FROM 1) WHERE model = 'twin' AND name = 'wpe'")
    save(sql, "twin")
    assert blobs(sql) == once + 1


def test_drop_removes_what_no_other_checkpoint_has(sql, model):
    one, two = save(sql, "m"), save(sql, "m")
    once = blobs(sql)
    train(sql, 1)
    three = save(sql, "m")
    assert blobs(sql) > once
    sql("SELECT llm_checkpoint_drop(%s)", three)
    assert blobs(sql) == once
    sql("SELECT llm_checkpoint_drop(%s)", one)
    assert blobs(sql) == once
    sql("SELECT llm_checkpoint_drop(%s)", two)
    assert blobs(sql) == 0


def test_dropping_a_model_drops_its_checkpoints_only(sql, model):
    sql("SELECT llm_copy_model('m', 'twin')")
    save(sql, "m")
    once = blobs(sql)
    save(sql, "twin")
    sql("SELECT llm_drop_model('m')")
    assert sql("SELECT array_agg(DISTINCT model) FROM llm_checkpoint_list()") == ["twin"]
    assert blobs(sql) == once
    sql("SELECT llm_drop_model('twin')")
    assert blobs(sql) == 0


def test_prune_keeps_the_last_ones_and_every_nth_step(sql, model, server_files):
    path = server_files / "kept.npz"
    save(sql, "m", "", str(path))
    ids = {}
    for step in range(3, 9):
        train(sql, 1)
        ids[step] = save(sql, "m")
    assert sql("SELECT llm_checkpoint_prune('m', 2, 4)") == 3
    assert sql("SELECT array_agg(step ORDER BY id) FROM llm_checkpoint WHERE file_path IS NULL") == [4, 7, 8]
    assert sql("SELECT llm_checkpoint_prune('m', 2)") == 1
    assert sql("SELECT array_agg(step ORDER BY id) FROM llm_checkpoint_list('m')") == [2, 7, 8]
    assert sql("SELECT llm_checkpoint_prune('m', 0)") == 2
    path.unlink()


def test_saving_and_dropping_at_once_lose_nothing(sql, connect, model):
    """Each session saves, drops an old one, and loads its last: blocks that all share are needed throughout."""
    before = sql(STATE, "m")

    def work(number: int) -> None:
        session = connect()
        one = session.execute("SELECT llm_checkpoint_save('m')").fetchone()[0]
        for _ in range(8):
            two = session.execute("SELECT llm_checkpoint_save('m')").fetchone()[0]
            session.execute("SELECT llm_checkpoint_drop(%s)", [one])
            session.execute("SELECT llm_copy_model('m', %s, %s)", [f"fork {number}", two])
            assert session.execute(STATE, [f"fork {number}"]).fetchone()[0] == before
            session.execute("SELECT llm_drop_model(%s)", [f"fork {number}"])
            one = two
        session.execute("SELECT llm_checkpoint_drop(%s)", [one])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert blobs(sql) == 0


def test_a_drop_waits_for_a_save_that_needs_the_same_blocks(sql, connect, model):
    one = save(sql, "m")
    saver, dropper = connect(), connect()
    with saver.transaction():
        two = saver.execute("SELECT llm_checkpoint_save('m')").fetchone()[0]
        dropper.execute("SET lock_timeout = '200ms'")
        with pytest.raises(errors.LockNotAvailable):
            dropper.execute("SELECT llm_checkpoint_drop(%s)", [one])
    dropper.execute("SELECT llm_checkpoint_drop(%s)", [one])
    train(sql, 1)
    assert sql("SELECT llm_checkpoint_load('m', %s)", two) == 2


def test_a_drop_by_an_old_snapshot_removes_no_block_that_it_cannot_see_in_use(sql, connect, model):
    one = save(sql, "m")
    dropper = connect()
    with dropper.transaction():
        dropper.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        dropper.execute("SELECT 1 FROM llm_checkpoint")
        two = save(sql, "m")
        dropper.execute("SELECT llm_checkpoint_drop(%s)", [one])
    train(sql, 1)
    assert sql("SELECT llm_checkpoint_load('m', %s)", two) == 2
    sql("SELECT llm_checkpoint_drop(%s)", two)
    assert blobs(sql) == 0


def test_saving_does_not_wait_for_training(sql, connect, model):
    """It saves what is committed."""
    before = sql(STATE, "m")
    trainer = connect()
    with trainer.transaction():
        trainer.execute("SELECT llm_train('m', 1, log_every => 0)")
        one = save(sql, "m")
    sql("SELECT llm_checkpoint_load('m', %s)", one)
    assert sql(STATE, "m") == before


# --- refusals ---------------------------------------------------------------------------------------------------------------


def sqlstate(conn: psycopg.Connection, statement: str, *parameters: object) -> tuple[str | None, str]:
    with pytest.raises(psycopg.Error) as caught:
        conn.execute(statement, parameters)
    return caught.value.sqlstate, str(caught.value)


def test_a_flipped_byte_is_found_and_named(sql, conn, model):
    for column, name in (("data", "h.1.mlp.c_fc.weight"), ("m", "wte"), ("v", "ln_f.bias")):
        one = save(sql, "m")
        train(sql, 1)
        now = sql(STATE, "m")
        sql(
            f"UPDATE llm_checkpoint_blob SET data = set_byte(data, 5, get_byte(data, 5) # 1) WHERE digest = "
            f"(SELECT {column} FROM llm_checkpoint_part WHERE checkpoint_id = %s AND name = %s ORDER BY token_id DESC LIMIT 1)",
            *(one, name),
        )
        state, message = sqlstate(conn, "SELECT llm_checkpoint_load('m', %s)", one)
        assert state == "22000"
        assert f'tensor "{name}", block {20 if name == "wte" else 0}' in message
        assert sql(STATE, "m") == now
        assert sqlstate(conn, "SELECT llm_copy_model('m', 'fork', %s)", one)[0] == "22000"
        sql("SELECT llm_checkpoint_drop(%s)", one)


@pytest.mark.parametrize("changed", ["data || '\\x00'", "substr(data, 5)", "''"])
@pytest.mark.parametrize("column", ["data", "m"])
def test_a_block_of_another_length_is_named(sql, conn, model, column, changed):
    one = save(sql, "m")
    train(sql, 1)
    now = sql(STATE, "m")
    sql(
        f"UPDATE llm_checkpoint_blob SET data = {changed} WHERE digest ="
        f" (SELECT {column} FROM llm_checkpoint_part WHERE checkpoint_id = %s AND name = 'ln_f.bias')",
        one,
    )
    state, message = sqlstate(conn, "SELECT llm_checkpoint_load('m', %s)", one)
    assert state == "22000"
    assert 'tensor "ln_f.bias", block 0' in message
    assert sql(STATE, "m") == now


@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
def test_a_file_that_is_not_the_checkpoint_is_refused(sql, conn, model, server_files, suffix):
    path, other = server_files / f"a{suffix}", server_files / f"b{suffix}"
    one = save(sql, "m", "", str(path))
    save(sql, "m", "", str(other))
    sql("SELECT llm_checkpoint_drop(%s)", save(sql, "m"))
    train(sql, 1)
    two = save(sql, "m", "", str(server_files / f"c{suffix}"))
    now = sql(STATE, "m")
    whole = path.read_bytes()
    load = "SELECT llm_checkpoint_load('m', %s)"

    def refused(data: bytes) -> str | None:
        path.write_bytes(data)
        state, _ = sqlstate(conn, load, one)
        assert sql(STATE, "m") == now
        return state

    for cut in (0, 7, len(whole) // 2, len(whole) - 1):
        assert refused(whole[:cut]) in ("22P02", "22000")  # the last byte of a .npz is of its metadata
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    assert refused(bytes(flipped)) in ("22000", "22P02")
    assert refused((server_files / f"c{suffix}").read_bytes()) == "22000"  # of another moment
    sql(
        f"SELECT pg_llm_export_{'npz' if suffix == '.npz' else 'safetensors'}(%s, 'm')",
        str(server_files / f"d{suffix}"),
    )
    assert refused((server_files / f"d{suffix}").read_bytes()) == "22000"
    path.unlink()
    assert sqlstate(conn, load, one)[0] == "58P01"
    other.rename(path)  # the same state, saved twice
    assert sql(load, one) == 2
    assert sql(load, two) == 3
    for rest in server_files.glob(f"[a-d]{suffix}"):
        rest.unlink()


@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
def test_a_file_is_a_checkpoint_in_another_database_too(sql, new_database, server_files, suffix):
    """What the row held comes back from the file: without the database that wrote it nothing is lost."""
    step = "SELECT llm_train_step(%s, lr_max => 0.01)"
    data = "INSERT INTO llm_dataset (tokens, target) VALUES ('{1,2,3}', '{2,3,4}')"
    sql("SELECT llm_init_model('a', 1, 2, 1024, 16, 2000)")  # wte in two blocks
    sql(data)
    for trained in (False, True):
        if trained:
            sql(step, "a")
        path = server_files / f"moved{trained}{suffix}"
        save(sql, "a", "", str(path))
        state = sql(STATE, "a")
        with psycopg.connect(new_database(), autocommit=True) as elsewhere:

            def there(statement: str, *values: object, conn: psycopg.Connection = elsewhere) -> object:
                return conn.execute(statement, values).fetchone()[0]  # type: ignore[index]

            one = there("SELECT llm_checkpoint_attach(%s)", str(path))
            assert there("SELECT llm_checkpoint_load('a', %s)", one) == int(trained)
            assert there(STATE, "a") == state
            elsewhere.execute(data)
            following = there(step, "a")
            assert sqlstate(elsewhere, "SELECT llm_checkpoint_attach(%s)", str(path))[0] == "42710"
            path = path.rename(server_files / f"again{trained}{suffix}")
            two = there("SELECT llm_checkpoint_attach(%s, 'b')", str(path))
            assert there("SELECT llm_checkpoint_load('b', %s)", two) == int(trained)
            assert there(step, "b") == following
            assert sqlstate(elsewhere, "SELECT llm_checkpoint_load('a', %s)", one)[0] == "58P01"
            there("SELECT llm_checkpoint_load('b', %s)", two)
            assert there(STATE, "b") == state
        path.unlink()
    sql("SELECT llm_drop_model('a')")
    sql("DELETE FROM llm_dataset WHERE model IS NULL")


@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
def test_only_a_whole_checkpoint_is_attached(sql, conn, model, server_files, suffix):
    path, attach = server_files / f"part{suffix}", "SELECT llm_checkpoint_attach(%s)"
    sql("SELECT llm_init_model('a', 1, 2, 8, 16, 50)")
    sql("SELECT llm_checkpoint_drop(%s)", save(sql, "a", "", str(path)))
    whole = path.read_bytes()
    for data in (b"", whole[:7], whole[: len(whole) // 2], whole[:-1]):
        path.write_bytes(data)
        assert sqlstate(conn, attach, str(path))[0] in ("22P02", "22000")
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    path.write_bytes(flipped)
    assert sqlstate(conn, attach, str(path))[0] in ("22P02", "22000")
    sql(f"SELECT pg_llm_export_{suffix[1:]}(%s, 'a')", str(path))  # weights alone
    assert sqlstate(conn, attach, str(path))[0] == "22000"
    assert sql("SELECT count(*) FROM llm_checkpoint WHERE file_path IS NOT NULL") == 0
    sql("SELECT llm_drop_model('a')")
    path.unlink()


@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
def test_blocks_of_other_sizes_and_steps_are_attached_as_they_were(sql, model, server_files, suffix):
    path = server_files / f"other{suffix}"  # of a model whose wte was split by hand
    sql("UPDATE llm_param SET step = step + 1 WHERE model = 'm' AND name = 'wpe'")
    sql("UPDATE llm_param SET m = NULL WHERE model = 'm' AND name = 'wte' AND token_id > 0")
    state = sql(STATE, "m")
    sql("SELECT llm_checkpoint_drop(%s)", save(sql, "m", "", str(path)))
    attached = sql("SELECT llm_checkpoint_attach(%s, 'twin')", str(path))
    sql("SELECT llm_checkpoint_load('twin', %s)", attached)
    assert sql(STATE, "twin") == state
    sql("SELECT llm_drop_model('twin')")
    path.unlink()


def test_a_file_is_written_whole_or_not_at_all(sql, conn, model, server_files):
    path = server_files / "there.npz"
    one = save(sql, "m", "", str(path))
    kept = path.read_bytes()
    assert sqlstate(conn, "SELECT llm_checkpoint_save('m', '', %s)", str(path))[0] == "42710"
    assert sqlstate(conn, "SELECT llm_checkpoint_save('m', '', %s)", f"{server_files}/../files/there.npz")[0] == "42710"
    assert path.read_bytes() == kept
    conn.execute("SET statement_timeout = '1ms'")
    assert sqlstate(conn, "SELECT llm_checkpoint_save('m', '', %s)", str(server_files / "cut.npz"))[0] == "57014"
    conn.execute("RESET statement_timeout")
    assert sql("SELECT count(*) FROM llm_checkpoint") == 1
    assert [found.name for found in server_files.iterdir() if found.is_file()] == ["there.npz"]
    sql("SELECT llm_checkpoint_drop(%s)", one)
    assert path.exists()
    path.unlink()


def test_files_are_for_the_roles_that_may_touch_them(sql, conn, model, server_files):
    path = server_files / "role.npz"
    one = save(sql, "m", "", str(path))
    sql("CREATE ROLE trainer")
    sql("GRANT ALL ON ALL TABLES IN SCHEMA public TO trainer")
    sql("GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA public TO trainer")
    try:
        sql("SET ROLE trainer")
        two = save(sql, "m")
        assert sql("SELECT llm_checkpoint_load('m', %s)", two) == 2
        for statement in (
            f"SELECT llm_checkpoint_save('m', '', '{server_files}/x.npz')",
            f"SELECT llm_checkpoint_load('m', {one})",
            f"SELECT llm_copy_model('m', 'x', {one})",
        ):
            assert sqlstate(conn, statement)[0] == "42501"
        sql("RESET ROLE")
        sql("GRANT pg_read_server_files TO trainer")
        sql("SET ROLE trainer")
        assert sql("SELECT llm_checkpoint_load('m', %s)", one) == 2
    finally:
        sql("RESET ROLE")
        sql("DROP OWNED BY trainer")
        sql("DROP ROLE trainer")
        path.unlink()


def test_a_model_whose_rows_do_not_fit_is_not_saved(sql, conn, model, server_files):
    for damage in (
        "DELETE FROM llm_param WHERE model = 'm' AND name = 'wte' AND token_id = 20",
        "DELETE FROM llm_param WHERE model = 'm' AND name = 'ln_f.bias'",
        "UPDATE llm_param SET name = 'x' WHERE model = 'm' AND name = 'ln_f.bias'",
        "UPDATE llm_param SET token_id = 21 WHERE model = 'm' AND name = 'wte' AND token_id = 20",
    ):
        with conn.transaction(force_rollback=True):
            sql(damage)
            for path in ("", f", '', '{server_files}/x.npz'"):
                with pytest.raises(errors.DataException) as caught, conn.transaction():
                    sql(f"SELECT llm_checkpoint_save('m'{path})")
                assert caught.value.sqlstate == "22000"
    assert sql("SELECT count(*) FROM llm_checkpoint") == 0


# --- what changed -----------------------------------------------------------------------------------------------------------


def test_diff_tells_what_changed(conn, sql, saved):
    old = sql("SELECT data FROM llm_param WHERE model = 'm' AND name = 'ln_f.bias'")
    sql(
        "UPDATE llm_param SET data = overlay(data PLACING '\\x00004040' FROM 5) WHERE model = 'm' AND name = 'ln_f.bias'"
    )
    now = save(sql, "m")
    for diff in (f"llm_checkpoint_diff({saved}, {now})", f"llm_checkpoint_diff({saved})"):
        rows = conn.execute(f"SELECT * FROM {diff}").fetchall()
        assert [row[0] for row in rows] == sorted(GPT2Config(2, 2, 16, 16, 50).param_shapes())
        assert all(row[1:] == (False, 0.0, 0.0, 0.0) for row in rows if row[0] != "ln_f.bias")
        values = np.frombuffer(old, "<f4").astype(float)  # type: ignore[call-overload]
        change = abs(3.0 - values[1])
        expected = ["ln_f.bias", True, change, change, change / np.linalg.norm(values)]
        assert next(list(row) for row in rows if row[0] == "ln_f.bias") == pytest.approx(expected)


def test_diff_compares_bits_whatever_the_blocks(conn, sql, saved):
    """One block or two, the values of a tensor are the same; minus zero is a change of no size."""
    sql("""UPDATE llm_param SET shape = '{50,16}', data = data || (SELECT data FROM llm_param
            WHERE model = 'm' AND name = 'wte' AND token_id = 20), m = NULL, v = NULL
           WHERE model = 'm' AND name = 'wte' AND token_id = 0""")
    sql("DELETE FROM llm_param WHERE model = 'm' AND name = 'wte' AND token_id = 20")
    differing = "SELECT array_agg(name) FROM llm_checkpoint_diff(%s) WHERE changed"
    assert sql(differing, saved) is None
    sql("SELECT llm_init_model('zero', 1, 2, 8, 16, 50)")
    zero = save(sql, "zero")
    sql(
        "UPDATE llm_param SET data = overlay(data PLACING '\\x00000080' FROM 1) WHERE model = 'zero' AND name = 'ln_f.bias'"
    )
    assert sql("SELECT ROW(d)::text FROM llm_checkpoint_diff(%s) d WHERE changed", zero) == '("(ln_f.bias,t,0,0,)")'
    assert sql("SELECT count(*) FROM llm_checkpoint_diff(%s, %s) WHERE changed AND l2_norm IS NULL", saved, zero) == 28


def test_history_of_a_tensor(conn, sql, model):
    one = save(sql, "m")
    first = np.linalg.norm(
        np.frombuffer(sql("SELECT data FROM llm_param WHERE model = 'm' AND name = 'wpe'"), "<f4").astype(float)
    )  # type: ignore[call-overload]
    second_run = train(sql, 3)
    two = save(sql, "m")
    sql("SELECT llm_checkpoint_load('m', %s)", one)
    sql("SELECT llm_train_step('m')")
    rows = conn.execute("SELECT * FROM llm_param_history('m', 'wpe')").fetchall()
    runs = [row[0] for row in conn.execute("SELECT run_id FROM llm_run ORDER BY run_id").fetchall()]
    assert runs[1] == second_run
    assert [row[1:6] for row in rows] == [
        ("run", runs[0], None, 1, 2),
        ("checkpoint", runs[0], one, None, 2),
        ("run", runs[1], None, 3, 5),
        ("checkpoint", runs[1], two, None, 5),
        ("load", runs[0], one, None, 2),
        ("steps by hand", runs[2], None, 3, 3),
        ("now", None, None, None, 3),
    ]
    assert rows[1][6:] == (pytest.approx(first), None, None, None)
    assert rows[3][7] is True
    diff = conn.execute(
        "SELECT l2_norm, relative FROM llm_checkpoint_diff(%s, %s) WHERE name = 'wpe'", [one, two]
    ).fetchone()
    assert rows[3][8:] == diff
    diff = conn.execute("SELECT l2_norm, relative FROM llm_checkpoint_diff(%s) WHERE name = 'wpe'", [one]).fetchone()
    assert rows[6][8:] == diff
    assert rows[0][6:] == rows[4][6:] == (None,) * 4


def test_a_load_right_after_a_save_changes_nothing(conn, sql, saved):
    sql("SELECT llm_checkpoint_load('m', %s)", saved)
    rows = conn.execute("SELECT event, changed, l2_change FROM llm_param_history('m', 'wte')").fetchall()
    assert rows[-1] == ("now", False, 0.0)


def test_what_is_cut_short_leaves_nothing_behind(conn, sql, model):
    """Cancelled at many moments, a save and a load happen as a whole or not at all."""
    sql("SELECT llm_init_model('big', 4, 4, 128, 64, 512)")
    sql("UPDATE llm_param SET m = data, v = sha256(data) || substr(data, 33) WHERE model = 'big'")
    first = sql(STATE, "big")
    one = save(sql, "big")
    sql("UPDATE llm_param SET data = overlay(data PLACING '\\x0000' FROM 9) WHERE model = 'big'")
    second = sql(STATE, "big")
    kept = blobs(sql)
    done = []
    for milliseconds in range(2, 80, 3):
        for statement in ("SELECT llm_checkpoint_save('big')", f"SELECT llm_checkpoint_load('big', {one})"):
            sql(f"SET statement_timeout = {milliseconds}")
            try:
                done.append(sql(statement))
            except errors.QueryCanceled:
                done.append(None)
            sql("RESET statement_timeout")
            loading = "load" in statement
            if done[-1] is None:
                assert sql(STATE, "big") == second
                assert (blobs(sql), sql("SELECT max(id) FROM llm_checkpoint")) == (kept, one)
            elif loading:
                assert sql(STATE, "big") == first
                sql("UPDATE llm_param SET data = overlay(data PLACING '\\x0000' FROM 9) WHERE model = 'big'")
            else:
                sql("SELECT llm_checkpoint_drop(%s)", done[-1])
                assert blobs(sql) == kept
    assert None in done
    assert any(done)
