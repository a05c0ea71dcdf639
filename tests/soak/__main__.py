"""python -m tests.soak: a soak in a database of its own, on the cluster of --dsn; exits with 1 when something failed."""

import argparse
import os
import random
import sys
import time
from pathlib import Path

import psycopg
from psycopg import conninfo

from .log import unexpected_lines
from .soak import Soak


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument(
        "--dsn",
        default=os.environ.get("PG_GPT2_TEST_DSN"),
        help="of a throw-away cluster: processes are killed, and it restarts (default: that of docker/cluster.sh run)",
    )
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    chosen = parser.parse_args()
    cluster = Path(str(conninfo.conninfo_to_dict(chosen.dsn)["host"])).parent
    with psycopg.connect(chosen.dsn, autocommit=True) as conn:
        conn.execute("CREATE DATABASE soak TEMPLATE template_pg_gpt2")
    began = (cluster / "log").stat().st_size
    soak = Soak(conninfo.make_conninfo(chosen.dsn, dbname="soak"), chosen.seed, cluster / "files")
    soak.prepare()
    print(f"seed {chosen.seed}, {chosen.minutes} minutes from {time.strftime('%H:%M')}", flush=True)
    soak.run(60 * chosen.minutes)
    soak.check_at_the_end()
    soak.failures += unexpected_lines(cluster / "log", began, kills=soak.counts["faults: kill -9"])
    print(soak.report())
    sys.exit(bool(soak.failures))


if __name__ == "__main__":
    main()
