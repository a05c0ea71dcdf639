"""Which pairs of symbols merge, and in what order: the rank of one pair, or of many at once.

A hash table, at most a quarter full, whose places hold ranks: a pair is at its home, or where that is taken at the next place
that was free. It is made once and then only read, so that sessions can share it as it lies in memory. Homes depend on all the
pairs, so that nobody can think out a vocabulary whose pairs have one home, and lookups that walk past all of them.
"""

import hashlib

import numpy as np

from .. import host

END = -(1 << 31)  # stands after and before each word; below each symbol
EMPTY = np.iinfo(np.int64).min  # below the key of each pair
WORD = (1 << 64) - 1
KEPT = 1 << 16  # pairs that were asked for one by one; some 13 MB

Pair = tuple[int, int]


def pair_keys(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """One number for two symbols, which are below 2**31 in size. 2 x [n] integers -> [n] int64."""
    return (left.astype(np.int64) << 32) + right


def spread_of(keys: np.ndarray) -> int:
    """An odd number that tells nothing of the keys it is made of. [n] int64 -> one of 64 bits."""
    return int.from_bytes(hashlib.blake2b(keys.data, digest_size=8).digest(), "little", signed=True) | 1


def hash_table(keys: np.ndarray, spread: int) -> np.ndarray:
    """The places of a table of pairs, given by their keys in the order of rank; of equal ones the last counts. A place that is
    free has the number of pairs. [n] int64 -> [a power of two] int32."""
    count = len(keys)
    table = np.full(1 << max(1, (4 * count).bit_length()), count, np.int32)
    ranks = count - 1 - np.unique(keys[::-1], return_index=True)[1]
    place = _homes(keys[ranks], spread, table)
    while len(ranks):
        host.check_interrupts()
        free = table[place] == count
        table[place[free]] = ranks[free]  # of several for one place the last stays
        waits = table[place] != ranks
        ranks, place = ranks[waits], _next(place[waits], table)
    return table


def _homes(keys: np.ndarray, spread: int, table: np.ndarray) -> np.ndarray:
    return (keys * spread) >> (64 - _bits(table)) & (len(table) - 1)


def _next(place: np.ndarray, table: np.ndarray) -> np.ndarray:
    return (place + 1) & (len(table) - 1)


def _bits(table: np.ndarray) -> int:
    return len(table).bit_length() - 1


class Pairs:
    """The pairs that merge. `keys` has that of each rank, and then EMPTY; `table` is their `hash_table` with `spread`."""

    def __init__(self, keys: np.ndarray, table: np.ndarray, spread: int) -> None:
        self.never = len(keys) - 1  # the rank of a pair that does not merge
        self._keys, self._table, self._spread = keys, table, spread
        self._key_of, self._rank_at, self._shift = keys.data, table.data, 64 - _bits(table)

    def ranks(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:  # 2 x [n] int32 -> [n] int32
        """Rank of each pair of symbols."""
        keys = pair_keys(left, right)
        place = _homes(keys, self._spread, self._table)
        ranks = self._table.take(place)
        on = self._taken(ranks, keys)
        keys, place = keys[on], place[on]
        while len(on):
            host.check_interrupts()
            place = _next(place, self._table)
            found = self._table.take(place)
            ranks[on] = found
            taken = self._taken(found, keys)
            on, keys, place = on[taken], keys[taken], place[taken]
        return ranks

    def _taken(self, ranks: np.ndarray, keys: np.ndarray) -> np.ndarray:
        """Where another pair was found than the one that is sought."""
        found = self._keys.take(ranks)
        return np.flatnonzero((found != keys) & (found != EMPTY))

    def rank(self, left: int, right: int) -> int:
        """Rank of one pair of symbols."""
        key = (left << 32) + right
        place = (key * self._spread & WORD) >> self._shift
        while (found := self._key_of[rank := self._rank_at[place]]) not in (key, EMPTY):
            place = (place + 1) & (len(self._rank_at) - 1)
        return rank if found == key else self.never


class Ranks(dict[Pair, int]):
    """Rank of each pair, looked up when it is first asked for."""

    def __init__(self, pairs: Pairs) -> None:
        super().__init__()
        self._pairs, self.never = pairs, pairs.never

    def __missing__(self, pair: Pair) -> int:
        if len(self) >= KEPT:
            self.clear()
        self[pair] = rank = self._pairs.rank(*pair)
        return rank
