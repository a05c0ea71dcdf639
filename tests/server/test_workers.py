"""Training on several servers: the same bits whoever computes a shard, and whatever happens to whom.

A worker is another database of the same cluster where only the calls matter, and a cluster of its own where it is to die.
"""

from collections.abc import Callable

import psycopg
import pytest
from psycopg import conninfo, sql
from psycopg.types.json import Jsonb

from tests.server.test_train_run import make_model

STATE = """
    SELECT md5(string_agg(concat_ws(' ', name, token_id, md5(data), md5(m), md5(v), step), ',' ORDER BY name, token_id))
    FROM llm_param WHERE model = %s
"""
CALL = (
    "CALL llm_train_run(%s, {steps}, batch_size => 3, grad_accum => 2, lr_max => 1e-2, commit_every => 4, flush_seconds => 0,"
    " log_every => 0, options => %s{more})"
)
LOG = "SELECT step, lr, loss, grad_norm, tokens, val_loss FROM llm_train_log WHERE model = %s ORDER BY step"
Sql = Callable[..., object]


def add_server(conn: psycopg.Connection, name: str, dsn: str, **options: str) -> None:
    """A foreign server and a user mapping that lead to the database of `dsn`."""
    at = conninfo.conninfo_to_dict(dsn)
    # As PostgreSQL has it without a setting. With one of 10 s, the first look for a client that is gone comes after 10 s.
    look = {"options": "-c client_connection_check_interval=0"}
    where = {"host": at["host"], "port": at["port"], "dbname": at["dbname"]} | look | options
    listed = sql.SQL(", ").join(sql.SQL("{} {}").format(sql.Identifier(k), sql.Literal(v)) for k, v in where.items())
    conn.execute(
        sql.SQL("CREATE SERVER {} FOREIGN DATA WRAPPER dblink_fdw OPTIONS ({})").format(sql.Identifier(name), listed)
    )
    conn.execute(
        sql.SQL("CREATE USER MAPPING FOR PUBLIC SERVER {} OPTIONS (user {})").format(
            sql.Identifier(name), sql.Literal(at["user"])
        )
    )


@pytest.fixture(scope="module")
def leader(module_conn, new_database) -> psycopg.Connection:
    """A database with servers w1 to w4, each another database of the cluster, which has no model."""
    module_conn.execute("CREATE EXTENSION dblink")
    module_conn.execute(
        "CREATE VIEW numbered AS SELECT id, row_number() OVER (PARTITION BY model ORDER BY id)::integer AS n FROM llm_dataset"
    )
    for name in ("w1", "w2", "w3", "w4"):
        add_server(module_conn, name, new_database())
    return module_conn


def options(workers: int, **more: object) -> Jsonb:
    return Jsonb({"workers": [f"w{i + 1}" for i in range(workers)], "shards": 4} | more)


def train(conn: psycopg.Connection, model: str, said: object, steps: int = 6, more: str = "") -> str:
    """Train; digest of what it leaves."""
    conn.execute(CALL.format(steps=steps, more=more), [model, said])
    return conn.execute(STATE, [model]).fetchone()[0]


def weighted(conn: psycopg.Connection, model: str) -> None:
    """Rows like pairs: of any length, with prompts that carry no loss, weights, and one without any loss."""
    conn.execute(
        "UPDATE llm_dataset AS d SET tokens = tokens[:8 + n %% 9], weight = 0.5 + n %% 3,"
        " target = array_fill(-100, ARRAY[3 + n %% 5]) || target[4 + n %% 5 : 8 + n %% 9]"
        " FROM numbered WHERE d.id = numbered.id AND d.model = %s",
        [model],
    )


def adapter(conn: psycopg.Connection, model: str) -> None:
    """Make the model the base of an adapter that has its name."""
    conn.execute("UPDATE llm_dataset SET model = 'moved' WHERE model = %s", [model])
    conn.execute("SELECT llm_copy_model(%s, %s), llm_drop_model(%s)", [model, f"{model} base", model])
    conn.execute(
        "SELECT llm_adapter_create(%s, %s, r => 3, targets => '{attn.c_attn,mlp.c_proj}', dropout_p => 0.2, seed => 4)",
        [model, f"{model} base"],
    )
    conn.execute("UPDATE llm_dataset SET model = %s WHERE model = 'moved'", [model])


def with_val(conn: psycopg.Connection, model: str) -> None:
    conn.execute(
        "UPDATE llm_dataset AS d SET split = 'val' FROM numbered WHERE d.id = numbered.id AND n %% 4 = 0 AND d.model = %s",
        [model],
    )


CASES = {
    "accumulation": ([], {}, ""),
    "weights": ([weighted], {}, ", dropout_p => 0.3, grad_clip => 0.5"),
    "adapter": ([adapter], {}, ""),
    "best": ([with_val], {"keep_best": True, "patience": 1}, ", eval_every => 2"),
}


@pytest.mark.parametrize("case", CASES)
def test_no_bit_depends_on_the_number_of_workers(leader, case):
    """Nor on whether a run is one transaction; and it can be done again on one server."""
    prepare, more, parameters = CASES[case]
    found, curves = set(), set()
    for workers in (0, 1, 2, 4):
        model = f"{case} {workers}"
        make_model(leader, model)
        for change in prepare:
            change(leader, model)
        found.add(train(leader, model, options(workers, shards=5, **more), more=parameters))
        curves.add(str(leader.execute(LOG, [model]).fetchall()))
        assert replayed(leader, model) == (None, True)
        there = "SELECT bool_and((servers IS NULL) = (%s = 0)) FROM llm_train_log WHERE model = %s"
        assert leader.execute(there, [workers, model]).fetchone() == (True,)
    assert (len(found), len(curves)) == (1, 1)


def replayed(conn: psycopg.Connection, model: str) -> tuple:
    """What differs in a replay of the model's run, and whether every bit was compared."""
    query = "SELECT r.what, r.exact FROM llm_run, llm_replay(run_id) AS r WHERE model = %s"
    return conn.execute(query, [model]).fetchone()


def test_the_sharded_mean_is_that_of_the_whole_step(leader):
    """To rounding: float32 sums of the same numbers in another order, which steps let grow."""
    curves = []
    for shards in (1, 2, 5):
        model = f"cut {shards}"
        make_model(leader, model)
        weighted(leader, model)
        train(leader, model, Jsonb({"shards": shards}), more=", dropout_p => 0")
        curves.append(
            [row[0] for row in leader.execute("SELECT loss FROM llm_train_log WHERE model = %s ORDER BY step", [model])]
        )
    for curve in curves[1:]:
        assert curve == pytest.approx(curves[0], rel=1e-4)
    assert len(set(map(str, curves))) > 1


def test_llm_train_calls_workers_in_one_transaction(leader):
    for workers in (0, 2):
        make_model(leader, f"whole {workers}")
        leader.execute(
            "SELECT llm_train(%s, 4, batch_size => 4, lr_max => 1e-2, log_every => 0, options => %s)",
            [f"whole {workers}", options(workers)],
        )
    one, other = (leader.execute(STATE, [f"whole {workers}"]).fetchone() for workers in (0, 2))
    assert one == other
    assert leader.execute("SELECT dblink_get_connections()").fetchone() == (None,)


def test_what_each_server_did_is_recorded(leader):
    make_model(leader, "told")
    train(leader, "told", options(2))
    (found,) = leader.execute(
        "SELECT servers FROM llm_train_log WHERE model = 'told' ORDER BY step DESC LIMIT 1"
    ).fetchone()
    parts = [found["leader"], *found["workers"].values()]
    assert sorted(index for part in parts for index in part["shards"]) == [0, 1, 2, 3]
    assert list(found["workers"]) == ["w1", "w2"]
    n_params = leader.execute("SELECT sum(octet_length(data)) FROM llm_param WHERE model = 'told'").fetchone()[0]
    for part in found["workers"].values():
        assert part["received"] >= len(part["shards"]) * n_params * 4 // 3
        assert part["sent"] >= (n_params if part["shards"] else 0)
    assert found["leader"]["sent"] == sum(part["sent"] for part in found["workers"].values())
    (env,) = leader.execute("SELECT environment FROM llm_run WHERE model = 'told'").fetchone()
    assert {name: one["sources"] for name, one in env["workers"].items()} == dict.fromkeys(("w1", "w2"), env["sources"])
    assert env["workers"]["w1"]["server"] == leader.execute("SHOW server_version").fetchone()[0]


def test_a_run_of_an_adapter_moves_no_more_than_the_adapter(leader):
    make_model(leader, "small")
    adapter(leader, "small")
    train(leader, "small", options(2))
    size = "SELECT sum(octet_length(data)) FROM llm_param WHERE model = %s"
    (own,), (base,) = (leader.execute(size, [model]).fetchone() for model in ("small", "small base"))
    servers = "SELECT servers -> 'workers' FROM llm_train_log WHERE model = 'small' AND step > 1"
    rows = 20_000  # of the training data, and the text of the calls
    for (workers,) in leader.execute(servers):
        for part in workers.values():
            assert part["sent"] <= 2 * own + rows
            assert part["received"] <= 2 * own * len(part["shards"]) + rows
    assert base > 2 * (2 * own + rows)


ANOTHER_BLAS = """
DO LANGUAGE plpython3u $$
import importlib, sys
package = next(name for name in sys.modules if name.startswith('pg_gpt2_') and '.' not in name)
environment = importlib.import_module(package + '.server.training.environment')
here = environment.current() | {'blas': 'another'}
environment.current = lambda: here
$$
"""


def test_a_worker_with_another_blas_helps_only_where_that_is_allowed(leader, connect):
    make_model(leader, "other bits")
    session = connect()
    session.execute("SELECT count(*) FROM llm_doctor()")  # has the package
    session.execute(ANOTHER_BLAS)
    with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState, match='"w1" computes other bits: it has blas'):
        train(session, "other bits", options(1))
    train(session, "other bits", options(1, allow_other_bits=True))
    recorded = (
        "SELECT environment -> 'workers' -> 'w1' ->> 'blas' <> environment ->> 'blas' FROM llm_run WHERE model = %s"
    )
    assert session.execute(recorded, ["other bits"]).fetchall() == [(True,)]


def test_a_worker_that_computes_by_the_plain_ops_has_other_bits(leader, connect, new_database):
    add_server(leader, "plain", new_database(), options="-c pg_gpt2.fast=off")
    make_model(leader, "plain")
    refused = '"plain" computes other bits: it has fast False and not True'
    with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState, match=refused):
        train(connect(), "plain", Jsonb({"workers": ["plain"], "shards": 2}))
