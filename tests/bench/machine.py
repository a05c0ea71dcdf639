"""Facts about the machine and the checkout that a measurement was taken on, and waiting until the machine is idle."""

import os
import platform
import subprocess
import time
from datetime import datetime, timezone
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUSY = 0.15  # of all cores


def facts() -> dict[str, object]:
    """Processor, cores, memory, system, commit and time."""
    return {
        "at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": _commit(),
        "processor": _line("/proc/cpuinfo", "model name") or platform.processor(),
        "avx512": " avx512f " in f" {_line('/proc/cpuinfo', 'flags')} ",
        "cores": len(os.sched_getaffinity(0)),
        "memory": _line("/proc/meminfo", "MemTotal"),
        "system": platform.platform(),
        "load": os.getloadavg()[0],
    }


def wait_until_idle(limit: float) -> bool:
    """Wait up to `limit` seconds until little else runs; whether that came to pass. True where nobody can tell."""
    until = time.monotonic() + limit
    while _busy() > BUSY:
        if time.monotonic() > until:
            return False
    return True


def _busy() -> float:
    """Share of all cores in use, over a tenth of a second."""
    before = _cpu_times()
    time.sleep(0.1)
    (all_before, idle_before), (all_after, idle_after) = before, _cpu_times()
    return 1 - (idle_after - idle_before) / max(1, all_after - all_before)


def _cpu_times() -> tuple[int, int]:
    """Ticks of all cores since the start: all, and idle."""
    ticks = [int(field) for field in _line("/proc/stat", "cpu ", separator=" ").split()]
    return sum(ticks[:8]), sum(ticks[3:5])


def _commit() -> str:
    """The checkout's commit, with a + when files differ from it."""
    git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(git, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def _line(file: str, name: str, separator: str = ":") -> str:
    """The value after `name` in a file of the kernel; empty where there is none."""
    try:
        with open(file, encoding="ascii") as lines:
            return next((line.split(separator, 1)[1].strip() for line in lines if line.startswith(name)), "")
    except OSError:
        return ""
