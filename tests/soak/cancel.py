"""python -m tests.soak.cancel: how long each function goes on after it was cancelled, at moments at random; the worst of each.

Give it a machine to itself. --large adds a training step of gpt2-small's size, which needs 3 GB.
"""

import argparse
import os
import random
import threading
import time
from pathlib import Path

import psycopg
from psycopg import conninfo

from tests.server.test_cancel import COMMITTING, LONG, WORDS

GPT2_SMALL = "SELECT llm_train_step('small', batch => ARRAY(SELECT id::integer FROM llm_dataset ORDER BY id LIMIT 4))"


def prepare(conn: psycopg.Connection, folder: Path, large: bool) -> dict[str, str]:
    """The models and files that the statements use; the statements."""
    conn.execute("SET client_min_messages = warning")
    conn.execute("SELECT llm_train_bpe($$SELECT 'low lower lowest newer wider'$$, 265, 'slow')")
    conn.execute("SELECT llm_init_model('slow', 12, 8, 512, 1024, seed => 1)")
    conn.execute("SELECT llm_dataset_load($$SELECT repeat('low lower ', 20000)$$, 'slow', 256, val_fraction => 0.5)")
    conn.execute(WORDS)
    conn.execute("CREATE TABLE file AS SELECT string_agg(c, '') AS data FROM llm_export_safetensors('slow') AS c")
    conn.execute("SELECT llm_checkpoint_save('slow')")
    for kind in ("safetensors", "npz"):
        conn.execute(f"SELECT pg_llm_export_{kind}(%s, 'slow')", [f"{folder}/slow.{kind}"])
    statements = {name: text.replace("{folder}", str(folder)) for name, text in LONG.items()}
    statements["llm_train_run"] = COMMITTING
    if large:
        conn.execute("SELECT llm_init_model('small', 12, 12, 768, 1024, 50257)")
        conn.execute("UPDATE llm_dataset SET model = NULL")
        statements["a step of gpt2-small"] = GPT2_SMALL
    return statements


def latency(conn: psycopg.Connection, statement: str, after: float) -> float | None:
    """Seconds from the cancel, `after` seconds into the statement, to its end; None when it ended before."""
    asked = [0.0]

    def cancel() -> None:
        asked[0] = time.monotonic()
        conn.cancel()

    timer = threading.Timer(after, cancel)
    timer.start()
    try:
        conn.execute(statement)
    except psycopg.errors.QueryCanceled:
        return time.monotonic() - asked[0]
    finally:
        timer.cancel()
        timer.join()
    return None


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak.cancel", description=__doc__)
    parser.add_argument("--dsn", default=os.environ.get("PG_GPT2_TEST_DSN"))
    parser.add_argument("--times", type=int, default=10, help="cancels a statement")
    parser.add_argument("--seconds", type=float, default=1.0, help="the latest moment of a cancel")
    parser.add_argument("--only", default="", help="part of the name of a statement")
    parser.add_argument("--large", action="store_true")
    chosen = parser.parse_args()
    with psycopg.connect(chosen.dsn, autocommit=True) as conn:
        conn.execute("CREATE DATABASE cancel TEMPLATE template_pg_gpt2")
    folder = Path(str(conninfo.conninfo_to_dict(chosen.dsn)["host"])).parent / "files"
    moment = random.Random(0)
    with psycopg.connect(conninfo.make_conninfo(chosen.dsn, dbname="cancel"), autocommit=True) as conn:
        for name, statement in prepare(conn, folder, chosen.large).items():
            if chosen.only in name:
                taken = [latency(conn, statement, moment.uniform(0.02, chosen.seconds)) for _ in range(chosen.times)]
                found = [one for one in taken if one is not None]
                worst = f"{1000 * max(found):.0f} ms" if found else "-"
                print(f"{name}: {worst} at worst of {len(found)} cancels", flush=True)
                conn.execute("DELETE FROM llm_train_log; DELETE FROM llm_run")


if __name__ == "__main__":
    main()
