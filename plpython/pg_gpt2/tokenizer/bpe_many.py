"""Merges byte pairs inside many words at once: what `merge_by_scan` does to each, as a few array operations for all.

In every round each word that still merges makes one merge: of its pairs of lowest rank the leftmost. Symbols keep their
places, and what is merged away is only passed over by its neighbours, so that a round costs little more than its merges.
"""

import numpy as np

from .. import host
from .pairs import END, Pairs

NEVER = 1 << 62  # above the rank and place of each pair
PLACE = (1 << 32) - 1


class Merges:
    """What merges which pairs, and what symbol each merge makes. `merged`: [merges] int32."""

    def __init__(self, pairs: Pairs, merged: np.ndarray) -> None:
        self._pairs, self._merged = pairs, merged

    def merge(self, symbols: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The symbols that remain and how many of each word. `symbols` has those of all words, int32: the longest first, none
        empty."""
        ends = np.cumsum(lengths)
        starts, n = ends - lengths, len(symbols)
        symbols, none = np.append(symbols, np.int32(END)), self._pairs.never << 32
        left, right = np.arange(-1, n), np.arange(1, n + 2)  # neighbours; n is END
        left[starts] = right[ends - 1] = right[n] = n
        waiting = np.full(n + 1, NEVER)  # rank and place of the pair that begins at a place

        def join(places: np.ndarray) -> None:
            """Looks at the pairs that begin at `places`."""
            ranks = self._pairs.ranks(symbols.take(places), symbols.take(right.take(places)))
            waiting[places] = ranks.astype(np.int64) << 32 | places

        join(np.arange(n))
        left_over = np.ones(n, bool)
        for words in np.searchsorted(-lengths, -np.arange(1, lengths[0])).tolist():  # which have so many pairs
            host.check_interrupts()
            best = np.minimum.reduceat(waiting[: ends[words - 1]], starts[:words])
            best = best[best < none]
            if not len(best):
                break
            place = best & PLACE
            gone = right.take(place)
            after = right.take(gone)
            symbols[place] = self._merged.take(best >> 32)
            right[place], left[after] = after, place
            left_over[gone], waiting[gone] = False, NEVER
            join(np.concatenate([place, left.take(place)]))
            waiting[n] = NEVER
        return symbols[:n][left_over], np.add.reduceat(left_over, starts, dtype=np.int64)
