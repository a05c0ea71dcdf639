"""Weight sharing: two models with one embedding read, train and save it as if each had its own, until one changes it."""

from collections.abc import Callable, Iterator

import psycopg
import pytest

Sql = Callable[..., object]
STATE = """
    SELECT md5(string_agg(row, ',' ORDER BY name, token_id)) FROM (
        SELECT name, token_id, concat_ws(' ', name, token_id, shape, step, md5(data), md5(m), md5(v), md5(grad)) AS row
        FROM llm_param_resolved WHERE model = %s) AS rows
"""
LOSS = "SELECT llm_loss(%s, ARRAY[1, 2, 3], ARRAY[2, 3, 4], training => false)"


@pytest.fixture
def models(sql: Sql) -> Iterator[None]:
    """`a` and `b`, of which `b` shares wte, two blocks in `a`; and `c`, as `b` but with a copy of its own."""
    sql("SELECT llm_init_model('a', 2, 2, 16, 16, 50, seed => 1)")
    sql("""
        INSERT INTO llm_param (model, name, token_id, shape, data)
        SELECT model, name, 20, '{30,16}', substr(data, 20 * 64 + 1) FROM llm_param WHERE model = 'a' AND name = 'wte'
    """)
    sql("""
        UPDATE llm_param SET shape = '{20,16}', data = substr(data, 1, 20 * 64)
        WHERE model = 'a' AND name = 'wte' AND token_id = 0
    """)
    sql("""
        INSERT INTO llm_dataset (tokens, target)
        SELECT ARRAY[n, 1, 2, 3, 4], ARRAY[1, 2, 3, 4, 5] FROM generate_series(6, 20) n
    """)
    sql("SELECT llm_init_model('b', 1, 4, 16, 16, 50, seed => 2)")
    assert sql("SELECT llm_share_param('a', 'wte', NULL, 'b')") == 2
    sql("SELECT llm_copy_model('b', 'c')")
    yield
    sql("DELETE FROM llm_param_share")
    sql("SELECT llm_drop_model(model) FROM llm_models WHERE NOT preset")
    sql("DELETE FROM llm_dataset")


def train(sql: Sql, model: str, steps: int = 2) -> object:
    return sql("SELECT llm_train(%s, %s, batch_size => 2, lr_max => 0.01, log_every => 0)", model, steps)


def wte(sql: Sql, model: str) -> object:
    return sql(
        "SELECT string_agg(data || m || v, '' ORDER BY token_id) FROM llm_param_resolved WHERE model = %s AND name = 'wte'",
        model,
    )


def test_a_shared_tensor_is_stored_once(sql, models):
    assert sql("SELECT count(*) FROM llm_param WHERE name = 'wte' AND model = 'b'") == 0
    assert sql("SELECT count(*) FROM llm_param_resolved WHERE name = 'wte' AND model = 'b' AND source_model = 'a'") == 2
    assert sql("SELECT count(*) FROM llm_param_share WHERE target_model = 'c'") == 0, "a copy shares nothing"


def test_training_the_target_is_training_a_model_of_its_own_and_lands_at_the_source(sql, models):
    train(sql, "b")
    train(sql, "c")
    assert sql(STATE, "b") == sql(STATE, "c")
    assert wte(sql, "a") == wte(sql, "c")
    assert sql("SELECT array_agg(DISTINCT step) FROM llm_param WHERE model = 'a' AND name = 'wte'") == [2]
    assert sql("SELECT array_agg(DISTINCT step) FROM llm_param WHERE model = 'a' AND name <> 'wte'") == [0]


def test_a_committing_run_trains_and_locks_both(sql, connect, models):
    for model in ("b", "c"):
        sql(f"CALL llm_train_run('{model}', 4, batch_size => 2, lr_max => 0.01, commit_every => 1, flush_seconds => 0)")
    assert sql(STATE, "b") == sql(STATE, "c")
    assert sql("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'") == 0
    holder = connect()
    with holder.transaction():
        holder.execute("SELECT llm_train_step('a')")
        with pytest.raises(psycopg.errors.LockNotAvailable, match='"a" is being trained'):
            sql("CALL llm_train_run('b', 1)")
    assert sql("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'") == 0


def test_layers_that_share_one_tensor_are_trained_as_one(sql, models):
    """As ALBERT's: one tensor in two places is updated once, by the sum of both gradients."""
    names = ("h.0.mlp.c_fc.weight", "h.1.mlp.c_fc.weight")
    sql("SELECT llm_init_model('deep', 2, 4, 16, 16, 50, seed => 9)")
    for name in names:
        sql("SELECT llm_share_param('a', 'h.0.mlp.c_fc.weight', 0, 'deep', %s)", name)
    before = sql(LOSS, "deep")
    source = sql("SELECT data FROM llm_param WHERE model = 'a' AND name = 'h.0.mlp.c_fc.weight'")
    train(sql, "deep", 3)
    assert sql(LOSS, "deep") < before
    assert sql("SELECT data FROM llm_param WHERE model = 'a' AND name = 'h.0.mlp.c_fc.weight'") != source
    assert sql("SELECT step FROM llm_param WHERE model = 'a' AND name = 'h.0.mlp.c_fc.weight'") == 3
    assert (
        sql("SELECT count(DISTINCT data) FROM llm_param_resolved WHERE model = 'deep' AND name = ANY (%s)", list(names))
        == 1
    )
    sql("SELECT llm_train_step('deep', audit => 'full')")
    for name in ("h.0.ln_1.weight", "h.0.ln_1.bias"):
        sql("SELECT llm_share_param('a', 'h.0.ln_2.weight', 0, 'deep', %s)", name)
    with pytest.raises(psycopg.errors.FeatureNotSupported):
        sql("SELECT llm_train_step('deep')")


def test_training_the_source_changes_what_open_sessions_read_of_the_target(sql, connect, models):
    other = connect()
    before = other.execute(LOSS, ["b"]).fetchone()
    assert before == other.execute(LOSS, ["c"]).fetchone()
    train(sql, "a")
    assert other.execute(LOSS, ["b"]).fetchone() != before
    assert other.execute(LOSS, ["c"]).fetchone() == before
    assert sql(LOSS, "b") == other.execute(LOSS, ["b"]).fetchone()[0]


def test_unshare_makes_a_copy_with_or_without_the_optimizer(sql, models):
    train(sql, "b")
    before, loss = sql(STATE, "b"), sql(LOSS, "b")
    assert sql("SELECT llm_unshare_param('b', 'wte', NULL)") == 2
    assert sql(STATE, "b") == before
    assert sql(LOSS, "b") == loss
    train(sql, "a")
    assert sql(STATE, "b") == before
    sql("SELECT llm_share_param('a', 'wte', 20, 'b')")
    sql("SELECT llm_unshare_param('b', 'wte', 20, copy_optimizer_state => false)")
    assert (
        sql("SELECT ROW(m, v, step)::text FROM llm_param WHERE model = 'b' AND name = 'wte' AND token_id = 20")
        == "(,,0)"
    )


def test_what_a_source_has_lost_is_told(sql, models):
    """By whatever would copy it, and by the doctor; its rows were deleted by hand."""
    finding = "SELECT value || ' ' || status FROM llm_doctor() WHERE item = 'model ' || %s"
    assert sql("SELECT status FROM llm_doctor() WHERE item = 'model a'") == "warn", "no vocabulary"
    sql("DELETE FROM llm_param WHERE model = 'a' AND name = 'wte' AND token_id = 20")
    for model in ("a", "b"):
        told = f'model "{model}": tensor "wte" has rows 0 to 20 of 50'
        assert sql(finding, model) == f"{told} error"
        with pytest.raises(psycopg.errors.DataException, match=told):
            sql(f"SELECT llm_copy_model('{model}', 'd')")
    sql("DELETE FROM llm_param WHERE model = 'a' AND name = 'wte'")
    with pytest.raises(psycopg.errors.DataException, match='shares tensor "wte" of "a", of which there are no rows'):
        sql("SELECT llm_unshare_param('b', 'wte', NULL)")
    assert sql("SELECT count(*) FROM llm_param_share WHERE target_model = 'b'") == 2
    sql("DELETE FROM llm_param_share")


def test_a_source_in_use_is_not_dropped(sql, conn, models):
    sql("SELECT llm_share_param('a', 'ln_f.bias', 0, 'c')")
    with pytest.raises(psycopg.Error, match='shares tensors with "b", "c"') as caught:
        sql("SELECT llm_drop_model('a')")
    assert caught.value.sqlstate == "2BP01"
    sql("SELECT llm_drop_model('b'), llm_drop_model('c')")
    sql("SELECT llm_drop_model('a')")


def test_sharing_what_is_shared_uses_the_first_source(sql, models):
    sql("SELECT llm_share_param('b', 'wte', NULL, 'c')")
    assert sql("SELECT array_agg(DISTINCT source_model) FROM llm_param_share") == ["a"]
    sql("SELECT llm_drop_model('b')")
    train(sql, "c")
    assert wte(sql, "a") == wte(sql, "c")


def test_a_shared_source_is_not_given_away(sql, conn, models):
    """Its row would go, and with it what others use."""
    sql("SELECT llm_init_model('d', 1, 4, 16, 16, 50)")
    with pytest.raises(psycopg.Error, match='"b"') as caught:
        sql("SELECT llm_share_param('d', 'wte', NULL, 'a')")
    assert caught.value.sqlstate == "2BP01"


def test_checkpoints_and_exports_have_the_shared_weights(sql, models, server_files):
    train(sql, "b")
    before, source = sql(STATE, "b"), sql(STATE, "a")
    one = sql("SELECT llm_checkpoint_save('b')")
    path = server_files / "shared.safetensors"
    two = sql("SELECT llm_checkpoint_save('b', '', %s)", str(path))
    exported = sql("SELECT md5(string_agg(c, '')) FROM llm_export_safetensors('b') c")
    for checkpoint in (one, two):
        sql("SELECT llm_checkpoint_load('b', %s)", checkpoint)
        assert sql("SELECT count(*) FROM llm_param_share") == 0, "after a load a model has its own"
        assert sql(STATE, "b") == before
        assert sql(STATE, "a") == source
        assert sql("SELECT md5(string_agg(c, '')) FROM llm_export_safetensors('b') c") == exported
        sql("SELECT llm_share_param('a', 'wte', NULL, 'b')")
    path.unlink()


def test_gradients_of_the_tape_go_to_the_source(sql, models):
    sql("SET pg_gpt2.autograd = on")
    sql("SET pg_gpt2.tape = 'session'")
    for model in ("b", "c"):
        sql("SELECT llm_materialize_params(%s)", model)
        sql(LOSS, model)
        sql("SELECT llm_backprop(NULL, %s)", model)
        sql("SELECT llm_accumulate_grads(%s)", model)
    assert sql(STATE, "b") == sql(STATE, "c")
    assert sql("SELECT count(*) FROM llm_param WHERE model = 'a' AND grad IS NOT NULL") == 2
    sql("SET pg_gpt2.autograd = off")


def test_an_embedding_is_read_through_the_share(sql, models):
    assert sql("SELECT llm_token_embedding(30, 'b')") == sql("SELECT llm_token_embedding(30, 'a')")


def test_the_target_is_locked_with_its_source(sql, connect, models):
    trainer, other = connect(), connect()
    other.execute("SET lock_timeout = '200ms'")
    with trainer.transaction():
        trainer.execute("SELECT llm_train_step('a')")
        with pytest.raises(psycopg.errors.LockNotAvailable):
            other.execute("SELECT llm_train_step('b')")
    other.execute("SELECT llm_train_step('b')")


def test_a_reader_needs_the_right_to_read_shared_rows(sql, conn, models):
    """Neither a function nor the view passes the policy of the source by."""
    sql("CREATE ROLE reader")
    sql("GRANT SELECT ON llm_model_config, llm_adapter, llm_param_resolved, llm_param, llm_param_share TO reader")
    sql("ALTER TABLE llm_param ENABLE ROW LEVEL SECURITY")
    try:
        sql("CREATE POLICY only_b ON llm_param TO reader USING (model = 'b')")
        sql("SET ROLE reader")
        with pytest.raises(psycopg.Error, match="wte") as caught:
            sql(LOSS, "b")
        assert caught.value.sqlstate == "22000"
        # PostgreSQL 14's views show a filtered role nothing.
        shown = ["b"] if conn.info.server_version >= 150000 else None
        assert sql("SELECT array_agg(DISTINCT source_model) FROM llm_param_resolved") == shown
    finally:
        sql("RESET ROLE")
        sql("DROP POLICY only_b ON llm_param")
        sql("ALTER TABLE llm_param DISABLE ROW LEVEL SECURITY")
        sql("DROP OWNED BY reader")
        sql("DROP ROLE reader")


def test_training_beside_many_adapters_compiles_no_statement(sql, connect, models):
    """What the planner takes for much work it compiles first, which took a second of every step by hand."""
    worker, plans = connect(), []
    worker.add_notice_handler(lambda told: plans.append(told.message_primary))
    try:
        sql("INSERT INTO llm_adapter (model, base, r, alpha, targets)"
            " SELECT 'x' || n, 'a', 1, 1, '{attn.c_attn}' FROM generate_series(1, 500) AS n")  # fmt: skip
        sql("INSERT INTO llm_param_share (source_model, source_name, target_model, target_name)"
            " SELECT 'a', 't' || k, 'x' || n, 't' || k FROM generate_series(1, 500) n, generate_series(1, 120) k")  # fmt: skip
        sql("ANALYZE llm_adapter, llm_param_share")
        worker.execute(
            "LOAD 'auto_explain'; SET auto_explain.log_nested_statements = on; SET auto_explain.log_analyze = on"
        )
        worker.execute("SET jit = on; SET plan_cache_mode = force_generic_plan; SET client_min_messages = log")
        worker.execute("SET auto_explain.log_min_duration = 0")
        for model in "abc":
            worker.execute("SELECT llm_train_step(%s)", [model])
    finally:
        sql("DELETE FROM llm_adapter")
    assert any("llm_param_share" in plan for plan in plans)
    assert [plan for plan in plans if "JIT:" in plan] == []


# --- what a replay and a history know of the models that share --------------------------------------------------------------


def replayed(sql: Sql, run: object) -> object:
    """Whether a replay of an honest run, which must agree, compared the model's weights of now with those that it left."""
    assert sql("SELECT what FROM llm_replay(%s)", run) is None
    return sql("SELECT note LIKE '%%llm_param compared%%' FROM llm_replay(%s)", run)


@pytest.mark.parametrize(
    "change",
    [
        "SELECT llm_train('a', 1, log_every => 0)",
        "SELECT llm_train_step('a')",
        "CALL llm_train_run('a', 1)",
        "SELECT llm_train('d', 1, log_every => 0)",
        "SELECT llm_train('a', 1, log_every => 0); SELECT llm_unshare_param('b', 'wte', NULL)",
        "SELECT llm_unshare_param('b', 'wte', NULL, copy_optimizer_state => false)",
        "SELECT llm_share_param('c', 'wpe', NULL, 'b')",
        "SELECT llm_checkpoint_load('a', min(id)) FROM llm_checkpoint WHERE model = 'a'",
        "SELECT llm_import_safetensors(string_agg(c, ''), 'a', true) FROM llm_export_safetensors('a') AS c",
        "INSERT INTO llm_param (model, name, token_id, shape, data) SELECT 'a', name, token_id, shape, data"
        " FROM llm_import_begin('a', (SELECT to_jsonb(c) - $${model,preset,init_seed,chat_template}$$::text[]"
        " FROM llm_model_config AS c WHERE model = 'a'), true)"
        " JOIN (SELECT name, string_agg(data, '' ORDER BY token_id) AS data FROM llm_param WHERE model = 'a' GROUP BY name) AS p"
        " USING (name)",
    ],
)
def test_what_sharing_changed_after_a_run_is_no_fault_of_the_run(sql, models, change):
    sql("SELECT llm_init_model('d', 1, 4, 16, 16, 50, seed => 2)")
    sql("SELECT llm_share_param('a', 'wte', NULL, 'd')")
    sql("SELECT llm_checkpoint_save('a')")
    sql("SELECT llm_checkpoint_save('b')")
    run = train(sql, "b")
    assert replayed(sql, run) is True
    sql(change)
    assert replayed(sql, run) is False
    saved = sql("SELECT llm_checkpoint_save('b')")
    assert replayed(sql, run) is False
    later = train(sql, "b")
    assert replayed(sql, later) is True
    assert sql("SELECT run_id IS DISTINCT FROM %s FROM llm_checkpoint WHERE id = %s", run, saved)


def test_a_source_is_loaded_and_imported_though_a_sharer_has_no_configuration(sql, models):
    """Its row was deleted by hand, or refused by a dump with --disable-triggers."""
    saved = sql("SELECT llm_checkpoint_save('a')")
    sql("DELETE FROM llm_model_config WHERE model = 'b'")
    assert sql("SELECT llm_checkpoint_load('a', %s)", saved) == 0
    sql("SELECT llm_import_safetensors(string_agg(c, ''), 'a', true) FROM llm_export_safetensors('a') AS c")
    assert sql("SELECT count(*) FROM llm_checkpoint_restore WHERE model = 'b' AND source = 'a'") == 3, (
        "and shared before"
    )
    sql("DELETE FROM llm_param_share")
    sql("SELECT llm_drop_model('b')")


@pytest.mark.parametrize(
    "change",
    [
        "SELECT llm_unshare_param('b', 'wte', NULL, copy_optimizer_state => false)",
        "UPDATE llm_param SET m = NULL, v = NULL WHERE model = 'b'",
        "SELECT 1",
    ],
)
def test_a_run_that_was_interrupted_does_not_go_on_with_other_moments(sql, models, change):
    """Its weights are the same, and another run begins there: a replay of both agrees. Nothing else is in its way."""
    sql("CREATE FUNCTION ends() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN RAISE 'here'; END$$")
    sql("CREATE TRIGGER ends BEFORE INSERT ON llm_train_log FOR EACH ROW WHEN (NEW.step > 4) EXECUTE FUNCTION ends()")
    run = "CALL llm_train_run('b', 8, batch_size => 2, lr_max => 0.01, commit_every => 2, flush_seconds => 0, log_every => 0)"
    sql("SELECT llm_checkpoint_save('b')")
    try:
        for _ in range(2):
            with pytest.raises(psycopg.Error, match="here"):
                sql(run)
    finally:
        sql("DROP FUNCTION ends CASCADE")
    sql(change)
    if "llm_param " not in change:  # what is changed by hand is not known to be no part of the run
        sql("SELECT llm_checkpoint_save('b')")
    sql(run)
    goes_on = change == "SELECT 1"
    assert sql("SELECT array_agg(status ORDER BY run_id) FROM llm_run WHERE model = 'b'") == (
        ["finished"] if goes_on else ["abandoned", "finished"]
    )
    for one in sql(
        "SELECT array_agg(run_id) FROM llm_run WHERE model = 'b' AND (first_step = 0 OR %s)", "share" in change
    ):
        assert sql("SELECT what FROM llm_replay(%s)", one) is None
    assert sql("SELECT jsonb_array_length(shared) FROM llm_run WHERE model = 'b' ORDER BY run_id LIMIT 1") == 1


def test_a_run_is_not_replayed_from_a_checkpoint_with_the_optimizer_state_of_before(sql, models):
    """Its weights are those that the run began with; the moments of one tensor are not, and the run would seem dishonest."""
    train(sql, "b")
    before = sql("SELECT llm_checkpoint_save('b')")
    sql("SELECT llm_unshare_param('b', 'wte', NULL, copy_optimizer_state => false)")
    run = train(sql, "b")
    with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState, match="cannot be replayed"):
        sql("SELECT llm_replay(%s)", run)
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="is of before tensors of the model were shared"):
        sql("SELECT llm_replay(%s, %s)", run, before)
    sql("SELECT llm_checkpoint_load('b', %s)", before)
    later = train(sql, "b")
    assert sql("SELECT what FROM llm_replay(%s)", later) is None
    assert sql("SELECT what FROM llm_replay(%s, %s)", later, before) is None


def test_a_copy_of_shared_rows_is_compared_as_they_were(sql, models):
    sql("SELECT llm_checkpoint_save('b')")
    run = train(sql, "b")
    sql("SELECT llm_unshare_param('b', 'wte', NULL)")
    train(sql, "a")
    assert replayed(sql, run) is True


def test_the_history_of_a_shared_tensor_has_the_runs_of_all_who_share_it(sql, conn, models):
    first = train(sql, "b", 3)
    second = train(sql, "a", 1)
    saved = sql("SELECT llm_checkpoint_save('b')")
    history = "SELECT event, run_id, first_step, last_step FROM llm_param_history('b', %s)"
    runs = [("run", first, 1, 3), ("run", second, 4, 4)]
    rest = [("checkpoint", second, None, 4), ("now", None, None, 4)]
    assert conn.execute(history, ["wte"]).fetchall() == runs + rest
    assert conn.execute(history, ["wpe"]).fetchall() == runs[:1] + rest
    assert sql("SELECT run_id FROM llm_checkpoint WHERE id = %s", saved) == second


def test_a_new_model_of_the_name_of_a_dropped_one_has_not_its_runs(sql, models):
    train(sql, "a")
    sql("SELECT llm_drop_model('b')")
    sql("SELECT llm_init_model('b', 1, 4, 16, 16, 50)")
    assert sql("SELECT run_id FROM llm_checkpoint WHERE id = llm_checkpoint_save('b')") is None
    assert sql("SELECT array_agg(event) FROM llm_param_history('b', 'wte')") == ["now"]


def test_steps_by_hand_before_and_after_sharing_are_two_runs(sql, models):
    for change in (
        "SELECT llm_unshare_param('b', 'wte', NULL)",
        "SELECT llm_share_param('a', 'wte', NULL, 'b')",
        "SELECT 1",
    ):
        sql("SELECT llm_train_step('a')")
        sql(change)
    sql("SELECT llm_train_step('a')")
    assert sql("SELECT array_agg(shared ORDER BY run_id) FROM llm_run WHERE model = 'a'") == [
        [{"name": "wte", "model": "b"}],
        [],
        [{"name": "wte", "model": "b"}],
    ]
