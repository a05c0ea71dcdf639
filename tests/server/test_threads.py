"""The settings pg_gpt2.threads and pg_gpt2.attention_chunk: what they change, and what they must not."""

import os
import threading
from pathlib import Path

import pytest

ROWS = [[(7 * i + 3 * j) % 500 for j in range(64)] for i in range(8)]


@pytest.fixture(scope="module", autouse=True)
def model(module_conn):
    """Large enough that work is shared out; with data to train on."""
    module_conn.execute("SELECT llm_init_model('wide', 2, 4, 256, 128, 8000, seed => 5)")
    for row in ROWS:
        module_conn.execute(
            "INSERT INTO llm_dataset (model, tokens, target) VALUES ('wide', %s, %s)", (row, [*row[1:], 1])
        )


@pytest.fixture(scope="module")
def cores(module_conn) -> int:
    """Threads of a session that has set nothing."""
    found = work(module_conn)[2]["threads"]
    assert 1 <= found <= len(os.sched_getaffinity(0))
    return found


def work(conn, **options) -> tuple[list[int], list[float], dict]:
    """Generate and train, undone again: ids, losses, and what llm_run says of the environment."""
    named = "".join(f", {name} => {value}" for name, value in options.items())
    with conn.transaction(force_rollback=True):
        ids = conn.execute(
            "SELECT llm_generate_tokens(%s, 8, temperature => 0, model_name => 'wide')", (ROWS[0],)
        ).fetchone()[0]
        run = conn.execute(
            f"SELECT llm_train('wide', 2, batch_size => 4, dropout_p => 0.1, log_every => 0{named})"
        ).fetchone()
        query = (
            "SELECT array_agg(loss ORDER BY step), environment FROM llm_train_log JOIN llm_run USING (run_id)"
            " WHERE run_id = %s GROUP BY environment"
        )
        losses, environment = conn.execute(query, run).fetchone()
    return ids, losses, environment


def tasks(conn) -> int:
    """Threads of the session's process."""
    return len(os.listdir(Path("/proc") / str(conn.info.backend_pid) / "task"))


def test_threads_are_as_many_as_the_setting_and_the_cores_allow(connect, cores):
    for setting in (1, 2, 4096):
        conn = connect(options=f"-c pg_gpt2.threads={setting}")
        _, _, environment = work(conn)
        assert environment["threads"] == min(setting, cores)
        assert tasks(conn) <= min(setting, cores)
        if setting == 1 or cores > 1:
            assert tasks(conn) == min(setting, cores)


def test_grad_workers_are_as_many_as_the_cores_allow(connect, cores):
    conn = connect(options="-c pg_gpt2.threads=1")
    assert work(conn, grad_workers=4000)[2]["threads"] == cores
    assert tasks(conn) <= cores


def test_threads_end_when_the_setting_becomes_smaller(connect):
    conn = connect()
    work(conn)
    conn.execute("SET pg_gpt2.threads = 1")
    work(conn)
    assert tasks(conn) == 1


def test_results_do_not_depend_on_threads(connect):
    results = [work(connect(options=f"-c pg_gpt2.threads={count}"))[:2] for count in (1, 2, 3)]
    results.append(work(connect(options="-c pg_gpt2.threads=1"), grad_workers=2)[:2])
    assert all(result == results[0] for result in results)


def test_attention_chunk_changes_rounding_only_and_is_recorded(connect):
    conn = connect()
    ids, losses, environment = work(conn)
    assert environment["attention_chunk"] == 64
    for chunk in (1, 7, 1000):
        conn.execute("SELECT set_config('pg_gpt2.attention_chunk', %s, false)", (str(chunk),))
        same_ids, close, recorded = work(conn)
        assert recorded["attention_chunk"] == chunk
        assert close == pytest.approx(losses, rel=1e-5)
        assert same_ids == ids


def test_sessions_at_once_have_the_results_of_one_alone(connect, cores):
    """More sessions than cores, each with all cores: none waits for another, and none computes something else."""
    alone = work(connect())[0]
    query = "SELECT llm_generate_tokens(%s, 8, temperature => 0, model_name => 'wide')"
    found: dict[int, list[list[int]]] = {}

    def generate(number: int, conn) -> None:
        found[number] = [conn.execute(query, (ROWS[0],)).fetchone()[0] for _ in range(3)]

    workers = [threading.Thread(target=generate, args=(number, connect())) for number in range(4 * cores)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=120)
    assert found == {number: [alone] * 3 for number in range(4 * cores)}
