"""The cores and the memory that control groups, version 1 or 2, leave to this process in a container or a service.

The lowest limit of our group and of the groups around it counts. In a container the kernel may report a path of the host: then
its groups are not found, and what is mounted as the root is our group.
"""

import os
import time
from collections.abc import Iterator
from functools import cache, lru_cache

UNLIMITED = 1 << 60  # bytes: version 1 has no word for it, but a number of pages that nobody has
LIMITS = ("memory.max", "memory.high", "memory.limit_in_bytes")
FILES = ("inactive_file", "active_file")  # of memory.stat: what the kernel takes back before it kills
SHARED = "shmem"


def _folders(controller: str, root: str) -> Iterator[str]:
    """Folders of the groups around this process that limit `controller`, the outermost first: of both versions."""
    try:
        with open(os.path.join(root, "proc/self/cgroup"), encoding="utf-8") as file:
            lines = [line.rstrip("\n").split(":", 2) for line in file]
    except (OSError, ValueError):
        return
    for _, controllers, group in (line for line in lines if len(line) == 3):
        if controllers and controller not in controllers.split(","):
            continue
        mounted = ("sys/fs/cgroup", controller) if controllers else ("sys/fs/cgroup",)  # version 2 has all in one tree
        names = [name for name in group.split("/") if name not in ("", "..")]
        for depth in range(len(names) + 1):
            yield os.path.join(root, *mounted, *names[:depth])


def _words(folder: str, name: str) -> list[str]:
    """The words of a file; none where there is no such file, as in the root."""
    try:
        with open(os.path.join(folder, name), encoding="ascii") as file:
            return file.read().split()
    except (OSError, ValueError):
        return []


def _number(folder: str, *names: str) -> int | None:
    """The lowest number in these files; None where there is no number, or the word "max"."""
    found = [int(word) for name in names for word in _words(folder, name)[:1] if word.isdigit()]
    return min(found, default=None)


@cache
def cpu_quota(root: str = "/") -> float | None:
    """How many cores' worth of time we may use; None for no limit. Read once a session."""
    quotas = map(_quota, _folders("cpu", root))
    return min((quota for quota in quotas if quota is not None), default=None)


def _quota(folder: str) -> float | None:
    """Version 1 has -1 where there is no limit, version 2 "max"."""
    words = _words(folder, "cpu.max") or _words(folder, "cpu.cfs_quota_us") + _words(folder, "cpu.cfs_period_us")
    if len(words) == 2 and all(word.isdigit() for word in words):
        return int(words[0]) / int(words[1])
    return None


def memory_limit(root: str = "/") -> int | None:
    """Bytes that all processes of our group may use; None for no limit."""
    return min((limit for _, limit in _limits(root)), default=None)


def memory_left(root: str = "/", shared: int = 0) -> int | None:
    """Bytes that our group may still take; None for no limit. What files hold in memory is taken back for others first.

    Of `shared` bytes that processes of the group share, those that nobody has touched yet are not counted by the kernel, but
    will be.
    """
    left = []
    for folder, limit in _limits(root):
        used = _number(folder, "memory.current", "memory.usage_in_bytes") or 0
        stat = _stat(folder)
        files, touched = sum(stat.get(name, 0) for name in FILES), stat.get(SHARED, 0)
        left.append(max(0, limit - used + files - max(0, shared - touched)))
    return min(left, default=None)


def _limits(root: str) -> list[tuple[str, int]]:
    """(folder, bytes) of each group that has a limit; read once a second, for reading costs a tenth of a small call."""
    return _limits_in(root, int(time.monotonic()))


@lru_cache(maxsize=2)
def _limits_in(root: str, _second: int) -> list[tuple[str, int]]:
    found = [(folder, _number(folder, *names)) for folder, names in _limit_files(root)]
    return [(folder, limit) for folder, limit in found if limit is not None and limit < UNLIMITED]


@cache
def _limit_files(root: str) -> list[tuple[str, list[str]]]:
    """Folders of our groups, and the files of each that say its limit; looked for once a session."""
    return [(folder, [name for name in LIMITS if _words(folder, name)]) for folder in _folders("memory", root)]


def _stat(folder: str) -> dict[str, int]:
    """Bytes by kind, in the group and those within it, which version 1 counts under names of their own."""
    words = _words(folder, "memory.stat")
    stat = dict(zip(words[::2], map(int, words[1::2])))
    return {name: stat.get(f"total_{name}", stat.get(name, 0)) for name in (*FILES, SHARED)}
