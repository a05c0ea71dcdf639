"""The ids of a long text, of all its words at once: a word that was met is looked up by its bytes, and only a new one is merged.

This is a few dozen array operations for some hundred thousand characters, so that a word costs some 50 ns.
"""

import os
from itertools import chain

import numpy as np

from .. import host
from ..fast import slices
from .word_starts import word_starts
from .words import Words, encoded

LONG = 1 << 13  # characters from which this is faster than looking up one word after the other
MOST_CHARACTERS = 1 << 18  # at once
SHORT = 15  # bytes of a word that are its key, with their number; one English word in a hundred has more
MOST_WORDS = 1 << 17  # kept from piece to piece
MOST_BYTES = 1 << 21  # of those of them that have more than SHORT
FEWEST_PLACES = 1 << 15  # of the hash table
WORDS_A_MERGE = 1 << 14
MIX = 0xD6E8FEB86659FD93  # an odd number without pattern
FREE = -1


class LongTexts:
    """Ids of long texts in one vocabulary, a piece of at most MOST_CHARACTERS at a time, which ends where a word does."""

    def __init__(self, words: Words) -> None:
        self._words = words
        self._forget()

    def _forget(self) -> None:
        """Begin anew, without any word."""
        self._keys = _Keys()
        self._long: dict[bytes, int] = {}  # the number of each word of more than SHORT bytes
        self._long_bytes = 0
        # Of the word of a number, where its ids begin and how many there are; and the ids of all.
        self._first, self._count, self._ids = np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.int32)

    def ids(self, piece: str) -> np.ndarray:  # [ids] int32
        """Token ids of a piece."""
        if len(self._first) > MOST_WORDS or self._long_bytes > MOST_BYTES:
            self._forget()
        try:
            numbers = self._numbers(piece)
        except Exception:  # some words may have got a number, and no ids
            self._forget()
            raise
        counts = self._count.take(numbers)
        return self._ids.take(_ranges(self._first.take(numbers), counts))

    def _numbers(self, piece: str) -> np.ndarray:
        """The number of each word; new words get theirs."""
        data = encoded(piece)
        starts = _byte_starts(piece, data)
        lengths = np.diff(starts, append=len(data))
        host.check_interrupts()
        numbers = np.empty(len(starts), np.int64)
        short, long = np.flatnonzero(lengths <= SHORT), np.flatnonzero(lengths > SHORT)
        some, sizes = starts[short], lengths[short]
        numbers[short], new = self._keys.find(*_keys(data, some, sizes), len(self._first))
        self._merge(np.frombuffer(data, np.uint8), some[new], sizes[new])
        numbers[long] = self._long_numbers([data[i:j] for i, j in zip(starts[long], (starts + lengths)[long])])
        return numbers

    def _merge(self, data: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> None:
        """Keep the ids of the short words at these places, which have the next numbers."""
        order = np.argsort(-lengths, kind="stable")  # the longest first
        ids, counts = [self._ids[:0]], np.empty_like(lengths)
        for part in slices.pieces(len(order), WORDS_A_MERGE):
            some = order[part]
            found, counts[some] = self._words.merged(data[_ranges(starts[some], lengths[some])], lengths[some])
            ids.append(found)
        places = np.empty_like(counts)
        places[order] = np.cumsum(counts[order]) - counts[order]
        self._keep(np.concatenate(ids), places, counts)

    def _long_numbers(self, words: list[bytes]) -> list[int]:
        """The number of each word of more than SHORT bytes."""
        new = [word for word in dict.fromkeys(words) if word not in self._long]
        texts = [word.decode() for word in new]
        made = self._words.made(texts)
        ids = [made[text] for text in texts]
        self._long.update(zip(new, range(len(self._first), len(self._first) + len(new))))
        self._long_bytes += sum(map(len, new))
        counts = np.fromiter(map(len, ids), np.int64, len(ids))
        self._keep(np.fromiter(chain.from_iterable(ids), np.int32, counts.sum()), np.cumsum(counts) - counts, counts)
        return [self._long[word] for word in words]

    def _keep(self, ids: np.ndarray, places: np.ndarray, counts: np.ndarray) -> None:
        """Keep the ids of the words of the next numbers, of which each has so many from its place on."""
        self._first = np.concatenate([self._first, places + len(self._ids)])
        self._count = np.concatenate([self._count, counts])
        self._ids = np.concatenate([self._ids, ids])


class _Keys:
    """The number of each word by its key, two numbers: a hash table. A key is at its home, or at the next place that was free.

    Homes depend on a number that is drawn, so that nobody can think out a text whose words have one home, and lookups that walk
    past all of them.
    """

    def __init__(self) -> None:
        self._count, self._spread = 0, np.uint64(_drawn() | 1)
        self._make(FEWEST_PLACES)

    def _make(self, size: int) -> None:
        """Empty places, a power of two."""
        self._low, self._high = (np.zeros(size, np.uint64) for _ in range(2))
        self._number = np.full(size, FREE, np.int32)

    def find(self, low: np.ndarray, high: np.ndarray, next_number: int) -> tuple[np.ndarray, np.ndarray]:
        """The number of each key, and where the new keys are, which get the next numbers in that order. 2 x [n] -> [n], [new]."""
        self._make_room(len(low))
        place, claimed = self._places(low, high, FREE - 1 - np.arange(len(low)))
        new = FREE - 1 - self._number[claimed].astype(np.int64)
        self._number[claimed] = np.arange(next_number, next_number + len(claimed))
        self._count += len(claimed)
        return self._number.take(place), new

    def _make_room(self, more: int) -> None:
        """So many places that they are at most half full with so many more keys."""
        size = 1 << (2 * (self._count + more)).bit_length()
        if size > len(self._number):
            taken = np.flatnonzero(self._number != FREE)
            keys, numbers = (self._low[taken], self._high[taken]), self._number[taken]
            self._make(size)
            self._places(*keys, numbers)

    def _places(self, low: np.ndarray, high: np.ndarray, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The place of each key, and of them those that were free, where the keys now are with these numbers: of equal keys with
        that of one. 3 x [n] -> [n], [new]."""
        place = self._homes(low, high)
        found, waiting = place.copy(), np.arange(len(place))
        claimed = [waiting[:0]]
        while len(waiting):
            host.check_interrupts()
            free = np.flatnonzero(self._number.take(place) == FREE)
            if len(free):
                some = place[free]  # of several keys for one place the last gets it
                self._low[some], self._high[some], self._number[some] = low[free], high[free], numbers[waiting[free]]
                claimed.append(some)
            other = np.flatnonzero((self._low.take(place) != low) | (self._high.take(place) != high))
            waiting, low, high = waiting[other], low[other], high[other]
            found[waiting] = place = (place[other] + 1) & (len(self._number) - 1)
        return found, np.unique(np.concatenate(claimed))

    def _homes(self, low: np.ndarray, high: np.ndarray) -> np.ndarray:
        mixed = (low * np.uint64(MIX) ^ high * self._spread) * self._spread
        return (mixed >> np.uint64(65 - len(self._number).bit_length())).astype(np.int64)


def _drawn() -> int:
    return int.from_bytes(os.urandom(8), "little")


def _keys(data: bytes, starts: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The key of each word of at most SHORT bytes: its bytes, zeros, and their number. [n], [n] -> 2 x [n] uint64."""
    padded = np.frombuffer(data + bytes(16), np.uint8)
    eight = np.ndarray((len(padded) - 7,), "<u8", padded, strides=(1,))  # the eight bytes from each place on
    low = eight.take(starts) & _LOWEST.take(np.minimum(lengths, 8))
    high = eight.take(starts + 8) & _LOWEST.take(np.maximum(lengths - 8, 0))
    return low, high | lengths.astype(np.uint64) << np.uint64(56)


_LOWEST = np.array([(1 << 8 * n) - 1 for n in range(9)], np.uint64)  # so many bytes of eight


def _byte_starts(piece: str, data: bytes) -> np.ndarray:
    """Where words begin in `data`, the UTF-8 of the piece."""
    if len(data) == len(piece):
        return word_starts(np.frombuffer(data, np.uint8))
    codes = np.frombuffer(piece.encode("utf-32-le"), "<u4")
    size = 1 + (codes >= 0x80).view(np.uint8) + (codes >= 0x800).view(np.uint8) + (codes >= 0x10000).view(np.uint8)
    return (np.cumsum(size, dtype=np.int64) - size)[word_starts(codes)]


def _ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """All places of ranges, one range after another."""
    ends = np.cumsum(lengths)
    return np.arange(ends[-1]) + np.repeat(starts - ends + lengths, lengths)
