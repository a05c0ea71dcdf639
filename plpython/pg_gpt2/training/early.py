"""Which evaluation of a run is the best, and whether the run should end: transformers' EarlyStoppingCallback.

A loss is a gain when it is lower than the lowest before by more than `min_delta`. What is best is simply the lowest, the first of
equals: a loss that is lower by less becomes the one to compare with, and counts as no gain.
"""

from dataclasses import dataclass
from math import inf


@dataclass
class Evaluations:
    """The evaluations of a run so far. `patience` None: it is never exhausted."""

    patience: int | None = None
    min_delta: float = 0.0
    best_loss: float = inf
    best_step: int | None = None  # None: before the first, and while every loss was NaN or infinite
    count: int = 0
    without_gain: int = 0  # evaluations since the last gain

    def add(self, step: int, loss: float) -> bool:
        """Take the loss after `step`; whether it is the best so far. A NaN is neither that nor a gain."""
        lower = loss < self.best_loss
        # The first is no step back from anything, whatever it is. Infinity - infinity is NaN, and then lower is false.
        gain = self.count == 0 or (lower and abs(loss - self.best_loss) > self.min_delta)
        self.count += 1
        self.without_gain = 0 if gain else self.without_gain + 1
        if lower:
            self.best_loss, self.best_step = loss, step
        return lower

    @property
    def exhausted(self) -> bool:
        """Whether patience is at its end."""
        return self.patience is not None and self.without_gain >= self.patience
