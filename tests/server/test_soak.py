"""The short form of `make soak`: everything at once, with cancels and kills, for a minute (PG_GPT2_SOAK_SECONDS)."""

import os
from pathlib import Path

from psycopg import conninfo

from tests.soak.log import unexpected_lines
from tests.soak.soak import Soak

SECONDS = float(os.environ.get("PG_GPT2_SOAK_SECONDS", "60"))


def test_nothing_is_lost_wrong_or_left_over_when_everything_happens_at_once(cluster_dsn, new_database, server_files):
    log = Path(str(conninfo.conninfo_to_dict(cluster_dsn)["host"])).parent / "log"
    began = log.stat().st_size
    soak = Soak(new_database(), seed=1, folder=server_files)
    soak.prepare()
    soak.run(SECONDS)
    soak.check_at_the_end()
    soak.failures += unexpected_lines(log, began, kills=soak.counts["faults: kill -9"])
    print(soak.report())
    assert soak.failures == [], soak.report()
    assert min(soak.counts["training"], soak.counts["models made and dropped"], soak.counts["answers of fixed"]) > 0
