"""What a session may use: cores (pg_gpt2.threads) and memory (pg_gpt2.max_memory), asked before it is taken.

NumPy's memory is outside work_mem, and the kernel answers its exhaustion by killing the whole cluster.
"""

import os

from . import db, threads
from .errors import InvalidParameter, OutOfMemory
from .ops import CHUNK

RESERVE = 256 << 20  # bytes left to everybody else


def apply_threads(workers: int = 1) -> None:
    """Use `workers` cores when more than 1 are asked for, else those of pg_gpt2.threads, else all there are."""
    threads.set_threads(workers if workers > 1 else _integer("threads", len(os.sched_getaffinity(0))))


def attention_chunk() -> int:
    """Query rows of attention at a time (pg_gpt2.attention_chunk)."""
    return _integer("attention_chunk", CHUNK)


def _integer(name: str, default: int) -> int:
    text = db.setting(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= 4096):
        raise InvalidParameter(
            f"pg_gpt2.{name} must be a number from 1 to 4096, not '{text}'", hint=f"RESET pg_gpt2.{name};"
        )
    return int(text)


def require_memory(wanted: int, purpose: str) -> None:
    """53200 when `wanted` bytes are more than the machine has left, or than pg_gpt2.max_memory allows."""
    limit = db.row("SELECT pg_size_bytes(nullif(current_setting('pg_gpt2.max_memory', true), '')) AS bytes")
    allowed = (limit or {}).get("bytes")
    if allowed is not None and wanted > allowed:
        raise OutOfMemory(
            f"{purpose} needs {_megabytes(wanted)}, more than pg_gpt2.max_memory allows ({_megabytes(allowed)})",
            hint="Use a smaller batch or a shorter block, or raise pg_gpt2.max_memory.",
        )
    available = _available()
    if available is not None and wanted > available - RESERVE:
        raise OutOfMemory(
            f"{purpose} needs {_megabytes(wanted)}, and the server has {_megabytes(available)} left",
            hint="Use a smaller batch, a shorter block or a smaller model.",
        )


def _available() -> int | None:
    """Bytes that the kernel can give without swapping, where it says so."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            fields = dict(line.split(":", 1) for line in file)
        return int(fields["MemAvailable"].split()[0]) << 10
    except (OSError, KeyError, ValueError):
        return None


def _megabytes(count: int) -> str:
    return f"{count / 2**20:,.0f} MB"
