"""Merges byte pairs inside many words at once: what `merge_by_scan` does to each, as a few array operations for all.

In every round each word that still merges makes one merge: of its pairs of lowest rank the leftmost. Rounds are as many as
the longest word has merges, and what is finished leaves the arrays, so that texts of new words cost a tenth of a scan each.
"""

import numpy as np

from .. import host
from .bpe_merge import NEVER, Ranks

NO_KEY = np.iinfo(np.int64).max  # above the key of each pair


class Merges:
    """What merges which pairs, to be looked up for many pairs at once: keys in order, and the rank of each."""

    def __init__(self, ranks: Ranks, merged: list[int]) -> None:
        pairs = np.array(list(ranks), np.int64).reshape(-1, 2)
        keys = np.append(_key(pairs[:, 0], pairs[:, 1]), NO_KEY)
        order = np.argsort(keys)
        self._keys = keys[order]
        self._ranks = np.append(np.fromiter(ranks.values(), np.int64, len(ranks)), NEVER)[order]
        self._merged = np.array(merged, np.int64)

    def rank(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:  # 2 x [n] -> [n]
        """Rank of each pair of symbols; NEVER where it does not merge."""
        keys = _key(left, right)
        place = np.searchsorted(self._keys, keys)
        return np.where(self._keys[place] == keys, self._ranks[place], NEVER)

    def merge(self, symbols: np.ndarray, lengths: np.ndarray) -> list[list[int]]:  # [n], [words] -> words
        """The symbols that remain of each word; `symbols` has those of all words, of which none is empty, one after another."""
        result: list[list[int]] = [[]] * len(lengths)
        words = np.arange(len(lengths))
        ranks = np.append(self.rank(symbols[:-1], symbols[1:]), NEVER)  # of the pair that begins at a place
        ranks[np.cumsum(lengths) - 1] = NEVER
        while len(words):
            host.check_interrupts()
            best = np.minimum.reduceat(ranks, np.cumsum(lengths) - lengths)
            merges = best < NEVER
            inside = np.repeat(merges, lengths)
            for word, ids in zip(words[~merges].tolist(), _parts(symbols[~inside], lengths[~merges])):
                result[word] = ids
            symbols, ranks = symbols[inside], ranks[inside]
            words, lengths, best = words[merges], lengths[merges], best[merges]
            if len(words):
                symbols, ranks = self._merge_once(symbols, ranks, lengths, best)
                lengths = lengths - 1
        return result

    def _merge_once(
        self, symbols: np.ndarray, ranks: np.ndarray, lengths: np.ndarray, best: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Symbols and ranks after one merge in each word, of its leftmost pair of the rank `best`."""
        count = np.arange(len(lengths))
        found = np.flatnonzero(ranks == np.repeat(best, lengths))
        ends = np.cumsum(lengths)
        at = found[np.searchsorted(found, ends - lengths)]
        symbols[at] = self._merged[best]
        stay = np.ones(len(symbols), bool)
        stay[at + 1] = False
        symbols, ranks = symbols[stay], ranks[stay]
        at -= count  # in each word before, one symbol is gone
        ends -= count + 1
        ranks[at] = NEVER
        inner = at[at + 1 < ends]
        ranks[inner] = self.rank(symbols[inner], symbols[inner + 1])
        left = at[at > ends - lengths + 1] - 1
        ranks[left] = self.rank(symbols[left], symbols[left + 1])
        return symbols, ranks


def _key(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """One number for two symbols, which are below 2**31 in size."""
    return (left << 32) + right


def _parts(symbols: np.ndarray, lengths: np.ndarray) -> list[list[int]]:
    """Symbols of words one after another, as a list for each word."""
    flat, ends = symbols.tolist(), np.cumsum(lengths).tolist()
    return [flat[end - length : end] for end, length in zip(ends, lengths.tolist())]
