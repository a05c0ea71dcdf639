"""A session that is terminated while one of its threads computes ends alone: a crash would restart the whole server."""

import psycopg
import pytest

TERMINATED = """
CREATE FUNCTION pg_temp.terminated() RETURNS void LANGUAGE plpython3u AS $$
import threading, time
import numpy as np
plpy.execute("SELECT llm_generate_tokens('{1}', 1, model_name => 'any')")
a = np.ones((1500, 1500), np.float32)
def work():
    while True:
        a @ a
threading.Thread(target=work, daemon=True).start()
time.sleep(0.05)
plpy.execute("SELECT pg_terminate_backend(pg_backend_pid())")
plpy.execute("SELECT pg_sleep(10)")
$$
"""


def test_a_session_that_is_terminated_in_a_product_ends_alone(conn, connect):
    """The libraries of a process take their memory away when it ends; OpenBLAS what a product works in."""
    conn.execute("SELECT llm_init_model('any', 1, 1, 8, 16, 50, seed => 1)")
    for _ in range(10):
        session = connect()
        session.execute(TERMINATED)
        with pytest.raises(psycopg.errors.AdminShutdown):
            session.execute("SELECT pg_temp.terminated()")
        assert conn.execute("SELECT 1 FROM pg_sleep(0.1)").fetchone() == (1,)
    conn.execute("SELECT llm_drop_model('any')")
