"""How many threads there may be, and that they end."""

import gc
import threading
import time
import weakref

import numpy as np
import pytest
from pg_gpt2 import threads


@pytest.mark.parametrize(
    ("group", "limit", "quota"),
    [
        ("0::/\n", "150000 100000\n", 1.5),
        ("3:cpu:/old\n0::/system.slice/postgresql.service\n", "400000 100000\n", 4.0),
        ("0::/\n", "max 100000\n", None),
        ("0::/\n", None, None),
        ("3:cpu:/old\n", "150000 100000\n", None),
    ],
)
def test_cpu_quota_is_that_of_the_control_group(tmp_path, group, limit, quota):
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / "proc" / "self" / "cgroup").write_text(group)
    folder = tmp_path / "sys/fs/cgroup" / group.rsplit("::/", 1)[-1].strip()
    folder.mkdir(parents=True)
    if limit:
        (folder / "cpu.max").write_text(limit)
    assert threads.cpu_quota(str(tmp_path)) == quota


def test_cpu_quota_without_control_groups(tmp_path):
    assert threads.cpu_quota(str(tmp_path)) is None


@pytest.mark.parametrize(
    ("limits", "quota"),
    [
        ({"": "800000 100000\n", "a": "max 100000\n", "a/b": "400000 100000\n"}, 4.0),
        ({"": None, "a": "150000 100000\n", "a/b": "400000 100000\n"}, 1.5),
        ({"": None, "a": "150000 100000\n", "a/b": "max 100000\n"}, 1.5),
        ({"": None, "a": "max 100000\n", "a/b": None}, None),
    ],
)
def test_the_least_quota_of_the_groups_around_ours_binds(tmp_path, limits, quota):
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / "proc" / "self" / "cgroup").write_text("0::/a/b\n")
    for group, limit in limits.items():
        folder = tmp_path / "sys/fs/cgroup" / group
        folder.mkdir(parents=True, exist_ok=True)
        if limit:
            (folder / "cpu.max").write_text(limit)
    assert threads.cpu_quota(str(tmp_path)) == quota


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("tasks", [0, 1, 2, 50])
def test_a_pool_runs_each_task_once_and_none_is_fine(count, tasks):
    pool, done = threads.Pool(count), []
    caller = threading.Thread(target=pool.run, args=([lambda i=i: done.append(i) for i in range(tasks)],), daemon=True)
    caller.start()
    caller.join(10)
    assert not caller.is_alive()
    pool.close()
    assert sorted(done) == list(range(tasks))


def test_prepared_tasks_run_again_and_again_also_after_an_error():
    done = []
    batch = threads.prepared([lambda: done.append(1), lambda: done.append(1 / (len(done) < 4)), lambda: done.append(1)])
    for _ in range(3):
        done.clear()
        batch()
        assert len(done) == 3
    done.extend([0] * 4)
    with pytest.raises(ZeroDivisionError):
        batch()
    done.clear()
    batch()
    assert len(done) == 3


def both(pool: threads.Pool, ahead: threads.Task | None = None) -> None:
    """Run two tasks that meet, hence one on each thread."""
    met = threading.Barrier(2)
    pool.run([lambda: met.wait(10)] * 2, threads.Batch(ahead))


def test_nobody_waits_for_what_a_helper_does_ahead():
    pool, begun, let_go = threads.Pool(2), threading.Event(), threading.Event()
    both(pool, lambda: begun.set() or let_go.wait(10))
    assert begun.wait(10)
    pool.run([lambda: None, lambda: None])  # the helper is still busy: the caller does all
    let_go.set()
    both(pool)
    pool.close()


def test_a_helper_that_came_late_does_not_look_ahead():
    pool, let_go, read = threads.Pool(2), threading.Event(), []
    both(pool, lambda: let_go.wait(10))
    pool.run([lambda: None, lambda: None], threads.Batch(lambda: read.append("what the caller has passed")))
    let_go.set()
    both(pool)
    pool.close()
    assert not read


def test_a_helper_survives_a_failure_ahead():
    pool, failed = threads.Pool(2), threading.Event()
    both(pool, lambda: failed.set() or 1 / 0)
    assert failed.wait(10)
    both(pool)
    pool.close()


def test_an_error_lets_go_of_what_its_task_worked_on():
    pool, work = threads.Pool(2), np.empty(1)
    held = weakref.ref(work)
    gc.disable()
    try:
        with pytest.raises(ZeroDivisionError):
            pool.run([lambda work=work: work / (1 // 0), lambda: None])
        del work
        assert held() is None
    finally:
        gc.enable()
    pool.close()


def test_no_task_is_alive_when_its_caller_goes_on():
    pool, let_go = threads.Pool(2), threading.Event()
    both(pool, lambda: let_go.wait(10))  # the helper is busy from now on
    work = np.empty(1)
    held = weakref.ref(work)
    pool.run([lambda work=work: work.sum(), lambda work=work: work.sum()])
    del work
    assert held() is None
    let_go.set()
    pool.close()


def test_a_waiting_helper_keeps_nothing_alive():
    pool, ahead = threads.Pool(2), lambda: None
    held = weakref.ref(ahead)
    both(pool, ahead)
    del ahead
    deadline = time.monotonic() + 10
    while held() is not None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert held() is None
    pool.close()
