"""Parallel work on the cores of one backend: Python threads over single-threaded BLAS.

NumPy releases the GIL in products and large ufuncs, so plain threads suffice. BLAS itself is kept at one thread,
because its idle workers spin and would take the core that a Python thread wants. Work is cut into pieces that depend on
the problem's size only, never on the number of threads: results are the same bits at any thread count.
"""

import contextlib
import ctypes
import os
import queue
import signal
import threading
from collections.abc import Callable, Sequence
from functools import cache
from itertools import count

Task = Callable[[], object]

_SETTERS = (
    "scipy_openblas_set_num_threads64_",
    "scipy_openblas_set_num_threads",
    "openblas_set_num_threads64_",
    "openblas_set_num_threads",
    "MKL_Set_Num_Threads",
)

_DESCRIPTIONS = (
    "scipy_openblas_get_config64_",
    "scipy_openblas_get_config",
    "openblas_get_config64_",
    "openblas_get_config",
)


def import_numpy_single_threaded() -> None:
    """Import NumPy with BLAS at one thread and every signal blocked in the threads that it may start."""
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    before = {name: os.environ.get(name) for name in ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS")}
    try:
        os.environ.update(dict.fromkeys(before, "1"))
        import numpy  # noqa: F401  (imported for its effect: BLAS reads the environment once)
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    set_blas_threads(1)


def set_blas_threads(count: int) -> bool:
    """Cap the BLAS that NumPy loaded at `count` threads; False when no known BLAS was found."""
    for path in blas_libraries():
        library = ctypes.CDLL(path)
        for name in _SETTERS:
            setter = getattr(library, name, None)
            if setter is not None:
                setter(ctypes.c_int(count))
                return True
    return False


def blas_name() -> str:
    """What the BLAS that NumPy loaded says of itself, else the name of its library."""
    paths = blas_libraries()
    for path in paths:
        for name in _DESCRIPTIONS:
            describe = getattr(ctypes.CDLL(path), name, None)
            if describe is not None:
                describe.restype = ctypes.c_char_p
                return describe().decode()
    return ", ".join(map(os.path.basename, paths)) or "unknown"


def blas_libraries() -> list[str]:
    """Paths of mapped shared objects whose name says BLAS or MKL."""
    try:
        with open("/proc/self/maps", encoding="utf-8") as maps:
            paths = {line.split(maxsplit=5)[5].strip() for line in maps if line.count("/") and ".so" in line}
    except OSError:
        return []
    names = ("blas", "mkl_rt")
    return sorted(path for path in paths if any(name in os.path.basename(path).lower() for name in names))


@cache
def cpu_quota(root: str = "/") -> float | None:
    """Cores' worth of time that control groups version 2 allow, the least of ours and those around it; asked once a session."""
    try:
        with open(os.path.join(root, "proc/self/cgroup"), encoding="ascii") as file:
            group = next(line[3:].strip() for line in file if line.startswith("0::"))
    except (OSError, ValueError, StopIteration):  # no such group
        return None
    names = [name for name in group.split("/") if name]
    folders = (os.path.join(root, "sys/fs/cgroup", *names[:depth]) for depth in range(len(names) + 1))
    return min((quota for quota in map(_cpu_max, folders) if quota is not None), default=None)


def _cpu_max(folder: str) -> float | None:
    try:
        with open(os.path.join(folder, "cpu.max"), encoding="ascii") as file:
            quota, period = file.read().split()
        return int(quota) / int(period)
    except (OSError, ValueError):  # the root has no such file, and others say "max"
        return None


def start(work: Task, name: str) -> None:
    """Do `work` on a thread of its own, with every signal blocked: they are the server's, which handles them in its own."""
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        threading.Thread(target=work, daemon=True, name=name).start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


class Pool:
    """A few threads that run tasks beside the caller; started on first use, signals blocked."""

    def __init__(self, count: int) -> None:
        self.count = max(1, count)
        self._tasks: queue.SimpleQueue = queue.SimpleQueue()
        self._started = 0

    def run(self, tasks: Sequence[Task], batch: "Batch | None" = None) -> None:
        """Run `tasks`, in any order and on any thread; return when all are done, raise the first error."""
        helpers = min(self.count, len(tasks)) - 1
        if helpers < 1:
            for task in tasks:
                task()
            return
        while self._started < helpers:
            start(self._serve, f"pg_gpt2-{self._started}")
            self._started += 1
        batch = batch or Batch()
        batch.begin(tasks)
        for _ in range(helpers):
            self._tasks.put(batch)
        batch.work()
        batch.wait()

    def _serve(self) -> None:
        import numpy

        numpy.seterr(all="ignore")  # holds for this thread only
        while (batch := self._tasks.get()) is not None:
            if batch.work() and self._tasks.empty():  # else this thread is late already
                batch.look_ahead()
            del batch  # and what it holds

    def close(self) -> None:
        """Let the threads end."""
        for _ in range(self._started):
            self._tasks.put(None)


class Batch:
    """Tasks that several threads take from one end of until none is left; may be begun again, but by one caller at a time.

    A helper that did some does `ahead` when none is left; nobody waits for that. When the caller goes on, nothing refers to
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

    def work(self) -> bool:
        """Do tasks until none is left; whether there was one."""
        done = False
        while True:
            try:
                task = self._left.pop()  # atomic under the GIL
            except IndexError:
                return done
            try:
                task()
            except BaseException as error:  # handed to the caller by wait()
                self._error = self._error or error
            del task
            if next(self._finished) == 0:  # atomic as well
                self._done.release()
            done = True

    def look_ahead(self) -> None:
        """Do `ahead`, whose failure is no one's: the thread must live on."""
        if self._ahead is not None:
            with contextlib.suppress(Exception):
                self._ahead()

    def wait(self) -> None:
        """Return when all tasks are done; raise the first error."""
        self._done.acquire()
        if self._error is not None:
            error, self._error = self._error, None
            try:
                raise error
            finally:
                del error  # which holds this frame, and others what they worked on


_pool = Pool(min(2, os.cpu_count() or 1))


def set_threads(count: int) -> None:
    """Use `count` cores from now on (setting `pg_gpt2.threads`)."""
    global _pool
    if count != _pool.count:
        _pool.close()
        _pool = Pool(count)


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


def pieces(total: int, size: int) -> list[slice]:
    """Cut `total` items into slices of at most `size`, by size only."""
    return [slice(start, min(start + size, total)) for start in range(0, total, size)]


def for_rows(total: int, size: int, work: Callable[[slice], object]) -> None:
    """Call `work(rows)` for slices of at most `size` of `total` rows, on all cores."""
    if 0 < total <= size:
        work(slice(0, total))
    else:
        run([lambda rows=rows: work(rows) for rows in pieces(total, size)])  # type: ignore[misc]
