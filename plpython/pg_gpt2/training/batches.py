"""The order in which a training run reads its rows: a new permutation each epoch, a function of seed and step alone.

Rows are numbered 0 .. n - 1 in the order the caller fixed; ids and model names play no part. A run resumes anywhere.
"""

import numpy as np

from .. import rng
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
        first = (step - 1) * batch_size
        return np.array([self._row(i) for i in range(first, first + batch_size)], np.int64)

    def _row(self, i: int) -> int:
        epoch, place = divmod(i, self.n_rows)
        if epoch != self._epoch:
            source = np.random.Generator(rng.philox(self.seed, rng.ORDER, step=epoch))
            self._epoch, self._order = epoch, source.permutation(self.n_rows)
        return int(self._order[place])
