"""Checkpoints: what is saved comes back bit for bit, wherever it lies; and what changed since."""

import numpy as np
import pytest
from pg_gpt2.core.config import GPT2Config
from psycopg import errors

from tests.server.checkpoints.steps import STATE, blobs, save, train


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
    sql("SELECT llm_import_safetensors(string_agg(c, ''), 'm', true) FROM llm_export_safetensors('m') AS c")
    assert sql(run, save(sql, "m")) is None


def test_a_run_that_kept_no_step_has_changed_nothing(conn, sql, connect, model):
    """Cut off before its first commit, and then abandoned for another that ends like it."""
    save(sql, "m")
    run, worker = train(sql, 3), connect()
    for steps in (10**6, 2 * 10**6):
        for patience in (700, 2000, 6000, 20000):  # until the run was entered, on a busy machine too
            worker.execute(f"SET statement_timeout = {patience}")
            with pytest.raises(errors.QueryCanceled):
                worker.execute(f"CALL llm_train_run('m', {steps}, commit_every => {steps})")
            if sql("SELECT n_steps = %s FROM llm_run ORDER BY run_id DESC LIMIT 1", steps):
                break
    assert sql("SELECT array_agg(status ORDER BY run_id) FROM llm_run WHERE run_id > %s", run) == [
        "abandoned",
        "running",
    ]
    assert sql("SELECT run_id FROM llm_checkpoint WHERE id = %s", save(sql, "m")) == run
    assert sql("SELECT note FROM llm_replay(%s)", run).endswith("llm_param compared")


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


def test_a_path_in_the_place_of_a_note_is_told_of(connect, model):
    """The checkpoint is no file, though it was meant to be one."""
    conn, told = connect(), []
    conn.add_notice_handler(lambda notice: told.append(notice.message_primary))
    conn.execute("SELECT llm_checkpoint_save('m', 'before the .npz came'), llm_checkpoint_save('m', 'a/b')")
    assert told == []
    conn.execute("SELECT llm_checkpoint_save('m', '/backup/m.npz')")
    assert told == [
        'it is saved in the database, and "/backup/m.npz" is its note: with file_path => it is saved in a file'
    ]


def test_moments_are_those_of_the_rows_in_every_style(conn, sql, saved):
    """Moscow had an hour twice when it changed its MSK: such a style does not write which one, and the later is read."""
    history = "SELECT h.at = c.created_at FROM llm_param_history('m', 'wte') AS h JOIN llm_checkpoint AS c"
    with conn.transaction(force_rollback=True):
        sql("UPDATE llm_checkpoint SET created_at = '2014-10-26 01:30+04' RETURNING id")
        sql("SET LOCAL timezone = 'Europe/Moscow'")
        sql("SET LOCAL datestyle = 'Postgres, DMY'")
        assert sql("SELECT created_at::text::timestamptz <> created_at FROM llm_checkpoint")
        assert sql("SELECT l.created_at = c.created_at FROM llm_checkpoint_list('m') AS l, llm_checkpoint AS c")
        assert sql(f"{history} ON c.id = h.checkpoint_id")


@pytest.mark.parametrize("suffix", [None, ".safetensors"])
def test_a_configuration_is_saved_with_all_its_digits(conn, sql, model, server_files, suffix):
    """Whatever the session does to floats that become text."""
    epsilon, alpha = 1.2345678912345678e-05, 3.5355339059327378
    sql("UPDATE llm_model_config SET layer_norm_epsilon = %s WHERE model = 'm' RETURNING 1", epsilon)
    sql("SELECT llm_adapter_create('of m', 'm', r => 2, alpha => %s)", alpha)
    with conn.transaction():
        sql("SELECT set_config('extra_float_digits', '-15', true)")
        for name in ("m", "of m"):
            save(sql, name, "", suffix and str(server_files / f"{name}{suffix}"))
        assert sql("SHOW extra_float_digits") == "-15"
    found = conn.execute(
        "SELECT (config ->> 'layer_norm_epsilon')::float8, (config -> 'adapter' ->> 'alpha')::float8 FROM llm_checkpoint"
        " ORDER BY id"
    ).fetchall()
    assert found == [(epsilon, None), (epsilon, alpha)]
    sql("SELECT llm_drop_model('of m')")
    for file in server_files.glob(f"*m{suffix}"):
        file.unlink()


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
    for milliseconds in (*range(2, 80, 3), 60_000):  # the last is enough on a busy machine, too
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
