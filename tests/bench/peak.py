"""Run as a program: two training steps of a model on torch, and the peak memory of the process in bytes.

peak.py RIVAL DIRECTORY BATCH LENGTH THREADS
"""

import random
import sys
from pathlib import Path

import rivals


def main(rival: str, directory: str, batch: str, length: str, threads: str) -> None:
    """Weights are random: only their sizes matter."""
    model = getattr(rivals, rival)(Path(directory), int(threads), random=True)
    rng = random.Random(1)
    for _ in range(2):
        rows = [[rng.randrange(50000) for _ in range(int(length) + 1)] for _ in range(int(batch))]
        model.train([row[:-1] for row in rows], [row[1:] for row in rows], 0.0)
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines())
    print(int(status["VmHWM"].split()[0]) << 10)


if __name__ == "__main__":
    main(*sys.argv[1:])
