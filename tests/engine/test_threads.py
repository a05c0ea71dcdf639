"""How many threads there may be, and that they end."""

import gc
import threading
import time
import weakref

import numpy as np
import pytest
from pg_gpt2 import host
from pg_gpt2.fast import slices, threads


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("tasks", [0, 1, 2, 50])
def test_a_pool_runs_each_task_once_and_none_is_fine(count, tasks):
    pool, done = threads.ThreadPool(count), []
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


def test_only_the_servers_own_thread_looks_for_interrupts(monkeypatch):
    """Tasks of a task, too: the server must not be called from a helper."""
    looked: set[int] = set()
    monkeypatch.setattr(host, "check_interrupts", lambda: looked.add(threading.get_ident()))
    pool, met = threads.ThreadPool(2), threading.Barrier(2)
    monkeypatch.setattr(threads, "_pool", pool)

    def task() -> None:
        met.wait(10)  # hence one on each thread
        threads.run([lambda: None] * 3)
        threads.for_rows(6, 2, lambda rows: threads.look())

    threads.run([task, task])
    pool.close()
    assert looked == {threading.get_ident()}


def both(pool: threads.ThreadPool, ahead: threads.Task | None = None) -> None:
    """Run two tasks that meet, hence one on each thread."""
    met = threading.Barrier(2)
    pool.run([lambda: met.wait(10)] * 2, threads.Batch(ahead))


def test_nobody_waits_for_what_a_helper_does_ahead():
    pool, begun, let_go = threads.ThreadPool(2), threading.Event(), threading.Event()
    both(pool, lambda: begun.set() or let_go.wait(10))
    assert begun.wait(10)
    pool.run([lambda: None, lambda: None])  # the helper is still busy: the caller does all
    let_go.set()
    both(pool)
    pool.close()


def test_a_helper_that_came_late_does_not_look_ahead():
    pool, let_go, read = threads.ThreadPool(2), threading.Event(), []
    both(pool, lambda: let_go.wait(10))
    pool.run([lambda: None, lambda: None], threads.Batch(lambda: read.append("what the caller has passed")))
    let_go.set()
    both(pool)
    pool.close()
    assert not read


def test_a_helper_survives_a_failure_ahead():
    pool, failed = threads.ThreadPool(2), threading.Event()
    both(pool, lambda: failed.set() or 1 / 0)
    assert failed.wait(10)
    both(pool)
    pool.close()


def test_an_error_lets_go_of_what_its_task_worked_on():
    pool, work = threads.ThreadPool(2), np.empty(1)
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
    pool, let_go = threads.ThreadPool(2), threading.Event()
    both(pool, lambda: let_go.wait(10))  # the helper is busy from now on
    work = np.empty(1)
    held = weakref.ref(work)
    pool.run([lambda work=work: work.sum(), lambda work=work: work.sum()])
    del work
    assert held() is None
    let_go.set()
    pool.close()


def test_a_waiting_helper_keeps_nothing_alive():
    pool, ahead = threads.ThreadPool(2), lambda: None
    held = weakref.ref(ahead)
    both(pool, ahead)
    del ahead
    deadline = time.monotonic() + 10
    while held() is not None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert held() is None
    pool.close()


def test_where_no_thread_can_be_started_the_caller_does_the_work(monkeypatch):
    def refuse(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    pool, done = threads.ThreadPool(4), []
    with monkeypatch.context() as patch:
        patch.setattr(threads.threading.Thread, "start", refuse)
        pool.run([lambda i=i: done.append(i) for i in range(50)])
    assert done == list(range(50))
    assert pool.count == 1, "so that set_threads, at the next statement, makes a pool that tries again"


def test_threads_have_a_stack_of_ours_whatever_other_code_asked_for(monkeypatch):
    sizes = []
    begin = threading.Thread.start
    monkeypatch.setattr(threading.Thread, "start", lambda self: (sizes.append(threading.stack_size()), begin(self))[1])
    before = threading.stack_size(64 << 10)
    try:
        pool = threads.ThreadPool(2)
        both(pool)
        assert (sizes, threading.stack_size()) == ([threads.STACK], 64 << 10)
    finally:
        threading.stack_size(before)
    pool.close()


class Interrupt(Exception):
    """As the server raises it."""


def interrupted_after(looks: int) -> threads.Task:
    """What looks for an interrupt, which comes at the look after so many."""
    left = iter(range(looks))

    def look() -> None:
        if next(left, None) is None:
            raise Interrupt

    return look


@pytest.mark.parametrize("count", [1, 2])
def test_an_interrupt_ends_the_work_between_tasks(monkeypatch, count):
    pool, done = threads.ThreadPool(count), []
    monkeypatch.setattr(host, "check_interrupts", interrupted_after(3))
    with pytest.raises(Interrupt):
        pool.run([lambda: (done.append(1), time.sleep(0.01))] * 100)
    assert len(done) < 20
    monkeypatch.undo()
    pool.run([lambda: done.append(2)] * 10)
    assert done.count(2) == 10
    pool.close()


def test_an_interrupt_ends_a_long_task_of_a_helper_that_the_caller_waits_for(monkeypatch):
    pool, met, ended = threads.ThreadPool(2), threading.Barrier(2), []
    caller = threading.get_ident()

    def task() -> None:
        met.wait(10)
        deadline = time.monotonic() + 10
        while threading.get_ident() != caller and time.monotonic() < deadline:
            try:
                threads.look()
            except BaseException as error:
                ended.append(type(error))
                raise
            time.sleep(0.001)

    monkeypatch.setattr(host, "check_interrupts", interrupted_after(2))
    with pytest.raises(Interrupt):
        pool.run([task, task])
    assert ended == [threads.Stopped]
    pool.close()


def test_the_server_is_asked_in_its_own_thread_only_also_by_tasks_that_run_tasks(monkeypatch):
    """As attention does with whole heads: in another thread the server says that its stack is too deep, or worse."""
    asked = set()
    monkeypatch.setattr(host, "check_interrupts", lambda: asked.add(threading.get_ident()))
    pool, met, done = threads.ThreadPool(2), threading.Barrier(2), []

    def task() -> None:
        met.wait(10)  # one on each thread
        threads.run([lambda: done.append(1)] * 20)

    pool.run([task, task])
    pool.close()
    assert (asked, len(done)) == ({threading.get_ident()}, 40)


def test_parts_cut_an_array_of_any_shape():
    for shape in ((), (7,), (3, 4), (2, 3, 5), (1, 1, 9), (0, 4), (4, 0)):
        for size in (1, 2, 4, 6, 100):
            whole, cut = np.arange(np.prod(shape)).reshape(shape), np.full(shape, -1)
            for part in slices.parts(shape, size):
                assert cut[part].size <= size
                cut[part] = whole[part]
            assert np.array_equal(cut, whole)
