"""The environment of a computation: versions, settings and hardware that its last bits may depend on."""

import platform
from collections.abc import Mapping

import numpy as np

from ... import __version__
from ...core.op import is_fast
from ...fast import blas_library, threads
from .. import db, resources

DECISIVE = ("sources", "numpy", "blas", "fast", "machine", "processor")  # about bits; the number of threads is not


def current() -> dict[str, object]:
    """The environment of this session: under the same one, the same run gives the same bits."""
    return {
        "pg_gpt2": __version__,
        "sources": db.sources_digest,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "blas": blas_library.blas_name(),
        "threads": threads.threads(),
        "attention_chunk": resources.attention_chunk(),
        "fast": is_fast(),
        "machine": platform.machine(),
        "processor": _processor(),
    }


def differing(one: Mapping[str, object], other: Mapping[str, object]) -> list[str]:
    """What may give the two other bits."""
    return [name for name in DECISIVE if one.get(name) != other.get(name)]


def _processor() -> str | None:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next((line.split(":", 1)[1].strip() for line in file if line.startswith("model name")), None)
    except OSError:
        return None
