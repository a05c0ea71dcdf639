"""Steps shared by two servers of one core each, beside the same steps on one of them: python -m tests.bench.workers [SHAPE...]

Two throw-away clusters, each bound to a core by taskset; a round is a run without the worker and one with it, and what counts is
the ratio of their fastest steps. Prints rows of JSON: seconds a step, the ratio, bytes and the share of a step that is transfer.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
from psycopg import conninfo, sql
from psycopg.types.json import Jsonb

CLUSTER = Path(__file__).resolve().parents[2] / "docker" / "cluster.sh"
ROUNDS = 3


@dataclass(frozen=True)
class Case:
    """A model, the rows of a step, and the ratio that is aimed at."""

    layers: int
    heads: int
    width: int
    vocab: int
    batch: int
    length: int
    steps: int
    target: float
    rank: int = 0  # of an adapter; 0 = the model itself learns


CASES = {
    "gpt2-small": Case(12, 12, 768, 50257, 32, 256, 2, 1.75),
    "middle": Case(6, 8, 512, 8192, 32, 256, 3, 1.75),
    "adapter": Case(12, 12, 768, 50257, 8, 64, 4, 1.8, rank=8),
    "small": Case(2, 2, 64, 300, 8, 32, 3, 0.0),
}


@contextmanager
def cluster(core: int) -> Iterator[str]:
    """DSN of a cluster whose processes run on that core."""
    state = subprocess.run([CLUSTER, "state"], check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
    directory = f"{state}/bench{core}.{os.getpid()}"
    command = ["taskset", "-c", str(core), CLUSTER, "start", directory]
    started = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    try:
        yield started.stdout.splitlines()[-1]
    finally:
        subprocess.run([CLUSTER, "stop", directory], check=True)


def prepare(leader: psycopg.Connection, case: Case, worker: str) -> None:
    """The model m and its data; the foreign server w."""
    leader.execute("CREATE EXTENSION IF NOT EXISTS dblink")
    at = conninfo.conninfo_to_dict(worker)
    options = sql.SQL(", ").join(
        sql.SQL("{} {}").format(sql.Identifier(name), sql.Literal(at[name])) for name in ("host", "port", "dbname")
    )
    leader.execute(sql.SQL("CREATE SERVER w FOREIGN DATA WRAPPER dblink_fdw OPTIONS ({})").format(options))
    leader.execute("CREATE USER MAPPING FOR PUBLIC SERVER w OPTIONS (user 'postgres')")
    shape = [case.layers, case.heads, case.width, case.length, case.vocab]
    leader.execute("SELECT llm_init_model('base', %s, %s, %s, %s, %s, seed => 1)", shape)
    if case.rank:
        leader.execute("SELECT llm_adapter_create('m', 'base', r => %s)", [case.rank])
    else:
        leader.execute("SELECT llm_copy_model('base', 'm'), llm_drop_model('base')")
    leader.execute(
        "INSERT INTO llm_dataset (model, tokens, target) SELECT 'm', t[:%s], t[2:]"
        " FROM (SELECT array_agg((random() * %s)::integer) AS t FROM generate_series(1, %s) AS row,"
        " generate_series(0, %s) GROUP BY row) AS r",
        [case.length, case.vocab - 1, 2 * case.batch, case.length],
    )


def run(leader: psycopg.Connection, case: Case, workers: list[str]) -> list[dict[str, Any]]:
    """Seconds of each step but the first of a run, and what the servers did."""
    leader.execute(
        "CALL llm_train_run('m', %s, batch_size => %s, audit => 'none', log_every => 0, dropout_p => 0, options => %s)",
        [case.steps + 1, case.batch // 2, Jsonb({"shards": 2, "workers": workers, "gradient_accumulation_steps": 2})],
    )
    found = leader.execute(
        "SELECT seconds, servers FROM llm_train_log WHERE run_id = (SELECT max(run_id) FROM llm_run) AND step > 1 ORDER BY step"
    ).fetchall()
    return [{"seconds": seconds, "servers": servers} for seconds, servers in found]


def rows(names: list[str], rounds: int = ROUNDS) -> Iterator[dict[str, Any]]:
    """A row for each case."""
    for name in names:
        case = CASES[name]
        with cluster(0) as here, cluster(1) as there, psycopg.connect(here, autocommit=True) as leader:
            prepare(leader, case, there)
            alone, shared = [], []
            for _ in range(rounds):
                alone += run(leader, case, [])
                shared += run(leader, case, ["w"])
        best = min(shared, key=lambda step: step["seconds"])
        least, did = min(step["seconds"] for step in alone), best["servers"]["workers"]["w"]
        yield {
            "case": name,
            "seconds of one server": round(least, 3),
            "seconds of two": round(best["seconds"], 3),
            "ratio": round(least / best["seconds"], 3),
            "target": case.target,
            "bytes sent": did["sent"],
            "bytes received": did["received"],
            "share of transfer": round(did["transfer"] / best["seconds"], 3),
        }


if __name__ == "__main__":
    for row in rows(sys.argv[1:] or ["gpt2-small", "adapter"], int(os.environ.get("PG_GPT2_ROUNDS", ROUNDS))):
        print(json.dumps(row), flush=True)
