"""A run whose loss of evaluation falls and then rises, how it is called, and what it leaves."""

import contextlib
import threading
from collections.abc import Callable

import psycopg
from psycopg import rows

from tests.server.test_train_run import one

STEPS = 60
GIVEN = "batch_size => 4, lr_max => 0.01, dropout_p => 0, log_every => 0, eval_every => 4"
BEST = '{"keep_best": true, "warmup": 0}'
PATIENT = '{"keep_best": true, "patience": 3, "min_delta": 0.001, "warmup": 0}'
STATE = """
    SELECT md5(string_agg(concat_ws(' ', name, token_id, md5(data), md5(m), md5(v), step), ',' ORDER BY name, token_id))
    FROM llm_param_resolved WHERE model = %s
"""
LOG = "SELECT step, lr, loss, grad_norm, val_loss FROM llm_train_log WHERE run_id = %s ORDER BY step"
Notices = list[str]
RUN = "CALL llm_train_run"


def make_model(conn: psycopg.Connection, name: str) -> None:
    """Its rows of the split val have the same tokens in another order: their loss falls, and then rises for good."""
    conn.execute("SELECT llm_init_model(%s, 2, 2, 16, 16, 50, seed => 3)", [name])
    conn.execute(
        """
        INSERT INTO llm_dataset (model, split, tokens, target)
        SELECT %s, 'train', ARRAY[1, 2, 3, 4, 5, 6, 7, 8], ARRAY[2, 3, 4, 5, 6, 7, 8, n] FROM generate_series(1, 20) n
        UNION ALL SELECT %s, 'val', ARRAY[n, 5, 3, 1, 7], ARRAY[5, 3, 1, 7, 2] FROM generate_series(1, 7) n
        """,
        [name, name],
    )


def call(model: str, options: str = PATIENT, n_steps: int = STEPS, function: str = "SELECT llm_train") -> str:
    more = ", commit_every => 6, flush_seconds => 0" if function.startswith("CALL") else ""
    return f"{function}('{model}', {n_steps}, {GIVEN}{more}, options => '{options}')"


def last_run(conn: psycopg.Connection, model: str) -> int:
    return one(conn, "SELECT max(run_id) FROM llm_run WHERE model = %s", model)


def outcome(conn: psycopg.Connection, model: str) -> tuple:
    """Weights and optimizer state, status and log of the last run of `model`."""
    run = last_run(conn, model)
    status = one(conn, "SELECT status FROM llm_run WHERE run_id = %s", run)
    return one(conn, STATE, model), status, conn.execute(LOG, [run]).fetchall()


def evaluations(log: list[tuple]) -> dict[int, float]:
    return {step: val_loss for step, *_, val_loss in log if val_loss is not None}


def replayed(conn: psycopg.Connection, run: int, *arguments: object) -> object:
    places = ", ".join(["%s"] * (1 + len(arguments)))
    with conn.cursor(row_factory=rows.namedtuple_row) as cursor:
        return cursor.execute(f"SELECT * FROM llm_replay({places})", [run, *arguments]).fetchone()


def start(connect: Callable[[], psycopg.Connection], statement: str) -> tuple[psycopg.Connection, threading.Thread]:
    """The statement in a session and thread of its own; how it ends shows in the tables."""
    session = connect()

    def work() -> None:
        with contextlib.suppress(psycopg.Error):
            session.execute(statement)

    thread = threading.Thread(target=work)
    thread.start()
    return session, thread
