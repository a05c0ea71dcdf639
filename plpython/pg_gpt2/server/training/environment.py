"""What a session computes with, as far as bits may depend on it."""

import platform

import numpy as np

from ... import __version__
from ...core.op import is_fast
from ...fast import threads
from .. import db, resources


def current() -> dict[str, object]:
    """What the same bits are promised under."""
    return {
        "pg_gpt2": __version__,
        "sources": db.sources_digest,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "blas": threads.blas_name(),
        "threads": threads.threads(),
        "attention_chunk": resources.attention_chunk(),
        "fast": is_fast(),
        "machine": platform.machine(),
        "processor": _processor(),
    }


def _processor() -> str | None:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next((line.split(":", 1)[1].strip() for line in file if line.startswith("model name")), None)
    except OSError:
        return None
