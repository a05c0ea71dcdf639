"""What the tests of ops and of training share: gradients from the inputs alone, tapes that keep all, and what buffers take."""

from itertools import chain
from typing import Any

import numpy as np
import pytest
from pg_gpt2.core.op import Grads, Op
from pg_gpt2.fast.buffers import BufferPool, LooseBufferPool
from pg_gpt2.fast.tape import Tape
from pg_gpt2.training import trainer


def gradients_of(op: Op, dy: np.ndarray, *arrays: np.ndarray, **attrs: Any) -> Grads:
    """Those of sum(dy * y) by the inputs."""
    y, saved = op.run(*arrays, **attrs)
    assert dy.shape == y.shape
    return op.gradients(dy, y, *arrays, saved=saved, **attrs)


def keep_values(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on trainers keep all values and gradients of their tapes."""
    monkeypatch.setattr(trainer, "Tape", lambda keep, **options: Tape(keep=True, **options))


def bytes_of(pool: BufferPool | LooseBufferPool) -> int:
    """Bytes of the buffers that a pool has."""
    buffers = pool._buffers
    return sum(buffer.nbytes for buffer in (chain(*buffers.values()) if isinstance(buffers, dict) else buffers))
