"""patience and keep_best of a run that was interrupted: its best weights and its count of evaluations without gain are kept."""

import json
from collections.abc import Callable

import psycopg
import pytest
from psycopg import errors

from tests.server.early_stop.runs import (
    PATIENT,
    RUN,
    STATE,
    Notices,
    call,
    evaluations,
    last_run,
    make_model,
    outcome,
    replayed,
    start,
)
from tests.server.test_train_run import cancel, one, steps, terminate, wait_for_steps


def interrupt(conn: psycopg.Connection, connect: Callable, statement: str, after: int, end: Callable = cancel) -> int:
    """Run the statement on model m, end it when so many steps are committed; how many are then."""
    session, thread = start(connect, statement)
    wait_for_steps(conn, "m", after)
    end(conn, session.info.backend_pid)
    thread.join()
    return steps(conn, "m")


@pytest.mark.parametrize("end", [cancel, terminate], ids=["cancel", "terminate"])
@pytest.mark.parametrize("after", [4, 16, 24])
def test_a_resumed_run_ends_where_an_uninterrupted_one_does(conn, connect, uninterrupted, end, after):
    make_model(conn, "m")
    made = interrupt(conn, connect, call("m", function=RUN), after, end)
    if outcome(conn, "m")[1] == "running":
        assert one(conn, "SELECT step FROM llm_models WHERE model = 'm'") == made  # what was committed last
        kept = "SELECT step, note, r.run_id FROM llm_checkpoint c JOIN llm_run r ON best_checkpoint = c.id"
        losses = {step: loss for step, loss in evaluations(uninterrupted[2]).items() if step <= made}
        run = last_run(conn, "m")
        assert conn.execute(kept).fetchall() == [(min(losses, key=losses.__getitem__), f"best of run {run}", run)]
        connect().execute(call("m", function=RUN))
    assert outcome(conn, "m") == uninterrupted
    assert one(conn, "SELECT count(*) FROM llm_run WHERE model = 'm'") == 1
    assert one(conn, "SELECT count(*) FROM llm_checkpoint") == 0
    assert replayed(conn, last_run(conn, "m"))[2:7] == (None, None, None, None, True)


STOP = """
    CREATE FUNCTION stop() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN PERFORM pg_sleep(0.6);
        UPDATE public.llm_run SET stop_requested = true WHERE run_id = NEW.run_id; RETURN NEW; END$$;
    CREATE TRIGGER stop AFTER INSERT ON llm_train_log FOR EACH ROW WHEN (NEW.step = 20) EXECUTE FUNCTION stop();
"""


@pytest.fixture
def stopped(conn: psycopg.Connection, said: Notices) -> int:
    """The checkpoint with the best weights, of step 16, of a run of model m that was stopped after step 20."""
    make_model(conn, "m")
    conn.execute(STOP)
    conn.execute(f"{call('m', function=RUN)}".replace("commit_every => 6", "commit_every => 4"))
    conn.execute("DROP TRIGGER stop ON llm_train_log; DROP FUNCTION stop()")
    assert outcome(conn, "m")[1] == "stopped"
    assert steps(conn, "m") >= 20
    saved = one(conn, "SELECT best_checkpoint FROM llm_run WHERE model = 'm'")
    assert said[-1].endswith(f"the same call goes on with it; checkpoint {saved} has its best weights so far")
    return saved


def test_a_stopped_run_keeps_its_best_weights_and_goes_on(conn, uninterrupted, stopped):
    assert one(conn, "SELECT step FROM llm_models WHERE model = 'm'") == steps(conn, "m")
    assert one(conn, "SELECT step FROM llm_checkpoint WHERE id = %s", stopped) == 16
    assert one(conn, "SELECT llm_checkpoint_prune('m', 0)") == 0
    conn.execute("SELECT llm_copy_model('m', 'fork', %s)", [stopped])
    assert one(conn, STATE, "fork") == uninterrupted[0]
    found = replayed(conn, last_run(conn, "m"), stopped)
    assert (found.first_step, found.what, found.exact) == (17, None, True)
    conn.execute(call("m", function=RUN))
    assert outcome(conn, "m") == uninterrupted
    assert one(conn, "SELECT count(*) FROM llm_checkpoint") == 0
    assert one(conn, STATE, "fork") == uninterrupted[0]


def test_another_run_leaves_the_best_weights_of_the_one_before_to_the_user(conn, said, uninterrupted, stopped):
    run = last_run(conn, "m")
    conn.execute(call("m", '{"warmup": 0}', 4, RUN))
    assert any(
        text.startswith(f"run {run} was interrupted")
        and text.endswith(f"checkpoint {stopped} has its best weights so far")
        for text in said
    )
    assert one(conn, "SELECT status FROM llm_run WHERE run_id = %s", run) == "abandoned"
    conn.execute("SELECT llm_checkpoint_load('m', %s)", [stopped])
    assert one(conn, STATE, "m") == uninterrupted[0]
    assert one(conn, "SELECT llm_checkpoint_prune('m', 0)") == 1


def test_where_the_best_weights_were_dropped_by_hand_the_run_says_so_and_ends(conn, said, uninterrupted, stopped):
    conn.execute("SELECT llm_checkpoint_drop(%s)", [stopped])
    conn.execute(call("m", function=RUN))
    assert outcome(conn, "m")[1:] == uninterrupted[1:]
    assert said[-1].endswith("leaves the weights of its last step: the checkpoint of its best, step 16, was dropped")
    assert one(conn, "SELECT step FROM llm_models WHERE model = 'm'") == 28


def test_a_damaged_checkpoint_of_the_best_is_no_end(conn, stopped):
    before = one(conn, STATE, "m")
    conn.execute("UPDATE llm_checkpoint_blob SET data = set_byte(data, 0, 255 - get_byte(data, 0))")
    with pytest.raises(errors.DataException, match="damaged"):
        conn.execute(call("m", function=RUN))
    assert outcome(conn, "m")[1] == "running"
    assert one(conn, STATE, "m") == before or steps(conn, "m") > 20


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE llm_dataset SET target = '{5,3,1,7,9}' WHERE model = 'm' AND split = 'val'",
        "DELETE FROM llm_dataset WHERE id = (SELECT max(id) FROM llm_dataset WHERE model = 'm' AND split = 'val')",
    ],
)
def test_a_run_whose_rows_for_evaluation_changed_is_not_resumed(conn, stopped, change):
    conn.execute(change)
    conn.execute(call("m", function=RUN))
    statuses = conn.execute("SELECT status FROM llm_run WHERE model = 'm' ORDER BY run_id").fetchall()
    assert statuses[0] == ("abandoned",)
    assert len(statuses) == 2


@pytest.mark.parametrize(
    "change", [{"patience": 4}, {"min_delta": 0.5}, {"keep_best": False}, {"lr_schedule": "linear"}]
)
def test_a_run_with_another_end_is_another_run(conn, stopped, change):
    conn.execute(call("m", json.dumps(json.loads(PATIENT) | change), function=RUN))
    statuses = conn.execute("SELECT status FROM llm_run WHERE model = 'm' ORDER BY run_id").fetchall()
    assert statuses[0] == ("abandoned",)
    assert len(statuses) == 2


def test_a_run_from_before_these_options_is_resumed(conn, connect):
    make_model(conn, "m")
    plain = call("m", '{"warmup": 0}', function=RUN)
    interrupt(conn, connect, plain, 6)
    conn.execute("UPDATE llm_run SET config = config - '{lr_schedule,patience,min_delta,keep_best,eval_every}'::text[]")
    conn.execute(plain)
    assert one(conn, "SELECT count(*) FROM llm_run WHERE model = 'm'") == 1
    assert replayed(conn, last_run(conn, "m"))[2:7] == (None, None, None, None, True)
