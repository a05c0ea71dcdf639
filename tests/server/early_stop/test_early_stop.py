"""patience, min_delta, keep_best, lr_schedule: when a run ends, which weights it leaves, and what is refused."""

import pytest
from psycopg import errors

from tests.server.early_stop.runs import (
    BEST,
    RUN,
    STATE,
    STEPS,
    call,
    evaluations,
    last_run,
    make_model,
    outcome,
    replayed,
)
from tests.server.test_train_run import one

# --- what is left -------------------------------------------------------------------------------------------------------


def test_patience_ends_a_run_and_keep_best_leaves_the_lowest_evaluation(conn, said):
    make_model(conn, "plain")
    conn.execute(call("plain", '{"warmup": 0}'))
    _, status, whole = outcome(conn, "plain")
    losses = evaluations(whole)
    best = min(losses, key=losses.__getitem__)
    assert status == "finished"
    assert 4 < best < STEPS - 12
    make_model(conn, "m")
    conn.execute(call("m"))
    _, status, log = outcome(conn, "m")
    assert (status, log) == ("early", whole[: best + 12])  # the same steps, as far as it went
    run = last_run(conn, "m")
    so_far = {step for step, loss in losses.items() if loss == min(list(losses.values())[: step // 4])}
    assert [f"step {step}/{STEPS}" for step in sorted(so_far)] == [
        text.split(":")[0] for text in said if "the best so far" in text
    ]
    assert f"run {run} ends early after step {best + 12}: 3 evaluations in a row without gain (patience)" in said
    assert said[-1].startswith(f"run {run} leaves the weights of step {best}: its validation loss, {losses[best]:.3f}")


@pytest.mark.parametrize("function", ["SELECT llm_train", RUN])
@pytest.mark.parametrize("sharing", ["none", "with another model", "tied"])
def test_what_is_left_is_the_model_as_it_was_with_its_optimizer(conn, function, sharing):
    """With a constant learning rate, a run of fewer steps is the beginning of a longer one."""
    constant = '{"keep_best": true, "warmup": 0, "lr_schedule": "constant"}'
    for name in ("long", "short"):
        make_model(conn, name)
        if sharing != "none":
            conn.execute(f"SELECT llm_copy_model('{name}', '{name}_source')")
        for layer in (0, 1) if sharing == "tied" else (0,) if sharing != "none" else ():
            tensors = f"'h.0.mlp.c_fc.weight', 0, '{name}', 'h.{layer}.mlp.c_fc.weight'"
            conn.execute(f"SELECT llm_share_param('{name}_source', {tensors})")
    shared = one(conn, "SELECT count(*) FROM llm_param_share")
    conn.execute(call("long", constant, function=function))
    state, status, log = outcome(conn, "long")
    losses = evaluations(log)
    best = min(losses, key=losses.__getitem__)
    assert (status, len(log)) == ("finished", STEPS)
    assert best < STEPS
    conn.execute(call("short", '{"warmup": 0, "lr_schedule": "constant"}', best))
    assert one(conn, STATE, "short") == state
    assert one(conn, "SELECT count(*) FROM llm_param_share") == shared
    assert one(conn, "SELECT count(*) FROM llm_checkpoint") == 0
    assert one(conn, "SELECT count(best_checkpoint) FROM llm_run") == 0
    for name in ("long", "short"):  # and learns on as it would have
        conn.execute(f"SELECT llm_train_step('{name}', dropout_p => 0)")
    assert one(conn, STATE, "short") == one(conn, STATE, "long")


def test_both_functions_do_the_same_with_and_without_the_fast_forms(conn, uninterrupted):
    make_model(conn, "m")
    conn.execute(call("m", function=RUN))
    assert outcome(conn, "m") == uninterrupted
    conn.execute("SET pg_gpt2.fast = off")
    make_model(conn, "plain")
    conn.execute(call("plain", function=RUN))
    conn.execute("RESET pg_gpt2.fast")
    _, status, log = outcome(conn, "plain")
    assert (status, len(log)) == (uninterrupted[1], len(uninterrupted[2]))


def test_patience_alone_leaves_the_last_weights(conn, said):
    make_model(conn, "m")
    conn.execute(call("m", '{"patience": 2, "warmup": 0}'))
    _, status, log = outcome(conn, "m")
    assert status == "early"
    assert one(conn, "SELECT step FROM llm_models WHERE model = 'm'") == len(log)
    assert not [text for text in said if "leaves" in text]
    assert replayed(conn, last_run(conn, "m"))[2:7] == (None, None, None, None, True)


def test_min_delta_makes_a_small_step_down_no_gain(conn):
    ends = []
    for delta in (0, 0.05, 1):
        make_model(conn, "m")
        conn.execute(call("m", f'{{"patience": 1, "min_delta": {delta}, "warmup": 0}}'))
        ends.append(len(outcome(conn, "m")[2]))
        conn.execute("SELECT llm_drop_model('m')")
    assert ends[0] > ends[1] > ends[2] == 8


def test_where_the_last_step_is_the_best_it_is_left(conn, said):
    make_model(conn, "m")
    conn.execute(call("m", BEST, 8, RUN))
    assert one(conn, "SELECT step FROM llm_models WHERE model = 'm'") == 8
    assert said[-1].startswith(f"run {last_run(conn, 'm')} leaves the weights of its last step: ")
    assert one(conn, "SELECT count(*) FROM llm_checkpoint") == 0
    assert outcome(conn, "m")[1] == "finished"


def test_the_learning_rate_follows_its_schedule(conn):
    rates = {}
    for schedule in ("cosine", "linear", "constant"):
        make_model(conn, schedule)
        more = "" if schedule == "constant" else ', "min_lr": 0.001'
        conn.execute(call(schedule, f'{{"lr_schedule": "{schedule}", "warmup": 6{more}}}'))
        rates[schedule] = [row[1] for row in outcome(conn, schedule)[2]]
        assert replayed(conn, last_run(conn, schedule))[2:7] == (None, None, None, None, True)
    assert rates["cosine"][:5] == rates["linear"][:5] == rates["constant"][:5]
    assert set(rates["constant"][5:]) == {0.01}
    assert rates["linear"][5:] == pytest.approx([0.001 + 0.009 * (60 - n) / 54 for n in range(6, 61)])
    assert rates["linear"][-1] == rates["cosine"][-1] == 0.001


# --- transactions, runs after it, replay --------------------------------------------------------------------------------


def test_a_rollback_undoes_all_of_it(conn):
    make_model(conn, "m")
    before = one(conn, STATE, "m")
    with conn.transaction(force_rollback=True):
        conn.execute(call("m"))
        assert one(conn, STATE, "m") != before
    assert one(conn, STATE, "m") == before
    assert one(conn, "SELECT count(*) FROM llm_run WHERE model = 'm'") == 0


@pytest.mark.parametrize("function", ["SELECT llm_train", RUN])
def test_the_next_run_begins_with_what_was_left(conn, function):
    make_model(conn, "m")
    conn.execute(call("m", function=function))
    saved = one(conn, "SELECT llm_checkpoint_save('m')")
    assert conn.execute("SELECT step, run_id FROM llm_checkpoint WHERE id = %s", [saved]).fetchone() == (
        16,
        last_run(conn, "m"),
    )
    first = last_run(conn, "m")
    assert replayed(conn, first).what is None  # with the checkpoint of step 16 beside
    conn.execute(call("m", '{"warmup": 0}', 8, function))
    assert one(conn, "SELECT first_step FROM llm_run WHERE run_id = %s", last_run(conn, "m")) == 16
    assert one(conn, "SELECT step FROM llm_models WHERE model = 'm'") == 24
    second = replayed(conn, last_run(conn, "m"))
    assert (second.what, second.exact, second.note) == (None, True, f"from checkpoint {saved}; llm_param compared")
    assert replayed(conn, first).what is None
    history = conn.execute("SELECT event, first_step, last_step FROM llm_param_history('m', 'wte')").fetchall()
    assert history == [("run", 1, 28), ("checkpoint", None, 16), ("run", 17, 24), ("now", None, 24)]


def test_a_replay_finds_what_was_altered(conn, uninterrupted):
    run = last_run(conn, "whole")
    assert replayed(conn, run).note == "from llm_init_model; llm_param compared"
    changes = {
        "status": "UPDATE llm_run SET status = 'finished' WHERE run_id = %s",
        'llm_param: tensor "ln_f.bias", block 0, data': "UPDATE llm_param SET data = set_byte(data, 0, 1) WHERE model = 'whole'"
        " AND name = 'ln_f.bias' AND %s > 0",
        "val_loss": "UPDATE llm_train_log SET val_loss = val_loss + 1e-9 WHERE run_id = %s AND step = 8",
        "lr": """UPDATE llm_run SET config = config || '{"lr_schedule": "linear"}' WHERE run_id = %s""",
    }
    for what, change in changes.items():
        with conn.transaction(force_rollback=True):
            conn.execute(change, [run])
            assert replayed(conn, run).what == what
    for config in ('{"patience": 0}', '{"lr_schedule": "square"}', '{"keep_best": 1}', '{"min_delta": "a"}'):
        with conn.transaction(force_rollback=True):
            conn.execute("UPDATE llm_run SET config = config || %s::jsonb WHERE run_id = %s", [config, run])
            with pytest.raises(errors.DataException, match="config, environment or resumed is not what a run records"):
                replayed(conn, run)


# --- refused ------------------------------------------------------------------------------------------------------------

REFUSED = [
    ("", '{"patience": 3}', "patience needs evaluations, and eval_every is null"),
    (", eval_every => 0", '{"keep_best": true}', "keep_best needs evaluations, and eval_every is 0"),
    (", eval_every => 2", '{"min_delta": 0.1}', "min_delta 0.1 has no effect without patience"),
    ("", '{"min_lr": 0.1, "lr_schedule": "constant"}', "min_lr 0.1 has no effect with lr_schedule constant"),
    (
        ", eval_every => 2",
        '{"patience": 1}',
        'patience needs evaluations, and there is no data of split "val" for model "m"',
    ),
    (
        ", eval_every => 2",
        '{"keep_best": true}',
        'keep_best needs evaluations, and there is no data of split "val" for model "m"',
    ),
    ("", '{"patience": 0}', "patience must be 1 or more, not 0"),
    ("", '{"keep_best": 1}', "keep_best must be a value of type true or false, not 1"),
    ("", '{"lr_schedule": "wsd"}', 'lr_schedule must be one of cosine, linear, constant, not "wsd"'),
]


@pytest.mark.parametrize(("parameters", "options", "message"), REFUSED)
@pytest.mark.parametrize("function", ["SELECT llm_train", RUN])
def test_what_contradicts_is_refused_by_name(conn, parameters, options, message, function):
    make_model(conn, "m")
    conn.execute("DELETE FROM llm_dataset WHERE split = 'val'")
    with pytest.raises(errors.InvalidParameterValue) as caught:
        conn.execute(f"{function}('m', 4{parameters}, options => '{options}')")
    assert caught.value.diag.message_primary == f"pg_gpt2: {message}"
    assert caught.value.diag.message_hint
    assert one(conn, "SELECT count(*) FROM llm_run WHERE model = 'm'") == 0


def test_who_may_not_save_checkpoints_is_told_before_the_first_step(conn, connect):
    make_model(conn, "m")
    conn.execute("CREATE ROLE early_trainer; SELECT llm_grant_usage('early_trainer', 'train')")
    worker = connect()
    worker.execute("SET ROLE early_trainer")
    with pytest.raises(errors.InsufficientPrivilege, match="keep_best of llm_train_run") as caught:
        worker.execute(call("m", function=RUN))
    assert "llm_train keeps them in memory" in caught.value.diag.message_hint
    assert one(conn, "SELECT count(*) FROM llm_train_log WHERE model = 'm'") == 0
    worker.execute(call("m"))
    assert outcome(conn, "m")[1] == "early"
    worker.close()
    conn.execute("DROP OWNED BY early_trainer; DROP ROLE early_trainer")
