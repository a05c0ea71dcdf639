"""Parallel work on the cores of one backend: Python threads over single-threaded BLAS.

NumPy releases the GIL in products and large ufuncs, so plain threads suffice. BLAS itself is kept at one thread,
because its idle workers spin and would take the core that a Python thread wants. Work is cut into pieces that depend on
the problem's size only, never on the number of threads: results are the same bits at any thread count.
"""

import contextlib
import os
import queue
import signal
import threading
from collections.abc import Callable, Sequence
from itertools import count

from .. import host
from . import slices

Task = Callable[[], object]
STACK = 8 << 20  # bytes for each thread: what Linux gives; other code of the process may have asked for less
LOOK_EVERY = 0.05  # seconds between looks for an interrupt while others work


def start(work: Task, name: str) -> None:
    """Do `work` on a thread of its own, with every signal blocked: they are the server's, which handles them in its own.

    RuntimeError where the system allows no more threads.
    """
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    stack = threading.stack_size(STACK)
    try:
        threading.Thread(target=work, daemon=True, name=name).start()
    finally:
        threading.stack_size(stack)
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


def _nothing() -> None:
    """A helper has no interrupts to look for."""


class ThreadPool:
    """A few threads that run tasks beside the caller; started on first use, signals blocked."""

    def __init__(self, count: int) -> None:
        self.count = max(1, count)
        self._tasks: queue.SimpleQueue = queue.SimpleQueue()
        self._started = 0

    def run(self, tasks: Sequence[Task], batch: "Batch | None" = None) -> None:
        """Run `tasks`, in any order and on any thread; return when all are done, raise the first error.

        The caller looks for an interrupt between tasks. After it, or an error, no further task is begun. Tasks of a task are
        run by the thread that has it, be that a helper: only the server's own thread may call the server.
        """
        helpers = min(self.count, len(tasks)) - 1 if _current.batch is None else 0
        if helpers > self._started:
            helpers = self._start(helpers)
        if helpers < 1:
            for task in tasks:
                look()
                task()
            return
        batch = batch or Batch()
        batch.begin(tasks)
        for _ in range(helpers):
            self._tasks.put(batch)
        batch.work(host.check_interrupts)
        batch.wait()

    def _start(self, wanted: int) -> int:
        """Start threads until there are as many as wanted; how many there are.

        Where the system allows no more, the pool goes on with what it has: the next call to `set_threads` tries again.
        """
        while self._started < wanted:
            try:
                start(self._serve, f"pg_gpt2-{self._started}")
            except RuntimeError:
                self.count = self._started + 1
                break
            self._started += 1
        return self._started

    def _serve(self) -> None:
        import numpy

        numpy.seterr(all="ignore")  # holds for this thread only
        while (batch := self._tasks.get()) is not None:
            _current.batch = batch
            if batch.work() and self._tasks.empty():  # else this thread is late already
                batch.look_ahead()
            _current.batch = None
            del batch  # and what it holds

    def close(self) -> None:
        """Let the threads end."""
        for _ in range(self._started):
            self._tasks.put(None)


class Batch:
    """A stack of tasks that several threads pop until it is empty; one caller at a time may refill it.

    A helper that did some calls `ahead` when none is left; nobody waits for that. When the caller goes on, nothing refers to
    a task any more: what it worked on may be free.
    """

    def __init__(self, ahead: Task | None = None) -> None:
        self._ahead = ahead
        self._left: list[Task] = []
        self._done = threading.Lock()
        self._done.acquire()
        self._error: BaseException | None = None

    def begin(self, tasks: Sequence[Task]) -> None:
        """Offer these tasks."""
        self._finished = count(1 - len(tasks))  # the last task counts 0
        self._left.extend(reversed(tasks))

    def work(self, look: Task = _nothing) -> bool:
        """Do tasks until none is left, each after a `look` for an interrupt; whether there was one."""
        done = False
        while True:
            try:
                task = self._left.pop()  # atomic under the GIL
            except IndexError:
                return done
            try:
                if self._error is None:
                    look()
                    _current.tasks += 1
                    try:
                        task()
                    finally:
                        _current.tasks -= 1
            except BaseException as error:  # handed to the caller by wait()
                self._error = self._error or error
            del task
            if next(self._finished) == 0:  # atomic as well
                self._done.release()
            done = True

    def go_on(self) -> None:
        """Raise in a task of this batch when another one has failed, or the caller was interrupted."""
        if self._error is not None:
            raise Stopped

    def look_ahead(self) -> None:
        """Do `ahead`, whose failure is no one's: the thread must live on."""
        if self._ahead is not None:
            with contextlib.suppress(Exception):
                self._ahead()

    def wait(self) -> None:
        """Return when all tasks are done; raise the first error, or an interrupt that comes meanwhile."""
        while not self._done.acquire(timeout=LOOK_EVERY):
            try:
                host.check_interrupts()
            except BaseException as interrupt:  # raised when no task works any more on what is the caller's
                self._error = self._error or interrupt
        if self._error is not None:
            error, self._error = self._error, None
            try:
                raise error
            finally:
                del error  # which holds this frame, and others what they worked on


class Stopped(Exception):
    """Ends a task whose batch has failed; nobody sees it."""


class _Current(threading.local):
    """The batch that this thread helps with, None for the thread of the server; and in how many tasks it is, one in another."""

    batch: Batch | None = None
    tasks = 0


_current = _Current()


def look() -> None:
    """To be called by tasks that take long, at least every 100 ms: raises where the work is to end."""
    if _current.batch is None:
        host.check_interrupts()
    else:
        _current.batch.go_on()


def in_a_task() -> bool:
    """Whether the caller is one of several tasks: other cores have theirs, and to cut its work only makes more calls."""
    return _current.tasks > 0


_pool = ThreadPool(min(2, os.cpu_count() or 1))


def set_threads(count: int) -> None:
    """Use `count` cores from now on (setting `pg_gpt2.threads`)."""
    global _pool
    if count != _pool.count:
        _pool.close()
        _pool = ThreadPool(count)


def threads() -> int:
    """How many cores are in use."""
    return _pool.count


def run(tasks: Sequence[Task]) -> None:
    """Run independent tasks on all cores in use."""
    _pool.run(tasks)


def prepared(tasks: Sequence[Task], ahead: Task | None = None) -> Task:
    """A call that runs these tasks on all cores in use, again and again; a helper then does `ahead`, which nobody waits for."""
    batch = Batch(ahead)
    return lambda: _pool.run(tasks, batch)


def for_rows(total: int, size: int, work: Callable[[slice], object]) -> None:
    """Call `work(rows)` for slices of at most `size` of `total` rows, on all cores."""
    if 0 < total <= size:
        work(slice(0, total))
    else:
        run([lambda rows=rows: work(rows) for rows in slices.pieces(total, size)])  # type: ignore[misc]
