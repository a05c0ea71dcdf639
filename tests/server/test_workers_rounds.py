"""Local steps with averaging (sync_every): the same bits whoever computes a replica, and whatever ends a run on the way."""

import time

import psycopg
import pytest
from psycopg.types.json import Jsonb

from tests.server.test_train_run import make_model, steps
from tests.server.test_workers import (  # noqa: F401
    CALL,
    LOG,
    STATE,
    Sql,
    adapter,
    leader,
    options,
    replayed,
    train,
    weighted,
    with_val,
)
from tests.server.test_workers_lost import BUSY, call, started

ROUNDS = {"shards": 3, "sync_every": 4}
CASES = {
    "accumulation": ([], {}, ""),
    "weights": ([weighted], {"outer_momentum": 0, "outer_lr": 1}, ", dropout_p => 0.3, grad_clip => 0.5"),
    "adapter": ([adapter], {}, ""),
    "best": ([with_val], {"keep_best": True, "patience": 1}, ", eval_every => 3"),
}


def rounds(workers: int, **more: object) -> Jsonb:
    return options(workers, **ROUNDS | {"audit": "none"} | more)


@pytest.mark.parametrize("case", CASES)
def test_no_bit_of_a_round_depends_on_the_number_of_workers(leader, case):  # noqa: F811
    """The last round is shorter. A replay does it again on one server."""
    prepare, more, parameters = CASES[case]
    found, curves = set(), set()
    for workers in (0, 1, 2) if case == "accumulation" else (0, 2):
        model = f"round {case} {workers}"
        make_model(leader, model)
        for change in prepare:
            change(leader, model)
        found.add(train(leader, model, rounds(workers, **more), 10, parameters))
        curves.add(str(leader.execute(LOG, [model]).fetchall()))
        assert replayed(leader, model) == (None, True)
        kept = "SELECT count(*) FROM llm_param WHERE model = %s AND grad IS NOT NULL"
        assert leader.execute(kept, [model]).fetchone() == (0,), "the outer momentum goes with the run"
        told = "SELECT array_agg(step ORDER BY step) FROM llm_train_log WHERE model = %s AND servers IS NOT NULL"
        (at,) = leader.execute(told, [model]).fetchone()
        assert at is None if not workers else set(at) <= {4, 8, 10}
    assert (len(found), len(curves)) == (1, 1)


def test_sync_every_1_is_the_run_without(leader):  # noqa: F811
    ends = set()
    for number, said in enumerate(({"shards": 3}, {"shards": 3, "sync_every": 1})):
        make_model(leader, f"one {number}")
        ends.add(train(leader, f"one {number}", Jsonb(said)))
    assert len(ends) == 1


def test_what_a_round_sends_is_recorded(leader):  # noqa: F811
    """Weights and both moments, there and back, once a round and replica; not once a step."""
    make_model(leader, "round told")
    train(leader, "round told", rounds(2), 8)
    (n_bytes,) = leader.execute("SELECT sum(octet_length(data)) FROM llm_param WHERE model = 'round told'").fetchone()
    for (found,) in leader.execute("SELECT servers FROM llm_train_log WHERE model = 'round told' AND step IN (4, 8)"):
        parts = [found["leader"], *found["workers"].values()]
        assert sorted(index for part in parts for index in part["shards"]) == [0, 1, 2]
        for part in found["workers"].values():
            assert part["received"] >= len(part["shards"]) * 4 * n_bytes
            assert part["sent"] >= (4 * n_bytes if part["shards"] else 0)


STEPS = 24


@pytest.fixture(scope="module")
def wanted(leader) -> str:  # noqa: F811
    """What a run on one server leaves."""
    make_model(leader, "round alone")
    return train(leader, "round alone", rounds(0), STEPS)


def test_a_worker_killed_within_a_round_changes_no_bit(leader, connect, wanted):  # noqa: F811
    model, failures = "round killed", []
    make_model(leader, model)
    thread = call(connect(), model, rounds(2), failures)
    started(leader, model, thread, failures)
    kill = f"SELECT pg_terminate_backend(pid) FROM ({BUSY} AND datname <> current_database() LIMIT 1) AS a"
    while not leader.execute(kill).fetchall():
        assert thread.is_alive(), "nobody was busy"
        time.sleep(0.001)
    thread.join()
    assert not failures
    assert leader.execute(STATE, [model]).fetchone() == (wanted,)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_killed_leader_goes_on_after_the_last_round(leader, connect, wanted, workers):  # noqa: F811
    """With its outer momentum, which stands in llm_param.grad meanwhile."""
    model, failures = f"round led {workers}", []
    make_model(leader, model)
    session = connect()
    thread = call(session, model, rounds(2), failures)
    started(leader, model, thread, failures, 8)
    leader.execute("SELECT pg_terminate_backend(%s)", [session.info.backend_pid])
    thread.join()
    assert failures
    assert steps(leader, model) % 4 == 0
    (held,) = leader.execute("SELECT bool_and(grad IS NOT NULL) FROM llm_param WHERE model = %s", [model]).fetchone()
    assert held
    assert train(leader, model, rounds(workers), STEPS) == wanted
    assert leader.execute("SELECT count(*) FROM llm_run WHERE model = %s", [model]).fetchone() == (1,)


def stopped(conn: psycopg.Connection, model: str, **more: object) -> Jsonb:
    """A run that stops after its second round; its options."""
    make_model(conn, model)
    said = rounds(0, **more)
    conn.execute("""
        CREATE FUNCTION stop() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'enough'; END $$;
        CREATE TRIGGER stop AFTER INSERT ON llm_train_log FOR EACH ROW WHEN (NEW.step = 12) EXECUTE FUNCTION stop();
    """)
    with pytest.raises(psycopg.errors.RaiseException, match="enough"):
        train(conn, model, said, STEPS)
    conn.execute("DROP TRIGGER stop ON llm_train_log; DROP FUNCTION stop()")
    return said


def test_a_run_whose_outer_momentum_was_changed_is_not_gone_on_with(leader):  # noqa: F811
    said = stopped(leader, "round spoiled")
    leader.execute("UPDATE llm_param SET grad = NULL WHERE model = 'round spoiled' AND name = 'ln_f.weight'")
    train(leader, "round spoiled", said, STEPS)
    found = leader.execute("SELECT status FROM llm_run WHERE model = 'round spoiled' ORDER BY run_id").fetchall()
    assert found == [("abandoned",), ("finished",)]


def test_a_replay_begins_where_the_outer_momentum_is_known(leader, wanted):  # noqa: F811
    """A checkpoint on the way does not have it; without momentum, it serves."""
    replay = "SELECT what, exact, first_step FROM llm_replay((SELECT max(run_id) FROM llm_run WHERE model = %s), %s)"
    for momentum in (0.9, 0):
        model = f"round kept {momentum}"
        said = stopped(leader, model, outer_momentum=momentum)
        (kept,) = leader.execute("SELECT llm_checkpoint_save(%s)", [model]).fetchone()
        end = train(leader, model, said, STEPS)
        assert leader.execute(replay, [model, None]).fetchone() == (None, True, 1)
        if momentum:
            assert end == wanted
            with pytest.raises(psycopg.errors.FeatureNotSupported, match="outer momentum"):
                leader.execute(replay, [model, kept])
        else:
            assert leader.execute(replay, [model, kept]).fetchone() == (None, True, 9)


def test_llm_train_makes_rounds_in_one_transaction(leader):  # noqa: F811
    ends = []
    for function in ("SELECT llm_train", "CALL llm_train_run"):
        make_model(leader, function)
        leader.execute(
            f"{function}(%s, 9, batch_size => 6, lr_max => 1e-2, log_every => 0, audit => 'none', options => %s)",
            [function, Jsonb(ROUNDS)],
        )
        ends.append(leader.execute(STATE, [function]).fetchone())
    assert ends[0] == ends[1]
