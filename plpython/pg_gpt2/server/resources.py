"""What a session may use: cores (pg_gpt2.threads) and memory (pg_gpt2.max_memory), which is asked for before it is taken.

NumPy's memory is outside work_mem, and the kernel answers its exhaustion by killing the whole cluster.
"""

import ctypes
import os
import re
from collections.abc import Callable
from functools import cache
from math import ceil

from ..core import op
from ..core.ops import CHUNK
from ..errors import InsufficientPrivilege, InvalidParameter, OutOfMemory
from ..fast import buffers, threads
from . import cgroups, db

RESERVE = 256 << 20  # bytes left to everybody else
SMALL = 1 << 20  # bytes that any server has: asking the kernel would cost a small call a tenth of its time
UNITS = {"": 1, "b": 1, "bytes": 1, "kb": 1 << 10, "mb": 1 << 20, "gb": 1 << 30, "tb": 1 << 40, "pb": 1 << 50}

PREFIX_CACHE = "64MB"
# Bytes that a session keeps of what its calls freed: keys and values of some 100 tokens of gpt2-small.
KEPT_FREE = 16 << 20
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h

NAMES = ("threads", "prefix_cache", "prompt_lookup", "fast", "max_memory")  # of settings that most calls need
SETTINGS = (  # their values, and the owner's cap
    "SELECT "
    + ", ".join(f"nullif(current_setting('pg_gpt2.{name}', true), '') AS {name}" for name in NAMES)
    + ", (SELECT value FROM {schema}.llm_limit WHERE name = 'max_memory') AS cap"
)
_settings: db.Row | None = None  # SETTINGS, as this call found them
_limit: int | None = None  # what memory_limit found last, in this call
_prefix_cache = 0  # pg_gpt2.prefix_cache in bytes, as this call has it
spared: list[Callable[[], None]] = []  # calls that give up what a session only keeps to save time


def cores() -> int:
    """Cores that this process may use: those it is bound to, within the quota of its container or service."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cgroups.cpu_quota()
    return bound if quota is None else max(1, min(bound, ceil(quota)))


def forget_settings() -> None:
    """What was found of settings and limits is that of another call."""
    global _settings, _limit
    _settings = _limit = None


def _known_settings() -> db.Row:
    """SETTINGS, which do not change during a call."""
    global _settings
    if _settings is None:
        _settings = db.row(SETTINGS) or {}
    return _settings


def apply_settings(n_threads: int = 1) -> None:
    """Apply pg_gpt2.fast, pg_gpt2.prefix_cache, and the number of threads: `n_threads` if above 1, else pg_gpt2.threads, else
    all cores."""
    global _prefix_cache
    known = _known_settings()
    _prefix_cache = prefix_cache()
    n_cores = cores()
    wanted = n_threads if n_threads > 1 else _checked("threads", known["threads"], n_cores)
    threads.set_threads(min(wanted, n_cores))
    if known["fast"] is not None:
        op.use_fast(wants_fast())


def prefix_cache() -> int:
    """Bytes for texts that were read (pg_gpt2.prefix_cache)."""
    return _bytes("pg_gpt2.prefix_cache", _known_settings()["prefix_cache"] or PREFIX_CACHE)


def wanted_threads() -> int:
    """How many of the available cores to use (pg_gpt2.threads)."""
    return _integer("threads", cores())


def wants_fast() -> bool:
    """Whether the faster forms of ops are used (pg_gpt2.fast), or those of `core`, which ask for no memory: 42501 for
    anyone who does not own the extension."""
    is_wanted = db.as_flag("fast", _known_settings()["fast"] or "on")
    if not is_wanted and not db.is_owner():
        raise InsufficientPrivilege(
            "pg_gpt2.fast = off is for the owner of the extension",
            hint="RESET pg_gpt2.fast; it changes speed and rounding only.",
        )
    return is_wanted


def attention_chunk() -> int:
    """Query rows of attention at a time (pg_gpt2.attention_chunk)."""
    return _integer("attention_chunk", CHUNK)


def prompt_lookup() -> bool:
    """Whether continuations are guessed from earlier text (pg_gpt2.prompt_lookup)."""
    return db.as_flag("prompt_lookup", _known_settings()["prompt_lookup"] or "on")


def _integer(name: str, default: int) -> int:
    return _checked(name, db.setting(name), default)


def _checked(name: str, text: str | None, default: int) -> int:
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= 4096):
        raise InvalidParameter(
            f"pg_gpt2.{name} must be a number from 1 to 4096, not '{text}'", hint=f"RESET pg_gpt2.{name};"
        )
    return int(text)


def memory_limit() -> int:
    """Bytes that a session may use: pg_gpt2.max_memory within the owner's cap (llm_limit), else three quarters of all."""
    global _settings
    _settings = None  # the cap may have changed
    return _limit_of(_known_settings())


def _limit_of(settings: db.Row) -> int:
    global _limit
    setting, cap = settings["max_memory"], settings["cap"]
    limits = [_bytes("pg_gpt2.max_memory", setting)] if setting else []
    limits += [_bytes("max_memory in llm_limit", cap)] if cap else []
    _limit = min(limits) if limits else _memory() * 3 // 4
    return _limit


def _limit_of_call() -> int:
    """As memory_limit, found once in a call."""
    return _limit_of(_known_settings()) if _limit is None else _limit


def prefix_room(held: int) -> int:
    """Bytes that texts which were read may take: pg_gpt2.prefix_cache, within what pg_gpt2.max_memory leaves beside `held`.

    Both are as the present call found them, so that this asks the server for nothing where memory was asked for before.
    """
    return min(_prefix_cache, max(0, _limit_of_call() - held)) if _prefix_cache else 0


def _memory() -> int:
    """Bytes that the machine has, or that our control group may use where they are fewer."""
    machine, group = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), cgroups.memory_limit()
    return machine if group is None else min(machine, group)


def _bytes(name: str, text: str) -> int:
    """A size as PostgreSQL writes it."""
    found = re.fullmatch(r"\s*(\d{1,18}(?:\.\d{0,9})?)\s*(\w*)\s*", text, re.ASCII)
    if found is None or found[2].lower() not in UNITS:
        raise InvalidParameter(
            f"{name} must be a size of memory, not '{text}'",
            hint=f"Examples: 800MB, 4GB. RESET {name if name.startswith('pg_gpt2.') else 'pg_gpt2.max_memory'};",
        )
    return int(float(found[1]) * UNITS[found[2].lower()])


def require_memory(wanted: int, purpose: str) -> None:
    """Refuse (53200) `wanted` bytes where pg_gpt2.max_memory allows fewer, or the machine has fewer left."""
    limit = _limit_of_call() if wanted < SMALL else memory_limit()
    if wanted > limit:
        raise OutOfMemory(
            f"{purpose} needs {megabytes(wanted)}, more than pg_gpt2.max_memory allows ({megabytes(limit)})",
            hint="Use a smaller batch, a shorter block or a smaller model, or raise pg_gpt2.max_memory.",
        )
    if wanted < SMALL:
        return
    available = available_memory()
    if available is not None and wanted > available - RESERVE:
        for give_up in spared:
            give_up()
        release_memory()
        available = available_memory() or 0
    if available is not None and wanted > available - RESERVE:
        room = max(0, available - RESERVE)
        raise OutOfMemory(
            f"{purpose} needs {megabytes(wanted)}, and the server can give {megabytes(room)}",
            hint="Use a smaller batch, a shorter block or a smaller model.",
        )


def available_memory() -> int | None:
    """Bytes that the kernel can give without swapping, of the machine and of our control group; None where it does not say.

    Shared buffers that nobody has used yet are counted as used: they will be.
    """
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            fields = {name: int(value.split()[0]) << 10 for name, value in (line.split(":", 1) for line in file)}
        shared = max(0, _shared_buffers() - fields.get("Hugetlb", 0))  # huge pages are set aside before
        machine = max(0, fields["MemAvailable"] - max(0, shared - fields.get("Shmem", 0)))
    except (OSError, KeyError, ValueError):
        return cgroups.memory_left(shared=_shared_buffers())
    group = cgroups.memory_left(shared=shared)
    return machine if group is None else min(machine, group)


@cache
def _shared_buffers() -> int:
    """Bytes of the server's shared buffers, which it has as long as it runs."""
    return (db.row("SELECT pg_size_bytes(current_setting('shared_buffers')) AS size") or {})["size"]


def megabytes(count: int) -> str:
    """A number of bytes as text for a message."""
    return f"{count / 2**20:,.0f} MB" if count >= 10 << 20 else f"{count / 2**10:,.0f} kB"


def keep_freed_memory(most: int = 64 << 20) -> None:
    """Let the C library use again what was freed, blocks below 4 MB and up to `most` bytes in all, until the session ends. Else
    it asks the kernel for each block above 128 kB anew, which doubles the time of a session that passes thousands of them on."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc has it
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, 4 << 20)
        mallopt(M_TRIM_THRESHOLD, most)


def release_memory() -> None:
    """Give free memory back to the system: buffers, and what the C library keeps of arrays that are gone."""
    buffers.forget()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc has it
    if trim is not None:
        trim(0)
