"""kill -9 of a run of an adapter: the whole server restarts after each, so this module has it to itself."""

import contextlib
import os
import signal
import time
from collections.abc import Callable

import psycopg

from tests.server.adapters import LOGITS, STATE
from tests.server.early_stop.runs import start
from tests.server.test_faults import reconnect, wait_for_end
from tests.server.test_train_run import one, steps

STEPS, KILLS = 60, 4
GIVEN = "{steps}, batch_size => 4, lr_max => 0.01, seed => 5, dropout_p => 0.1, log_every => 0"
RUN = f"CALL llm_train_run('m', {GIVEN.format(steps=STEPS)}, commit_every => 1, flush_seconds => 0)"
# Without cmin, which recovery sets to 0.
BASE = """
    SELECT string_agg(concat_ws(' ', name, token_id, ctid, xmin, xmax, step, md5(data)), ',' ORDER BY name, token_id)
    FROM llm_param WHERE model = 'base'
"""


def test_kill_9_of_an_adapters_run_leaves_the_base_and_resumes_to_the_same_bits(new_database: Callable[..., str]):
    dsn = psycopg.conninfo.make_conninfo(new_database(), options="-c synchronous_commit=on")
    conn = psycopg.connect(dsn, autocommit=True)
    conn.execute("SELECT llm_init_model('base', 2, 2, 16, 16, 50, seed => 3)")
    for name in ("whole", "m"):
        conn.execute(
            "SELECT llm_adapter_create(%s, 'base', r => 2, targets => '{attn.c_attn,mlp.c_proj}', dropout_p => 0.1)",
            [name],
        )
    conn.execute(
        "INSERT INTO llm_dataset (tokens, target) SELECT ARRAY[n, 1, 2, 3], ARRAY[1, 2, 3, n] FROM generate_series(4, 20) n"
    )
    base = one(conn, BASE)
    conn.execute(f"SELECT llm_train('whole', {GIVEN.format(steps=STEPS)})")
    for _ in range(KILLS):
        before = steps(conn, "m")
        worker, thread = start(lambda: psycopg.connect(dsn, autocommit=True), RUN)
        while thread.is_alive() and steps(conn, "m") < before + 3:
            time.sleep(0.001)
        with contextlib.suppress(ProcessLookupError):
            os.kill(worker.info.backend_pid, signal.SIGKILL)
        thread.join()
        worker.close()
        wait_for_end(conn)
        conn = reconnect(dsn)
        assert before + 3 <= steps(conn, "m") < STEPS
        assert one(conn, BASE) == base
    conn.execute(RUN)
    assert one(conn, STATE, "m") == one(conn, STATE, "whole")
    assert one(conn, LOGITS, "m") == one(conn, LOGITS, "whole") != one(conn, LOGITS, "base")
    assert one(conn, BASE) == base
    assert one(conn, "SELECT count(*) FROM llm_run WHERE model = 'm'") == 1
    conn.close()
