"""The words of short texts to ids: what was met before is looked up, and only a new word pays. See long_texts.py for long ones.

New words are merged together where there are many, else one by one.
"""

from collections.abc import Callable, Iterable, Iterator

import numpy as np

from .. import host
from ..errors import InvalidParameter, PgGpt2Error
from ..fast import slices
from ..limits import MOST_WORD
from .bpe_many import Merges
from .bpe_merge import merge_by_heap, merge_by_scan
from .pairs import Pairs, Ranks
from .pretokenize import word_too_long
from .tables import Tables

AT_ONCE = 1 << 16  # words whose new ones are merged together
CACHED_WORDS = 1 << 17  # some 40 MB; 10 MB of twelve scripts have 120,000
CACHED_CHARACTERS = 1 << 21  # of these words
CACHED_LENGTH = 1 << 10  # longer words seldom come back
LONG_WORD = 48  # bytes from which the heap is faster
MANY = 512  # new words from which merging them together is faster
FEW = 8  # of many new words the longest are merged one by one: that is faster than rounds for them alone
LONG_AMONG_MANY = 256  # bytes from which a word is merged alone
WORDS_A_MERGE = 1 << 11  # of words of 255 bytes some 40 MB of arrays
BYTES_A_SYMBOL = 150  # of memory, while a long word is merged
BYTES_A_CHECK = 1 << 20


def gathered(lists: Iterable[list[str]]) -> Iterator[list[str]]:
    """The words of short lists in lists of about AT_ONCE."""
    found: list[str] = []
    for words in lists:
        host.check_interrupts()
        found += words
        if len(found) >= AT_ONCE:
            yield found
            found = []
    if found:
        yield found


class Cache(dict[str, list[int]]):
    """Ids of words. Emptied when full: the words in use are back at once."""

    characters = 0

    def look_up(self, words: list[str], make: Callable[[list[str]], dict[str, list[int]]]) -> list[list[int]]:
        """The ids of each word; `make` gives those of new words."""
        try:
            return list(map(self.__getitem__, words))
        except KeyError:
            new = [word for word in dict.fromkeys(words) if word not in self]
        self.update(make(new))
        found = list(map(self.__getitem__, words))
        self._tidy(new)
        return found

    def _tidy(self, new: list[str]) -> None:
        """Drop what is too long to keep, or everything where it is too much."""
        for word in new:
            if len(word) <= CACHED_LENGTH:
                self.characters += len(word)
            else:
                del self[word]
        if len(self) > CACHED_WORDS or self.characters > CACHED_CHARACTERS:
            self.clear()
            self.characters = 0


class Words:
    """The words of one vocabulary. `lacking` makes the error for a symbol that it lacks: see Tokenizer."""

    def __init__(self, tables: Tables, lacking: Callable[[int], PgGpt2Error]) -> None:
        self._lacking = lacking
        self._symbol_of, self._byte_symbols = tables.byte_symbols, tables.byte_symbols.tolist()
        pairs = Pairs(tables.pairs, tables.places, tables.spread)
        self._ranks, self._merged, self._merges = Ranks(pairs), tables.merged.data, Merges(pairs, tables.merged)
        self.cached = Cache()

    def encode(self, words: list[str]) -> list[list[int]]:
        """Ids of each word."""
        return self.cached.look_up(words, self.made)

    def symbols(self, word: str) -> list[int]:
        """A symbol for each byte of a word."""
        data = encoded(word)
        if len(data) <= BYTES_A_CHECK:
            return [self._byte_symbols[b] for b in data]
        if len(data) > MOST_WORD:
            raise word_too_long(len(data))
        host.require_memory(BYTES_A_SYMBOL * len(data), f"a word of {len(data)} bytes")
        symbols: list[int] = []
        for part in slices.pieces(len(data), BYTES_A_CHECK):
            host.check_interrupts()
            symbols += [self._byte_symbols[b] for b in data[part]]
        return symbols

    def made(self, words: list[str]) -> dict[str, list[int]]:
        """Ids of each of different words, of which nothing is kept."""
        alone, together = (words, []) if len(words) < MANY else _apart(words)
        new = {word: self._merged_alone(word) for word in alone}
        for part in slices.pieces(len(together), WORDS_A_MERGE):
            data = [word.encode() for word in together[part]]
            lengths = np.fromiter(map(len, data), np.int64, len(data))
            ids, counts = self.merged(np.frombuffer(b"".join(data), np.uint8), lengths)
            new.update(zip(together[part], _lists(ids, counts)))
        return new

    def merges(self, symbols: list[int]) -> Iterator[tuple[int, int, int]]:
        """Merges the symbols of a word in place, giving the rank and the place of each merge, and the symbol that it makes."""
        for rank, place in merge_by_scan(symbols, self._ranks, self._merged):
            yield rank, place, self._merged[rank]

    def merged(self, data: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Ids of words of these bytes, the longest first, and how many of each. [n] uint8, [words] -> [ids] int32, [words]."""
        ids, counts = self._merges.merge(self._symbol_of[data], lengths)
        self._require_tokens(int(ids.min()))
        return ids, counts

    def _merged_alone(self, word: str) -> list[int]:
        symbols = self.symbols(word)
        if len(symbols) >= LONG_WORD:
            symbols = merge_by_heap(symbols, self._ranks, self._merged)
        else:
            for _ in self.merges(symbols):
                pass
        self._require_tokens(min(symbols))
        return symbols

    def _require_tokens(self, least: int) -> None:
        """Refuse a symbol that is no token."""
        if least < 0:
            raise self._lacking(least)


def _apart(words: list[str]) -> tuple[list[str], list[str]]:
    """Of many words the longest, to be merged one by one, and the others, these from long to short."""
    lengths = np.fromiter([len(encoded(word)) for word in words], np.int64, len(words))
    order = [words[n] for n in np.argsort(-lengths, kind="stable").tolist()]
    alone = max(FEW, int(np.count_nonzero(lengths >= LONG_AMONG_MANY)))
    return order[:alone], order[alone:]


def _lists(ids: np.ndarray, counts: np.ndarray) -> list[list[int]]:
    """Ids of words one after another, as a list for each word."""
    flat, ends = ids.tolist(), np.cumsum(counts).tolist()
    return [flat[end - count : end] for end, count in zip(ends, counts.tolist())]


def encoded(word: str) -> bytes:
    try:
        return word.encode()
    except UnicodeEncodeError as error:
        surrogate = ord(word[error.start])
        raise InvalidParameter(
            f"the text contains the surrogate U+{surrogate:04X}, which is not a character",
            hint="Decode the text from its bytes with errors='replace'.",
        ) from None
