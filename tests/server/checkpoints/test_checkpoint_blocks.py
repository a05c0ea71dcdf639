"""Checkpoints in the database: equal tensors are stored once, removed when nothing needs them, and damage is found and named."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from psycopg import errors

from tests.server.checkpoints.steps import STATE, blobs, save, sqlstate, train


def test_equal_tensors_are_stored_once(sql, model):
    """Of a model: what a copy has is its own (sql/checkpoints.sql)."""
    save(sql, "m")
    once = blobs(sql)
    save(sql, "m")
    assert blobs(sql) == once
    sql("UPDATE llm_param SET data = overlay(data PLACING '\\x00' FROM 1) WHERE model = 'm' AND name = 'wpe'")
    save(sql, "m")
    assert blobs(sql) == once + 1
    sql("SELECT llm_copy_model('m', 'twin')")
    save(sql, "twin")
    save(sql, "twin")
    assert blobs(sql) == once + 1 + once


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


def test_a_drop_takes_no_longer_where_statistics_are_old(sql, conn, model):
    """Of a model that had no checkpoints then the planner expects one block, and might do for each what takes a while once."""
    sql("SELECT llm_copy_model('m', 'twin')")
    save(sql, "m")
    conn.execute("ANALYZE llm_checkpoint, llm_checkpoint_part, llm_checkpoint_blob")
    changed = ", ".join(f"{kind} = set_byte({kind}, {place}, %s)" for place, kind in enumerate(("data", "m", "v")))
    for number in range(70):
        conn.execute(f"UPDATE llm_param SET {changed} WHERE model = 'twin'", [number] * 3)
        one = save(sql, "twin")
    for statement in (
        f"SELECT llm_checkpoint_load('twin', {one})",
        f"SELECT llm_checkpoint_drop({one})",
        "SELECT llm_drop_model('twin')",
    ):
        conn.execute("SET statement_timeout = '3s'")
        conn.execute(statement)
    conn.execute("RESET statement_timeout")


def test_dropping_a_model_drops_its_checkpoints_only(sql, model):
    sql("SELECT llm_copy_model('m', 'twin')")
    save(sql, "m")
    once = blobs(sql)
    twin = save(sql, "twin")
    sql("SELECT llm_drop_model('m')")
    assert sql("SELECT array_agg(DISTINCT model) FROM llm_checkpoint_list()") == ["twin"]
    assert blobs(sql) == once
    before = sql(STATE, "twin")
    sql("UPDATE llm_param SET data = overlay(data PLACING '\\x00' FROM 1) WHERE model = 'twin' AND name = 'wpe'")
    assert sql(STATE, "twin") != before
    sql("SELECT llm_checkpoint_load('twin', %s)", twin)
    assert sql(STATE, "twin") == before
    sql("SELECT llm_drop_model('twin')")
    assert blobs(sql) == 0


def test_what_was_deleted_by_hand_goes_with_the_model(sql, model):
    save(sql, "m")
    sql("DELETE FROM llm_checkpoint RETURNING 1")
    assert blobs(sql) > 0
    sql("SELECT llm_drop_model('m')")
    assert blobs(sql) == 0
    assert sql("SELECT count(*) FROM llm_checkpoint_part") == 0


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


def test_a_drop_does_not_wait_for_a_save_of_another_model(sql, connect, model):
    sql("SELECT llm_copy_model('m', 'twin')")
    one = save(sql, "twin")
    saver, dropper = connect(), connect()
    with saver.transaction():
        saver.execute("SELECT llm_checkpoint_save('m')")
        dropper.execute("SET lock_timeout = '1s'")
        dropper.execute("SELECT llm_checkpoint_drop(%s)", [one])
    assert sql("SELECT count(*) FROM llm_checkpoint_blob WHERE model = 'twin'") == 0


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


COMPARING = "SELECT * FROM llm_checkpoint_diff(%s, %s)", "SELECT * FROM llm_param_history('m', 'ln_f.bias')"


@pytest.mark.parametrize(
    "changed", ["set_byte(data, 5, get_byte(data, 5) # 1)", "data || '\\x00'", "substr(data, 5)", "''"]
)
def test_comparing_checkpoints_verifies_what_it_reads(sql, conn, model, changed):
    one = save(sql, "m")
    train(sql, 1)
    two = save(sql, "m")
    for damaged in (one, two):
        with conn.transaction(force_rollback=True):
            sql(
                f"UPDATE llm_checkpoint_blob SET data = {changed} WHERE digest ="
                " (SELECT data FROM llm_checkpoint_part WHERE checkpoint_id = %s AND name = 'ln_f.bias')",
                damaged,
            )
            for statement, parameters in zip(COMPARING, ((one, two), ())):
                with (
                    pytest.raises(errors.DataException, match=r'tensor "ln_f\.bias", block 0') as caught,
                    conn.transaction(),
                ):
                    conn.execute(statement, parameters)
                assert caught.value.sqlstate == "22000"
                assert f"checkpoint {damaged} is damaged" in str(caught.value)


@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
def test_comparing_files_verifies_what_it_reads(sql, conn, model, server_files, suffix):
    path = server_files / f"damaged{suffix}"
    one = save(sql, "m", "", str(path))
    train(sql, 1)
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 1
    path.write_bytes(data)
    state, message = sqlstate(conn, "SELECT * FROM llm_checkpoint_diff(%s)", one)
    assert state in ("22000", "22P02")
    assert "damaged" in message
    path.unlink()


def test_a_difference_of_nan_is_nan(sql, conn, model):
    one = save(sql, "m")
    sql(
        "UPDATE llm_param SET data = overlay(data PLACING '\\x0000c07f' FROM 1) WHERE model = 'm' AND name = 'ln_f.bias'"
    )
    found = conn.execute(
        "SELECT changed, max_abs_diff, l2_norm, relative FROM llm_checkpoint_diff(%s) WHERE name = 'ln_f.bias'", [one]
    ).fetchone()
    assert found[0] is True
    assert [str(number) for number in found[1:]] == ["nan"] * 3
