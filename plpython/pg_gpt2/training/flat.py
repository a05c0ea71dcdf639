"""Arrays as one row of numbers, to be sent in pieces and added up, without a copy of the whole."""

from bisect import bisect_right
from collections.abc import Sequence

import numpy as np


class Flat:
    """A row of the numbers of some arrays, each of which lies in one piece; `row[first:end]` is a copy of some of them."""

    def __init__(self, arrays: Sequence[np.ndarray]) -> None:
        self._rows = [array.reshape(-1) for array in arrays]  # views
        self._starts = np.cumsum([0, *(row.size for row in self._rows)]).tolist()
        self.size: int = self._starts[-1]

    def __getitem__(self, part: slice) -> np.ndarray:
        return np.concatenate([row[own] for row, own, _ in self._within(part)])

    def copy(self) -> np.ndarray:
        """All of them."""
        return self[0 : self.size]

    def take(self, values: np.ndarray) -> None:
        """Write `values` [size] into the arrays."""
        for row, own, theirs in self._within(slice(0, self.size)):
            row[own] = values[theirs]

    def _within(self, part: slice) -> list[tuple[np.ndarray, slice, slice]]:
        """Of each array that a part of the row reaches into: itself, which of its numbers, and where these are in the row."""
        first, end = part.start, min(part.stop, self.size)
        found, at = [], bisect_right(self._starts, first) - 1
        while first < end:
            start, row = self._starts[at], self._rows[at]
            after = min(start + row.size, end)
            found.append((row, slice(first - start, after - start), slice(first, after)))
            first, at = after, at + 1
        return found
