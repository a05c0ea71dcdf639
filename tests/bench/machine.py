"""Facts about the machine and the checkout that a measurement was taken on."""

import os
import platform
import subprocess
from datetime import datetime, timezone
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


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


def _commit() -> str:
    """The checkout's commit, with a + when files differ from it."""
    git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(git, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def _line(file: str, name: str) -> str:
    """The value after `name:` in a file of the kernel; empty where there is none."""
    try:
        with open(file, encoding="ascii") as lines:
            return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(name)), "")
    except OSError:
        return ""
