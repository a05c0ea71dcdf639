"""Merges byte pairs inside many words at once: what `merge_by_scan` does to each, as a few array operations for all.

In every round each word that still merges makes one merge: of its pairs of lowest rank the leftmost. Symbols keep their
places, and what is merged away is only passed over by its neighbours, so that a round costs little more than its merges.
"""

from itertools import chain

import numpy as np

from .. import host
from .bpe_merge import NEVER, Ranks

END = -(1 << 31)  # stands after and before each word; below each symbol
EMPTY = np.iinfo(np.int64).min  # below the key of each pair
SPREAD = 0x9E3779B97F4A7C15 - (1 << 64)  # an odd number without pattern, 2**64 by the golden ratio
PLACE = (1 << 32) - 1


class Pairs:
    """The rank of each pair that merges, to be looked up for many pairs at once: a hash table, at most a quarter full.

    A pair is at its home, or where that is taken at the next place that was free.
    """

    def __init__(self, ranks: Ranks) -> None:
        symbols = np.fromiter(chain.from_iterable(ranks), np.int64, 2 * len(ranks))
        keys, values = _key(symbols[::2], symbols[1::2]), np.fromiter(ranks.values(), np.int64, len(ranks))
        self._bits = max(1, (4 * len(ranks)).bit_length())
        self._keys = np.full(1 << self._bits, EMPTY)
        self._ranks = np.full(1 << self._bits, NEVER)
        place = self._home(keys)
        while len(keys):
            host.check_interrupts()
            free = self._keys[place] == EMPTY
            self._keys[place[free]] = keys[free]  # of several for one place the last stays
            stays = self._keys[place] == keys
            self._ranks[place[stays]] = values[stays]
            keys, values, place = keys[~stays], values[~stays], self._next(place[~stays])

    def rank(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:  # 2 x [n] -> [n]
        """Rank of each pair of symbols; NEVER where it does not merge."""
        keys = _key(left, right)
        place = self._home(keys)
        ranks = self._ranks.take(place)  # NEVER at a place that is empty
        on = self._taken(place, keys)
        keys, place = keys[on], place[on]
        while len(on):
            host.check_interrupts()
            place = self._next(place)
            ranks[on] = self._ranks.take(place)
            taken = self._taken(place, keys)
            on, keys, place = on[taken], keys[taken], place[taken]
        return ranks

    def _home(self, keys: np.ndarray) -> np.ndarray:
        return (keys * SPREAD) >> (64 - self._bits) & ((1 << self._bits) - 1)

    def _next(self, place: np.ndarray) -> np.ndarray:
        return (place + 1) & ((1 << self._bits) - 1)

    def _taken(self, place: np.ndarray, keys: np.ndarray) -> np.ndarray:
        """Which of the places another pair has taken."""
        found = self._keys.take(place)
        return np.flatnonzero((found != keys) & (found != EMPTY))


class Merges:
    """What merges which pairs, and what symbol each merge makes."""

    def __init__(self, ranks: Ranks, merged: list[int]) -> None:
        self._pairs, self._merged = Pairs(ranks), np.array(merged, np.int64)

    def merge(self, symbols: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The symbols that remain and how many of each word. `symbols` has those of all words: the longest first, none empty."""
        ends = np.cumsum(lengths)
        starts, n = ends - lengths, len(symbols)
        symbols = np.append(symbols, END)
        left, right = np.arange(-1, n), np.arange(1, n + 2)  # neighbours; n is END
        left[starts] = right[ends - 1] = right[n] = n
        waiting = np.full(n + 1, NEVER)  # rank and place of the pair that begins at a place

        def join(places: np.ndarray) -> None:
            """Looks at the pairs that begin at `places`."""
            ranks = self._pairs.rank(symbols.take(places), symbols.take(right.take(places)))
            waiting[places] = np.where(ranks < NEVER, ranks << 32 | places, NEVER)

        join(np.arange(n))
        left_over = np.ones(n, bool)
        for words in np.searchsorted(-lengths, -np.arange(1, lengths[0])).tolist():  # which have so many pairs
            host.check_interrupts()
            best = np.minimum.reduceat(waiting[: ends[words - 1]], starts[:words])
            best = best[best < NEVER]
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


def _key(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """One number for two symbols, which are below 2**31 in size."""
    return (left << 32) + right
