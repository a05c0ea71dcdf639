"""Training steps shared by two servers of a core each, beside the same steps on one of them.

The servers are clusters of their own (`Bench.clusters`). A round is a run without the worker and one with it; of each the fastest
step counts. With --full a gpt2-small learns as well: a step of it takes more than a minute on one core.
"""

from dataclasses import dataclass
from typing import Any

import psycopg
from harness import Bench
from psycopg import conninfo, sql
from psycopg.types.json import Jsonb
from report import US
from targets import ONE_SERVER

LEADER, WORKER = "one", "two"


@dataclass(frozen=True)
class Case:
    """A model, and the rows of a step."""

    layers: int
    heads: int
    width: int
    vocab: int
    batch: int
    length: int
    steps: int
    rank: int = 0  # of an adapter; 0 = the model itself learns


SMALL = {"middle": Case(2, 2, 64, 300, 8, 32, 2), "adapter": Case(2, 2, 64, 300, 8, 32, 2, rank=2)}
QUICK = {"middle": Case(3, 8, 512, 4096, 32, 256, 2), "adapter": Case(12, 12, 768, 50257, 8, 64, 4, rank=8)}
FULL = QUICK | {"gpt2-small": Case(12, 12, 768, 50257, 32, 256, 1)}


def train(bench: Bench) -> None:
    """Tokens a second of both servers, and of one."""
    cases = {"smoke": SMALL, "full": FULL}.get(bench.length.name, QUICK)
    for name, case in cases.items():
        what = f"training step, {name}, {case.layers} x {case.width}, B={case.batch} T={case.length}, two servers of a core each"
        row = bench.row(f"servers train {name}", what, "tokens/s", case.batch * case.length, rate=True)
        with psycopg.connect(bench.clusters[LEADER], autocommit=True) as leader:
            prepare(leader, case, bench.clusters[WORKER])
            bench.wait()
            row.add(ONE_SERVER, min(step["seconds"] for step in run(leader, case, [])))
            best = min(run(leader, case, [WORKER]), key=lambda step: step["seconds"])
        row.add(US, best["seconds"])
        did = best["servers"]["workers"][WORKER]
        bench.notes[f"servers train {name}: MB down and up a step, share of transfer"] = (
            f"{did['sent'] / 1e6:.1f}, {did['received'] / 1e6:.1f}, {did['transfer'] / best['seconds']:.0%}"
        )


def prepare(leader: psycopg.Connection, case: Case, worker: str) -> None:
    """The model `learner` and its data, anew; the other server by the name that it has in a run."""
    leader.execute("CREATE EXTENSION IF NOT EXISTS dblink")
    leader.execute(sql.SQL("DROP SERVER IF EXISTS {} CASCADE").format(sql.Identifier(WORKER)))
    at = conninfo.conninfo_to_dict(worker)
    options = sql.SQL(", ").join(
        sql.SQL("{} {}").format(sql.Identifier(name), sql.Literal(at[name])) for name in ("host", "port", "dbname")
    )
    made = sql.SQL("CREATE SERVER {} FOREIGN DATA WRAPPER dblink_fdw OPTIONS ({})")
    leader.execute(made.format(sql.Identifier(WORKER), options))
    mapped = sql.SQL("CREATE USER MAPPING FOR PUBLIC SERVER {} OPTIONS (user {})")
    leader.execute(mapped.format(sql.Identifier(WORKER), sql.Literal(at["user"])))
    for model in ("learner", "base_of_learner"):
        leader.execute("SELECT llm_drop_model(model) FROM llm_model_config WHERE model = %s", [model])
    shape = [case.layers, case.heads, case.width, case.length, case.vocab]
    first = "base_of_learner" if case.rank else "learner"
    leader.execute("SELECT llm_init_model(%s, %s, %s, %s, %s, %s, seed => 1)", [first, *shape])
    if case.rank:
        leader.execute("SELECT llm_adapter_create('learner', 'base_of_learner', r => %s)", [case.rank])
    leader.execute("DELETE FROM llm_dataset WHERE model = 'learner'")
    leader.execute(
        "INSERT INTO llm_dataset (model, tokens, target) SELECT 'learner', t[:%s], t[2:]"
        " FROM (SELECT array_agg((random() * %s)::integer) AS t FROM generate_series(1, %s) AS row,"
        " generate_series(0, %s) GROUP BY row) AS r",
        [case.length, case.vocab - 1, 2 * case.batch, case.length],
    )


def run(leader: psycopg.Connection, case: Case, workers: list[str]) -> list[dict[str, Any]]:
    """Seconds of each step but the first of a run, and what the servers did."""
    leader.execute(
        "CALL llm_train_run('learner', %s, batch_size => %s, audit => 'none', log_every => 0, dropout_p => 0, options => %s)",
        [case.steps + 1, case.batch // 2, Jsonb({"shards": 2, "workers": workers, "gradient_accumulation_steps": 2})],
    )
    found = leader.execute(
        "SELECT seconds, servers FROM llm_train_log WHERE run_id = (SELECT max(run_id) FROM llm_run) AND step > 1 ORDER BY step"
    ).fetchall()
    return [{"seconds": seconds, "servers": servers} for seconds, servers in found]
