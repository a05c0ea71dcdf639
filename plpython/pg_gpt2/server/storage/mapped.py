"""Which sessions have a model's weights in memory: those that map its file, as the kernel tells (/proc on Linux).

A list that sessions keep themselves, such as advisory locks, would say what any role wrote there, and lose it with DISCARD ALL.
"""

import os
from collections.abc import Iterable, Iterator

from ... import host
from ...errors import WrongState
from . import shared_folder

PROCESSES = "/proc"


def sessions(pids: Iterable[int], relation: str, models: Iterable[str]) -> Iterator[tuple[str, int]]:
    """(model, pid) of the processes that map a file of one of these models, be it of an older version. 55000 where that cannot
    be seen."""
    family = shared_folder.family(relation).encode()
    stems = {shared_folder.stem(relation, model).encode(): model for model in models}
    for pid in pids:
        host.check_interrupts()
        found = {_stem(line, family) for line in _maps(pid).splitlines() if family in line}
        yield from ((stems[stem], pid) for stem in sorted(found & stems.keys()))


def _stem(line: bytes, family: bytes) -> bytes:
    """What the name of a file begins with, up to the digest of its version."""
    name = line[line.rindex(family) :]
    return name[: name.index(b".", len(family)) + 1] if b"." in name[len(family) :] else name


def _maps(pid: int) -> bytes:
    """The files that a process maps, a line each; nothing of one that has ended."""
    try:
        with open(f"{PROCESSES}/{pid}/maps", "rb") as file:
            return file.read()
    except OSError as error:
        if isinstance(error, FileNotFoundError | ProcessLookupError) and os.path.exists(f"{PROCESSES}/self/maps"):
            return b""
    raise WrongState(
        "this system does not tell which files a session has mapped",
        hint="It is read from /proc, as Linux has it. llm_cache_status() tells of this session.",
    )
