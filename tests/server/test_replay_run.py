"""llm_replay: an honest run agrees with its record to the last bit; what was altered is found and named."""

from collections.abc import Callable, Iterator

import psycopg
import pytest
from psycopg import errors, rows

FLIPPED = "set_byte({0}, octet_length({0}) / 2, get_byte({0}, octet_length({0}) / 2) # 1)"
Sql = Callable[..., object]


@pytest.fixture
def replay(conn: psycopg.Connection) -> Callable[..., object]:
    """`replay(run_id, ...)`: the row of llm_replay, by the names of its columns."""

    def call(run: object, *arguments: object) -> object:
        places = ", ".join(["%s"] * (1 + len(arguments)))
        with conn.cursor(row_factory=rows.namedtuple_row) as cursor:
            return cursor.execute(f"SELECT * FROM llm_replay({places})", [run, *arguments]).fetchone()

    return call


@pytest.fixture
def model(sql: Sql) -> Iterator[str]:
    """A small model with data, as llm_init_model made it."""
    sql("SELECT llm_init_model('m', 2, 2, 16, 16, 50, seed => 3)")
    sql("""
        INSERT INTO llm_dataset (model, split, tokens, target)
        SELECT 'm', CASE WHEN n > 26 THEN 'val' ELSE 'train' END, ARRAY[n, 1, 2, 3, 4], ARRAY[1, 2, 3, 4, 5]
        FROM generate_series(6, 30) n
    """)
    yield "m"
    sql("SELECT llm_drop_model('m')")
    sql("SELECT llm_drop_model(model) FROM llm_models WHERE NOT preset")


def train(sql: Sql, steps: int = 6, model: str = "m", **more: object) -> object:
    options = "".join(f", {name} => {value}" for name, value in more.items())
    return sql(
        f"SELECT llm_train(%s, %s, batch_size => 2, grad_accum => 2, lr_max => 0.01, log_every => 0, eval_every => 3{options})",
        model,
        steps,
    )


def test_an_honest_run_agrees_from_the_seed_of_its_weights(sql, replay, model):
    found = replay(train(sql))
    assert found == (1, 6, None, None, None, None, True, "from llm_init_model; llm_param compared")


def test_replay_writes_nothing_and_runs_read_only(conn, sql, replay, model):
    run = train(sql)
    conn.execute("BEGIN READ ONLY")
    assert replay(run).what is None
    conn.execute("ROLLBACK")


def test_threads_and_settings_of_the_session_change_nothing(sql, replay, model):
    run = train(sql)
    sql("SET pg_gpt2.threads = 1")
    sql("SET pg_gpt2.attention_chunk = 2")
    assert replay(run)[2:] == (None, None, None, None, True, "from llm_init_model; llm_param compared")


@pytest.mark.parametrize("ran", ["on", "off"])
@pytest.mark.parametrize("audit", ["none", "tape"])
def test_the_forms_of_ops_that_a_run_was_computed_by_are_a_part_of_its_environment(sql, replay, model, ran, audit):
    """With pg_gpt2.fast as it was, every bit is compared, whatever was recorded; otherwise it says that bits may differ."""
    sql(f"SET pg_gpt2.fast = {ran}")
    run = train(sql, audit=f"'{audit}'")
    same = replay(run)
    assert (same.what, same.exact) == (None, True)
    sql(f"SET pg_gpt2.fast = {'on' if ran == 'off' else 'off'}")
    other = replay(run)
    assert (other.what, other.exact) == (None, False)
    assert "fast differ from the run's" in other.note


def test_a_run_is_replayed_from_a_checkpoint_of_its_start(sql, replay, model, server_files):
    train(sql, 2)
    saved = sql("SELECT llm_checkpoint_save('m')")
    run = train(sql)
    assert replay(run).note == f"from checkpoint {saved}; llm_param compared"
    sql("SELECT llm_checkpoint_drop(%s)", saved)
    with pytest.raises(errors.ObjectNotInPrerequisiteState, match="cannot be replayed") as caught:
        replay(run)
    assert "llm_checkpoint_save" in caught.value.diag.message_hint


@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
def test_a_run_is_replayed_from_a_file(sql, replay, model, server_files, suffix):
    train(sql, 2)
    path = server_files / f"replay{suffix}"
    saved = sql("SELECT llm_checkpoint_save('m', '', %s)", str(path))
    run = train(sql)
    assert replay(run, saved)[2:4] == (None, None)
    path.unlink()


def test_a_fork_is_replayed_from_the_checkpoint_it_was_made_of(sql, replay, model):
    train(sql, 2)
    saved = sql("SELECT llm_checkpoint_save('m')")
    sql("SELECT llm_copy_model('m', 'fork', %s)", saved)
    sql("UPDATE llm_dataset SET model = NULL")
    run = train(sql, model="fork")
    assert replay(run)[2:] == (None, None, None, None, True, f"from checkpoint {saved}; llm_param compared")
    sql("UPDATE llm_dataset SET model = 'm'")


def test_a_resumed_run_is_replayed_whole_and_from_a_checkpoint_on_its_way(sql, conn, connect, replay, model):
    call = "CALL llm_train_run('m', 200, batch_size => 2, commit_every => 1, flush_seconds => 0, log_every => 0)"
    worker = connect()
    for patience in (700, 2000, 6000, 20000):  # until a step was committed, on a busy machine too
        worker.execute(f"SET statement_timeout = {patience}")
        with pytest.raises(errors.QueryCanceled):
            worker.execute(call)
        if sql("SELECT count(*) FROM llm_train_log AS l JOIN llm_run AS r USING (run_id) WHERE r.model = 'm'"):
            break
    worker.execute("SET statement_timeout = 0")
    saved = sql("SELECT llm_checkpoint_save('m')")
    worker.execute(call)
    run = sql("SELECT max(run_id) FROM llm_run WHERE model = 'm'")
    assert sql("SELECT count(*) FROM llm_run WHERE model = 'm'") == 1
    step = sql("SELECT step FROM llm_checkpoint WHERE id = %s", saved)
    assert 0 < step < 200
    assert replay(run)[:4] == (1, 200, None, None)
    assert replay(run, saved)[:4] == (step + 1, 200, None, None)
    assert replay(run, saved, step + 1)[:4] == (step + 1, step + 1, None, None)
    # Without the seed there is only this checkpoint.
    sql("UPDATE llm_model_config SET init_seed = NULL WHERE model = 'm'")
    assert replay(run)[:4] == (step + 1, 200, None, None)


LOG = {
    "lr": "lr = lr * (1 + 1e-15)",
    "loss": "loss = loss * (1 + 1e-15)",
    "grad_norm": "grad_norm = grad_norm * (1 + 1e-15)",
    "tokens": "tokens = tokens # 1",
    "val_loss": "val_loss = val_loss * (1 + 1e-15)",
    "batch": "batch = batch[2:] || batch[1]",
    "batch_digest": "batch_digest[2] = batch_digest[2] # 1",
    "weights_digest": "weights_digest = translate(weights_digest, '0123456789', '1234567890')",
    "model": "model = 'n'",
}


@pytest.mark.parametrize("column", LOG)
def test_an_altered_row_of_the_log_is_named(sql, conn, replay, model, column):
    run = train(sql)
    step = 6 if column in ("weights_digest", "val_loss") else 4
    sql(f"UPDATE llm_train_log SET {LOG[column]} WHERE run_id = %s AND step = %s", run, step)
    found = replay(run)
    assert (found.last_step, found.step, found.what, found.exact) == (step, step, column, True)
    assert found.recorded != found.replayed
    sql("UPDATE llm_train_log SET model = 'm' WHERE run_id = %s", run)


@pytest.mark.parametrize("column", ["tokens", "target"])
def test_an_altered_row_of_the_data_is_named(sql, replay, model, column):
    run = train(sql)
    row = sql("SELECT batch[3] FROM llm_train_log WHERE run_id = %s AND step = 4", run)
    first = sql("SELECT min(step) FROM llm_train_log WHERE run_id = %s AND %s = ANY (batch)", run, row)
    sql(f"UPDATE llm_dataset SET {column}[2] = {column}[2] # 1 WHERE id = %s", row)
    found = replay(run)
    assert (found.step, found.what) == (first, f"llm_dataset row {row}")


@pytest.mark.parametrize("change", ["tokens[1] = 50", "tokens = '{1,2,NULL}', target = '{1,2,3}'"])
def test_data_that_cannot_be_learned_from_any_more_are_named(sql, replay, model, change):
    run = train(sql)
    row = sql("SELECT batch[1] FROM llm_train_log WHERE run_id = %s AND step = 1", run)
    sql(f"UPDATE llm_dataset SET {change} WHERE id = %s", row)
    found = replay(run)
    assert (found.step, f"row {row} of llm_dataset" in found.what) == (1, True)


def test_a_deleted_row_of_the_data_is_named(sql, replay, model):
    run = train(sql)
    row = sql("SELECT batch[1] FROM llm_train_log WHERE run_id = %s AND step = 1", run)
    sql("DELETE FROM llm_dataset WHERE id = %s", row)
    assert (replay(run).step, replay(run).what) == (1, f"llm_dataset has no row {row}")


def test_rows_added_since_do_not_matter_and_are_told(sql, replay, model):
    run = train(sql)
    sql("INSERT INTO llm_dataset (model, tokens, target) VALUES ('m', '{1}', '{2}')")
    found = replay(run)
    assert (found.step, found.last_step) == (None, 6)
    assert "not the rows that these steps read" in found.note


@pytest.mark.parametrize("column", ["data", "m", "v"])
def test_an_altered_weight_or_moment_is_named(sql, replay, model, column):
    run = train(sql)
    name = "h.1.mlp.c_fc.weight"
    sql(f"UPDATE llm_param SET {column} = {FLIPPED.format(column)} WHERE model = 'm' AND name = %s", name)
    found = replay(run)
    assert (found.step, found.what) == (6, f'llm_param: tensor "{name}", block 0, {column}')


@pytest.mark.parametrize("when", ["start", "end"])
def test_an_altered_weight_of_a_checkpoint_is_named(sql, replay, model, when):
    saved = when == "start" and sql("SELECT llm_checkpoint_save('m')")
    run = train(sql)
    saved = saved or sql("SELECT llm_checkpoint_save('m')")
    sql(
        f"UPDATE llm_checkpoint_blob SET data = {FLIPPED.format('data')} WHERE digest ="
        " (SELECT data FROM llm_checkpoint_part WHERE checkpoint_id = %s AND name = 'wpe')",
        saved,
    )
    found = replay(run)
    assert found.step == (0 if when == "start" else 6)
    assert found.what.startswith(f'checkpoint {saved} is damaged: tensor "wpe", block 0')


def test_a_checkpoint_with_other_weights_than_the_run_had_is_named(sql, replay, model):
    run = train(sql)
    sql(f"UPDATE llm_param SET data = {FLIPPED.format('data')} WHERE model = 'm' AND name = 'wpe'")
    saved = sql("SELECT llm_checkpoint_save('m')")
    assert (replay(run).step, replay(run).what) == (6, f'checkpoint {saved}: tensor "wpe", block 0, data')


def test_other_weights_at_the_start_are_told(sql, replay, model):
    sql(f"UPDATE llm_param SET data = {FLIPPED.format('data')} WHERE model = 'm' AND name = 'wpe'")
    wrong = sql("SELECT llm_checkpoint_save('m')")
    sql(f"UPDATE llm_param SET data = {FLIPPED.format('data')} WHERE model = 'm' AND name = 'wpe'")
    run = train(sql)
    assert replay(run).note.startswith("from llm_init_model")  # and not from a checkpoint that does not fit
    found = replay(run, wrong)
    assert (found.step, found.what) == (0, f"weights of checkpoint {wrong}")


def test_under_another_environment_bits_may_differ_within_a_tolerance(sql, replay, model):
    run = train(sql)
    sql("""UPDATE llm_run SET environment = environment || '{"processor": "another"}' WHERE run_id = %s""", run)
    found = replay(run)
    assert (found.step, found.exact) == (None, False)
    assert found.note.endswith("processor differ from the run's, so compared within 0.001 relative: no bit differs")
    sql("UPDATE llm_train_log SET loss = loss * (1 + 1e-5) WHERE run_id = %s AND step = 3", run)
    assert replay(run).note.endswith("bits differ from step 3 on")
    assert replay(run).what is None
    sql("UPDATE llm_train_log SET loss = loss * 1.01 WHERE run_id = %s AND step = 3", run)
    assert (replay(run).step, replay(run).what) == (3, "loss")


def test_steps_that_the_log_has_lost_are_counted(sql, replay, model):
    run = train(sql)
    sql("DELETE FROM llm_train_log WHERE run_id = %s AND step IN (2, 3)", run)
    assert replay(run).note == "from llm_init_model; llm_param compared; 2 steps are not in llm_train_log any more"


def test_layers_that_share_a_tensor_are_replayed_as_one(sql, replay, model):
    sql("SELECT llm_init_model('source', 2, 2, 16, 16, 50, seed => 5)")
    for layer in (0, 1):
        sql("SELECT llm_share_param('source', 'h.0.mlp.c_fc.weight', 0, 'm', %s)", f"h.{layer}.mlp.c_fc.weight")
    saved = sql("SELECT llm_checkpoint_save('m')")
    run = train(sql)
    assert replay(run)[2:] == (None, None, None, None, True, f"from checkpoint {saved}; llm_param compared")


def test_what_cannot_be_replayed_says_so(sql, replay, model):
    wanted = sql("SELECT llm_checkpoint_save('m')")
    run = train(sql, 3)
    sql("SELECT llm_init_model('other', 2, 2, 16, 16, 50, seed => 3)")
    foreign = sql("SELECT llm_checkpoint_save('other')")
    after = sql("SELECT llm_checkpoint_save('m')")
    for arguments, sqlstate in (
        ((None,), "22004"),
        ((-1,), "42704"),
        ((run, -1), "42704"),
        ((run, foreign), "22023"),
        ((run, after), "22023"),
        ((run, wanted, 0), "22023"),
        ((run, wanted, 4), "22023"),
    ):
        with pytest.raises(psycopg.Error) as caught:
            replay(*arguments)
        assert (arguments, caught.value.sqlstate) == (arguments, sqlstate)
        assert caught.value.diag.message_hint


# --- steps by hand ----------------------------------------------------------------------------------------------------------

BY_HAND = (
    "SELECT llm_train_step('m', lr_max => 0.02, seed => 9)",
    "SELECT llm_train_step('m', batch => ARRAY(SELECT id::integer FROM llm_dataset WHERE split = 'train' LIMIT 3), wd => 0.3)",
    "SELECT llm_train_step('m', beta1 => 0.8, warmup => 2, total_steps => 9, min_lr => 0.001, grad_clip => 0.1)",
)


def by_hand(sql: Sql, *statements: str) -> object:
    """The manual run that these steps belong to."""
    for statement in statements or BY_HAND:
        sql(statement)
    return sql("SELECT max(run_id) FROM llm_run WHERE model = 'm' AND n_steps IS NULL")


def test_steps_by_hand_are_replayed_each_with_its_parameters(sql, replay, model):
    run = by_hand(sql)
    assert replay(run) == (1, 3, None, None, None, None, True, "from llm_init_model; llm_param compared")
    assert replay(run, None, 2)[:4] == (1, 2, None, None)
    by_hand(sql, "SET pg_gpt2.attention_chunk = 2", BY_HAND[0], "RESET pg_gpt2.attention_chunk", BY_HAND[1])
    assert replay(run)[:4] == (1, 5, None, None)


def test_a_manual_run_ends_when_something_else_changes_the_weights(sql, conn, replay, model):
    """So that its steps follow one another; what is rolled back has changed nothing."""
    run = by_hand(sql)
    with conn.transaction(force_rollback=True):
        by_hand(sql)
    assert by_hand(sql) == run
    for change in (
        "SELECT llm_train('m', 1, log_every => 0)",
        "UPDATE llm_param SET m = NULL WHERE model = 'm' AND name = 'wpe'",
    ):
        sql(change)
        saved = sql("SELECT llm_checkpoint_save('m')")
        later = by_hand(sql)
        assert later > run
        first = sql("SELECT min(step) FROM llm_train_log WHERE run_id = %s", later)
        found = replay(later)
        assert (found[:4], found.note) == (
            (first, first + 2, None, None),
            f"from checkpoint {saved}; llm_param compared",
        )
        assert replay(run)[:4] == (1, 6, None, None)
    assert sql("SELECT count(*) FROM llm_run WHERE model = 'm' AND status = 'manual'") == 1


def test_a_manual_run_goes_on_where_its_rows_are_only_moved(sql, conn, replay, model):
    run = by_hand(sql)
    sql("VACUUM FULL llm_param")
    assert by_hand(sql) == run
    sql("CLUSTER llm_param USING llm_param_pkey")
    assert by_hand(sql) == run
    with conn.transaction():  # as pg_repack, or a restore
        sql("CREATE TEMP TABLE copied AS TABLE llm_param")
        sql("DELETE FROM llm_param")
        sql("INSERT INTO llm_param SELECT * FROM copied")
        sql("DROP TABLE copied")
    assert by_hand(sql) == run
    assert replay(run) == (1, 12, None, None, None, None, True, "from llm_init_model; llm_param compared")


def test_steps_by_hand_are_replayed_from_a_checkpoint_on_their_way(sql, replay, model):
    by_hand(sql)
    saved = sql("SELECT llm_checkpoint_save('m')")
    run = by_hand(sql)
    assert replay(run, saved)[:4] == (4, 6, None, None)
    with pytest.raises(errors.InvalidParameterValue, match="already has step 3"):
        replay(run, saved, 3)


@pytest.mark.parametrize("column", ["lr", "loss", "grad_norm", "batch", "batch_digest"])
def test_an_altered_row_of_a_step_by_hand_is_named(sql, replay, model, column):
    run = by_hand(sql)
    sql(f"UPDATE llm_train_log SET {LOG[column]} WHERE run_id = %s AND step = 2", run)
    found = replay(run)
    # Nothing but the row says which rows the step read: what they hold is compared with what it says they held.
    what = "llm_dataset row " if column.startswith("batch") else column
    assert (found.step, found.what.startswith(what)) == (2, True)


@pytest.mark.parametrize(
    ("parameter", "what"),
    [
        ("dropout_p", "loss"),
        ("lr_max", "lr"),
        ("warmup", "lr"),
        ("grad_clip", "loss"),
        ("weight_decay", "llm_param"),
    ],
)
def test_an_altered_parameter_of_a_step_by_hand_is_found(sql, replay, model, parameter, what):
    run = by_hand(sql, BY_HAND[2], BY_HAND[2])
    step = 2 if parameter == "weight_decay" else 1
    sql(
        "UPDATE llm_train_log SET config = config || jsonb_build_object(%s::text, %s::numeric) WHERE run_id = %s AND step = %s",
        *(parameter, 3 if parameter == "warmup" else 0.5, run, step),
    )
    found = replay(run)
    assert found.what.startswith(what)
    assert found.step == (2 if parameter in ("grad_clip", "weight_decay") else 1)


@pytest.mark.parametrize(
    "config", ["'{}'", "NULL", "config - 'seed'", """config || '{"attention_chunk": 0}'""", "'[]'"]
)
def test_a_step_by_hand_without_its_parameters_cannot_be_replayed(sql, replay, model, config):
    run = by_hand(sql)
    sql(f"UPDATE llm_train_log SET config = {config} WHERE run_id = %s AND step = 2", run)
    with pytest.raises(errors.DataException, match=f"llm_train_log, run {run}, step 2: config"):
        replay(run)
    sql("DELETE FROM llm_train_log WHERE run_id = %s AND step = 2", run)
    with pytest.raises(errors.ObjectNotInPrerequisiteState, match="step 2 of run"):
        replay(run)


# --- the environments of a run ----------------------------------------------------------------------------------------------


def elsewhere(sql: Sql, run: object) -> None:
    """What is recorded of a run so far is of another machine."""
    sql("""UPDATE llm_run SET environment = environment || '{"numpy": "1.0"}' WHERE run_id = %s""", run)


def test_a_run_that_is_resumed_elsewhere_records_both_environments(sql, conn, connect, replay, model):
    call = "CALL llm_train_run('m', 300, batch_size => 2, commit_every => 1, flush_seconds => 0, log_every => 0)"
    worker = connect()
    worker.execute("SET pg_gpt2.attention_chunk = 2")
    # Loading the package may take longer than the timeout on a busy machine.
    worker.execute("SELECT * FROM llm_evaluate('m', 'train', 1)")
    worker.execute("SET statement_timeout = '700ms'")
    with pytest.raises(errors.QueryCanceled):
        worker.execute(call)
    run = sql("SELECT max(run_id) FROM llm_run")
    elsewhere(sql, run)
    done = sql("SELECT max(step) FROM llm_train_log WHERE run_id = %s", run)
    saved = sql("SELECT llm_checkpoint_save('m')")
    sql(call)  # with attention_chunk as this session has it
    first, resumed = conn.execute("SELECT environment, resumed FROM llm_run WHERE run_id = %s", [run]).fetchone()
    assert (first["numpy"], first["attention_chunk"]) == ("1.0", 2)
    assert [(one["after_step"], one["environment"]["attention_chunk"]) for one in resumed] == [(done, 64)]
    assert resumed[0]["environment"]["numpy"] != "1.0"
    whole, rest = replay(run), replay(run, saved)
    assert (whole[:4], whole.exact) == ((1, 300, None, None), False)
    assert "numpy differ from the run's" in whole.note
    assert (rest[:4], rest.exact) == ((done + 1, 300, None, None), True)


def test_steps_by_hand_elsewhere_record_their_environment(sql, conn, replay, model):
    run = by_hand(sql)
    elsewhere(sql, run)
    assert by_hand(sql) == by_hand(sql) == run
    (resumed,) = conn.execute("SELECT resumed FROM llm_run WHERE run_id = %s", [run]).fetchone()
    assert [one["after_step"] for one in resumed] == [3]
    assert not replay(run).exact
