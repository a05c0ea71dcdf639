"""The order in which a training run reads its rows: a new permutation each epoch, a function of seed and step alone.

Rows are numbered 0 .. n - 1 in the order the caller fixed; ids and model names play no part. A run resumes anywhere.
"""

import numpy as np

from .. import host
from ..core import rng
from ..errors import InvalidParameter


class BatchOrder:
    """Rows of each step. Holds the permutation of one epoch."""

    def __init__(self, seed: int, n_rows: int) -> None:
        if n_rows < 1:
            raise InvalidParameter("there are no rows to train on", hint="Load some with llm_dataset_load.")
        self.seed, self.n_rows = seed, n_rows
        self._epoch, self._order = -1, np.empty(0, np.int64)

    def rows(self, step: int, batch_size: int) -> np.ndarray:
        """Row numbers [batch_size] of step 1, 2, ..; a batch may reach into the next epoch."""
        if step < 1 or batch_size < 1:
            raise InvalidParameter(
                f"step {step} and batch size {batch_size} must be at least 1", hint="Steps and batches count from 1."
            )
        at, end = (step - 1) * batch_size, step * batch_size
        parts = []
        while at < end:
            epoch, place = divmod(at, self.n_rows)
            parts.append(self._permutation(epoch)[place : place + end - at])
            at += len(parts[-1])
            host.check_interrupts()
        return np.concatenate(parts)

    def _permutation(self, epoch: int) -> np.ndarray:
        if epoch != self._epoch:
            source = np.random.Generator(rng.philox(self.seed, rng.ORDER, step=epoch))
            self._epoch, self._order = epoch, source.permutation(self.n_rows)
        return self._order
