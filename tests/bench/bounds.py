"""What the machine can do: how fast its memory is read, and how fast it multiplies matrices, on a number of threads.

The first bounds decoding, which reads every weight for each token; the second bounds prefill and training. Both drift
with what else the machine does, so they are measured in the same rounds as the work that they bound.
"""

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

# Before NumPy is loaded, which reads them once: the threads here are Python's, one product each, and what makes OpenBLAS forgo a
# part of the processor holds for the caller's shell, not for the server, nor for the machine.
os.environ["OPENBLAS_NUM_THREADS"] = "1"
os.environ.pop("OPENBLAS_CORETYPE", None)
os.environ.pop("OPENBLAS_L2_SIZE", None)

import numpy as np

READ_BYTES = 500 << 20
ROWS, INNER, COLUMNS = 1024, 768, 3072  # of each thread's product: gpt2-small's widest layer on 1,024 tokens
REPEATS = 5  # a bound is the best of these
WARM = 0.1  # seconds of work until cores that have idled are as fast as they get: the first 0.04 may be at 0.6 of that


class Bounds:
    """Buffers and threads of the two measurements."""

    def __init__(self, threads: int, repeats: int = REPEATS) -> None:
        self.threads = threads
        self.repeats = repeats
        self._pool = ThreadPoolExecutor(threads)
        self._memory = np.array_split(np.ones(READ_BYTES // 4, np.float32), threads)
        rng = np.random.default_rng(0)
        self._x = [rng.standard_normal((ROWS, INNER), np.float32) for _ in range(threads)]
        self._w = rng.standard_normal((INNER, COLUMNS), np.float32)
        self._y = [np.empty((ROWS, COLUMNS), np.float32) for _ in range(threads)]

    def read(self) -> float:
        """Bytes a second that all threads together read from memory."""
        return READ_BYTES / self._best(lambda i: self._memory[i].max())

    def sgemm(self) -> float:
        """Floating-point operations a second of float32 products on all threads."""
        seconds = self._best(lambda i: np.matmul(self._x[i], self._w, out=self._y[i]))
        return 2.0 * ROWS * INNER * COLUMNS * self.threads / seconds

    def warm_up(self) -> None:
        """Let all threads multiply for a while: cores that have idled are slow at first."""
        until = time.perf_counter() + WARM
        while time.perf_counter() < until:
            self.sgemm()

    def _best(self, work: Callable[[int], object]) -> float:
        best = float("inf")
        for _ in range(self.repeats):
            began = time.perf_counter()
            list(self._pool.map(work, range(self.threads)))
            best = min(best, time.perf_counter() - began)
        return best
