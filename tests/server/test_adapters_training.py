"""Training adapters: runs and steps by hand, beside a base that others use and change; gradients, tapes, replay."""

import contextlib
import threading
import time

import psycopg
import pytest
from psycopg import rows

from tests.server.adapters import GENERATE, LOGITS, PLACES, STATE, base_and_adapters, make, outside, train  # noqa: F401

STEP = "SELECT llm_train_step('a', lr_max => 0.05, warmup => 0, seed => 3)"
RUN = (
    "CALL llm_train_run('a', {steps}, batch_size => 2, lr_max => 0.01, commit_every => 1, flush_seconds => 0, seed => 5,"
    " dropout_p => 0.1{more})"
)


def replayed(conn: psycopg.Connection, run: object) -> tuple:
    with conn.cursor(row_factory=rows.namedtuple_row) as cursor:
        return cursor.execute("SELECT * FROM llm_replay(%s)", [run]).fetchone()


def test_a_committing_run_is_the_run_in_one_transaction(sql, models):
    make(sql, "c", 1)
    places = sql(PLACES, "a")
    sql("SELECT llm_train('c', 4, batch_size => 2, lr_max => 0.01, seed => 5, dropout_p => 0.1, log_every => 0)")
    sql(RUN.format(steps=4, more=""))
    assert sql(STATE, "a") == sql(STATE, "c")
    assert sql(PLACES, "a").startswith(places[:200])
    assert sql("SELECT max(step) FROM llm_param WHERE model = 'base'") == 0
    assert sql("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'") == 0


def test_a_cancelled_run_goes_on_to_the_same_bits(sql, connect, models):
    make(sql, "c", 1)
    sql("SELECT llm_train('c', 40, batch_size => 2, lr_max => 0.01, seed => 5, dropout_p => 0.1, log_every => 0)")
    worker = connect()

    def work() -> None:
        with contextlib.suppress(psycopg.Error):
            worker.execute(RUN.format(steps=40, more=""))

    thread = threading.Thread(target=work)
    thread.start()
    while sql("SELECT coalesce(max(step), 0) FROM llm_param WHERE model = 'a'") < 3 and thread.is_alive():
        time.sleep(0.005)
    sql("SELECT pg_terminate_backend(%s)", worker.info.backend_pid)
    thread.join()
    assert 3 <= sql("SELECT max(step) FROM llm_param WHERE model = 'a'") < 40
    sql(RUN.format(steps=40, more=""))
    assert sql(STATE, "a") == sql(STATE, "c")
    assert sql("SELECT count(*) FROM llm_run WHERE model = 'a'") == 1


def test_the_best_weights_of_an_adapter_are_kept(sql, models):
    sql("UPDATE llm_dataset SET split = 'val' WHERE id % 3 = 0")
    make(sql, "c", 1)
    keys = """, eval_every => 2, options => '{"keep_best": true, "patience": 2}'"""
    sql(
        f"SELECT llm_train('c', 30, batch_size => 2, lr_max => 0.01, seed => 5, dropout_p => 0.1, log_every => 0{keys})"
    )
    sql(RUN.format(steps=30, more=keys))
    assert sql(STATE, "a") == sql(STATE, "c")
    assert sql("SELECT array_agg(DISTINCT status) FROM llm_run") != ["running"]
    assert sql("SELECT count(*) FROM llm_checkpoint_blob") == 0


def test_a_run_notices_a_changed_base_at_its_commit(sql, connect, models):
    failed: list[psycopg.Error] = []
    worker = connect()

    def work() -> None:
        try:
            worker.execute(RUN.format(steps=400, more=", log_every => 0"))
        except psycopg.Error as error:
            failed.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    while sql("SELECT coalesce(max(step), 0) FROM llm_param WHERE model = 'a'") < 2 and thread.is_alive():
        time.sleep(0.005)
    outside(sql, "base")
    thread.join()
    assert [(error.sqlstate, '"base", the base of adapter "a"' in str(error)) for error in failed] == [("22000", True)]
    assert 2 <= sql("SELECT max(step) FROM llm_param WHERE model = 'a'") < 400


def test_a_base_that_was_only_moved_is_the_same(sql, connect, models):
    """VACUUM FULL of llm_param between the commits of a run."""
    make(sql, "c", 1)
    sql("SELECT llm_train('c', 60, batch_size => 2, lr_max => 0.01, seed => 5, dropout_p => 0.1, log_every => 0)")
    worker = connect()
    thread = threading.Thread(target=lambda: worker.execute(RUN.format(steps=60, more="")))
    thread.start()
    while sql("SELECT coalesce(max(step), 0) FROM llm_param WHERE model = 'a'") < 2 and thread.is_alive():
        time.sleep(0.005)
    sql("VACUUM FULL llm_param")
    thread.join()
    assert sql(STATE, "a") == sql(STATE, "c")


def test_a_run_records_its_base_and_is_replayed(sql, conn, models):
    train(sql, "base", 2)
    run = train(sql, "a", 3, dropout_p=0.1)
    recorded = sql("SELECT config -> 'base' FROM llm_run WHERE run_id = %s", run)
    assert recorded["model"] == "base"
    assert recorded["digest"] == sql(
        "SELECT weights_digest FROM llm_train_log WHERE model = 'base' ORDER BY step DESC LIMIT 1"
    )
    assert replayed(conn, run) == (1, 3, None, None, None, None, True, "from llm_adapter_create; llm_param compared")
    sql("VACUUM FULL llm_param")
    assert replayed(conn, run).what is None
    outside(sql, "base")
    found = replayed(conn, run)
    assert (found.what, found.recorded) == ('weights of its base "base"', recorded["digest"])
    assert found.replayed not in (None, recorded["digest"])


def test_a_run_is_replayed_from_a_checkpoint(sql, conn, models):
    train(sql, "a", 2)
    sql("SELECT llm_checkpoint_save('a')")
    assert replayed(conn, train(sql, "a", 3)).what is None


def test_steps_by_hand_are_a_run_that_a_changed_base_ends(sql, conn, models):
    for _ in range(3):
        sql(STEP)
    manual = sql("SELECT run_id FROM llm_run WHERE model = 'a' AND status = 'manual'")
    assert sql("SELECT count(*) FROM llm_train_log WHERE run_id = %s", manual) == 3
    assert sql("SELECT config -> 'base' ->> 'model' FROM llm_run WHERE run_id = %s", manual) == "base"
    assert replayed(conn, manual).what is None
    sql("VACUUM FULL llm_param")
    sql(STEP)
    assert sql("SELECT count(*) FROM llm_run WHERE model = 'a'") == 1
    outside(sql, "base")
    sql(STEP)
    assert sql("SELECT count(*) FROM llm_run WHERE model = 'a'") == 2
    assert sql("SELECT status FROM llm_run WHERE run_id = %s", manual) == "finished"


def test_a_resumed_run_begins_anew_on_another_base(sql, connect, models):
    """An interrupted run goes on only where the base is what it was."""
    notices: list[str] = []
    conn = connect()
    conn.add_notice_handler(lambda found: notices.append(found.message_primary or ""))
    sql(
        "INSERT INTO llm_run (model, config, seed, status, first_step, n_steps, weights_digest, environment)"
        " SELECT 'a', '{\"base\": {\"model\": \"base\", \"digest\": \"other\"}}', 5, 'running', 0, 4, 'x', '{}'"
    )
    conn.execute(RUN.format(steps=2, more=""))
    assert any("the weights of the base are not what they were" in told for told in notices)


def test_training_keeps_the_state_of_what_it_trains(sql, models):
    """Weights and moments of the adapter's own tensors, and of nothing else, from one step by hand to the next."""
    sql(STEP)
    own = sql("SELECT sum(octet_length(data)) FROM llm_param WHERE model = 'a'")
    assert sql("SELECT bytes FROM llm_cache_status() WHERE kind = 'training'") == 3 * own
    assert sql("SELECT count(*) FROM llm_param WHERE model = 'base' AND (m IS NOT NULL OR grad IS NOT NULL)") == 0


def test_gradients_by_hand_are_those_of_the_adapter(sql, conn, models):
    """Recorded, differentiated, checked by finite differences, and added to its own rows only."""
    train(sql, "a")
    with conn.transaction():
        sql("SET LOCAL pg_gpt2.autograd = on")
        sql("SELECT llm_loss('a', '{1,2,3}', '{2,3,4}', training => false)")
        ops = sql("SELECT array_agg(DISTINCT name) FROM llm_tape WHERE tape_id = llm_tape_id()")
        assert {"matmul", "addmm"} <= set(ops)
        sql("SELECT llm_backprop(model => 'a')")
        named = sql("""
            SELECT array_agg(DISTINCT m.name ORDER BY m.name)
            FROM llm_tensor_map AS m JOIN llm_tensor_rt AS t ON t.id = m.tensor_id
            WHERE m.tape_id = llm_tape_id() AND t.tape_id = m.tape_id AND t.grad IS NOT NULL
        """)
        own = sql("SELECT array_agg(name ORDER BY name) FROM llm_param WHERE model = 'a'")
        assert named == own
        last = sql("SELECT max(output) FROM llm_tape WHERE tape_id = llm_tape_id()")
        assert sql("SELECT bool_and(ok) FROM llm_gradcheck(%s)", last) is True
        places = sql(PLACES, "a")
        assert sql("SELECT llm_accumulate_grads('a')") == 8
        assert sql(PLACES, "a") == places
        assert sql("SELECT count(*) FROM llm_param WHERE model = 'a' AND grad IS NOT NULL") == 8


def test_a_tensor_of_the_base_that_is_mapped_by_hand_gets_no_gradient(sql, conn, models):
    with conn.transaction():
        data = sql("SELECT data FROM llm_param WHERE (model, name) = ('base', 'ln_f.bias')")
        sql("SELECT pg_llm_autograd_map_param('a', 'ln_f.bias', 0, %s)", data)
        sql("SET LOCAL pg_gpt2.autograd = on")
        sql("SELECT llm_loss('a', '{1,2,3}', '{2,3,4}', training => false)")
        sql("SELECT llm_backprop(model => 'a')")
        assert sql("SELECT llm_accumulate_grads('a')") == 8
        assert sql("SELECT count(*) FROM llm_param WHERE model = 'base' AND grad IS NOT NULL") == 0


@pytest.mark.parametrize("level", ["none", "tape", "full"])
def test_every_audit_level_computes_the_same_and_records_the_adapter(sql, models, level):
    make(sql, "c", 1)
    train(sql, "c", 2, audit="'none'")
    run = train(sql, "a", 2, audit=f"'{level}'")
    assert sql(STATE, "a") == sql(STATE, "c")
    ops = sql("SELECT array_agg(DISTINCT name) FROM llm_tape WHERE run_id = %s", run)
    assert ops is None if level == "none" else {"matmul", "addmm"} <= set(ops)
    if level == "full":
        tape = sql("SELECT max(tape_id) FROM llm_tape WHERE run_id = %s", run)
        assert sql("SELECT count(*) FROM llm_replay_tape(%s)", tape) == 0
        assert "lora_A" in sql("SELECT llm_tape_dot(%s)", tape)


def test_dropout_of_the_adapter_is_its_own(sql, models):
    """Beside the run's, and none of it where nothing is trained."""
    sql(
        "SELECT llm_adapter_create('d', 'base', r => 2, targets => '{attn.c_attn,mlp.c_fc}', seed => 1, dropout_p => 0.5)"
    )
    make(sql, "c", 1)
    assert sql(LOGITS, "c") == sql(LOGITS, "d")
    train(sql, "c", 3, dropout_p=0)
    run = train(sql, "d", 3, dropout_p=0)
    assert sql(STATE, "c") != sql(STATE, "d")
    assert sql("SELECT (llm_replay(%s)).what", run) is None


def test_checkpoints_have_the_adapters_rows_only(sql, models, server_files):
    train(sql, "a")
    saved = sql("SELECT llm_checkpoint_save('a', 'first')")
    assert sql("SELECT count(*) FROM llm_checkpoint_part WHERE checkpoint_id = %s", saved) == 8
    own = sql("SELECT sum(octet_length(data) + octet_length(m) + octet_length(v)) FROM llm_param WHERE model = 'a'")
    assert sql("SELECT bytes FROM llm_checkpoint_list('a')") == own
    before, places = (sql(LOGITS, "a"), sql(STATE, "a")), sql(PLACES, "a")
    files = [server_files / f"adapter.{suffix}" for suffix in ("safetensors", "npz")]
    try:
        stored = [saved, *(sql("SELECT llm_checkpoint_save('a', file_path => %s)", str(path)) for path in files)]
        assert all(path.stat().st_size < 20_000 for path in files)
        for checkpoint in stored:
            train(sql, "a")
            assert sql("SELECT count(*) FROM llm_checkpoint_diff(%s) WHERE changed", checkpoint) == 8
            sql("SELECT llm_checkpoint_load('a', %s)", checkpoint)
            assert (sql(LOGITS, "a"), sql(STATE, "a")) == before
            assert sql("SELECT count(*) FROM llm_checkpoint_diff(%s) WHERE changed", checkpoint) == 0
        assert sql(PLACES, "a") == places
        assert (
            sql("SELECT count(*) FROM llm_param_history('a', 'h.0.attn.c_attn.lora_B') WHERE event = 'checkpoint'") == 3
        )
        sql("DELETE FROM llm_checkpoint WHERE file_path IS NOT NULL")
        attached = sql("SELECT llm_checkpoint_attach(%s, 'b')", str(files[0]))
        sql("SELECT llm_checkpoint_load('b', %s)", attached)
        assert sql(LOGITS, "b") == before[0]
    finally:
        for path in files:
            path.unlink(missing_ok=True)


def test_a_checkpoint_brings_back_rank_and_targets(sql, models):
    train(sql, "a")
    saved = sql("SELECT llm_checkpoint_save('a')")
    before = sql(LOGITS, "a")
    sql("SELECT llm_drop_model('b')")
    sql("SELECT llm_adapter_create('b', 'base', r => 1, alpha => 3)")
    sql("UPDATE llm_checkpoint SET model = 'b' WHERE id = %s", saved)
    sql("UPDATE llm_checkpoint_blob SET model = 'b'")
    sql("SELECT llm_checkpoint_load('b', %s)", saved)
    assert sql(LOGITS, "b") == before
    assert sql("SELECT count(DISTINCT (r, alpha, targets)) FROM llm_adapter") == 1


def test_a_checkpoint_of_an_adapter_goes_into_adapters_only(sql, models):
    saved = sql("SELECT llm_checkpoint_save('a')")
    whole = sql("SELECT llm_checkpoint_save('base')")
    for checkpoint, model in ((saved, "base"), (whole, "a")):
        sql("UPDATE llm_checkpoint SET model = %s WHERE id = %s", model, checkpoint)
        before = sql(LOGITS, model)
        with pytest.raises(psycopg.Error, match="adapter") as caught:
            sql("SELECT llm_checkpoint_load(%s, %s)", model, checkpoint)
        assert caught.value.sqlstate == "55000"
        assert sql(LOGITS, model) == before
