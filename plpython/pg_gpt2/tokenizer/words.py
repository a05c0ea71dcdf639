"""Words to ids: what was met before is looked up, and only a new word pays.

The new words of a piece of text are merged together where there are many, else one by one.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

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

AT_ONCE = 1 << 18  # words whose new ones are merged together; some 20 MB
CACHED_WORDS = 1 << 17  # some 40 MB; 10 MB of twelve scripts have 120,000
CACHED_CHARACTERS = 1 << 21  # of these words
CACHED_LENGTH = 1 << 10  # longer words seldom come back
LONG_WORD = 48  # bytes from which the heap is faster
MANY = 512  # new words from which merging them together is faster
FEW = 8  # of many new words the longest are merged one by one: that is faster than rounds for them alone
LONG_AMONG_MANY = 256  # bytes from which a word is merged alone
WORDS_A_MERGE = 1 << 11  # of words of 255 bytes some 40 MB of arrays
IDS_A_TEXT = 1 << 15
BYTES_A_SYMBOL = 150  # of memory, while a long word is merged
BYTES_A_CHECK = 1 << 20
Value = TypeVar("Value")


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


class Cache(dict[str, Value | None]):
    """What was made of words. Emptied when full: the words in use are back at once."""

    characters = 0

    def __init__(self) -> None:
        super().__init__()
        self._new: list[str] = []

    def __missing__(self, word: str) -> None:
        """Notes a word that is new, once."""
        self._new.append(word)
        self[word] = None

    def look_up(self, words: list[str], make: Callable[[list[str]], dict[str, Value]]) -> list[Value]:
        """The value of each word; `make` gives those of new words."""
        found: list[Any] = list(map(self.__getitem__, words))
        if self._new:
            new, self._new = self._new, []
            try:
                self.update(make(new))
            except Exception:
                for word in new:
                    del self[word]
                raise
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
        pairs = Pairs(tables.pairs, tables.places)
        self._ranks, self._merged, self._merges = Ranks(pairs), tables.merged.data, Merges(pairs, tables.merged)
        self.cached: Cache[list[int]] = Cache()
        self._texts: Cache[str] = Cache()

    def encode(self, words: list[str]) -> list[list[int]]:
        """Ids of each word."""
        return self.cached.look_up(words, lambda new: self._encode_new(new, list, _lists))

    def texts(self, words: list[str]) -> list[str]:
        """Ids of each word in decimal, with a comma after each id."""
        return self._texts.look_up(words, lambda new: self._encode_new(new, _text, _texts))

    def symbols(self, word: str) -> list[int]:
        """A symbol for each byte of a word."""
        data = _encoded(word)
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

    def _encode_new(
        self,
        words: list[str],
        one: Callable[[list[int]], Value],
        each: Callable[[np.ndarray, np.ndarray], list[Value]],
    ) -> dict[str, Value]:
        """What `one` makes of a word's ids, or `each` of the ids of several words and their counts, for words not known yet."""
        alone, together = (words, []) if len(words) < MANY else _apart(words)
        new = {word: one(self._encode_one(word)) for word in alone}
        for part in slices.pieces(len(together), WORDS_A_MERGE):
            data = [word.encode() for word in together[part]]
            symbols = self._symbol_of[np.frombuffer(b"".join(data), np.uint8)]
            ids, counts = self._merges.merge(symbols, np.fromiter(map(len, data), np.int64, len(data)))
            self._require_tokens(int(ids.min()))
            new.update(zip(together[part], each(ids, counts)))
        return new

    def merges(self, symbols: list[int]) -> Iterator[tuple[int, int, int]]:
        """Merges the symbols of a word in place, giving the rank and the place of each merge, and the symbol that it makes."""
        for rank, place in merge_by_scan(symbols, self._ranks, self._merged):
            yield rank, place, self._merged[rank]

    def _encode_one(self, word: str) -> list[int]:
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
    lengths = np.fromiter([len(_encoded(word)) for word in words], np.int64, len(words))
    order = [words[n] for n in np.argsort(-lengths, kind="stable").tolist()]
    alone = max(FEW, int(np.count_nonzero(lengths >= LONG_AMONG_MANY)))
    return order[:alone], order[alone:]


def _lists(ids: np.ndarray, counts: np.ndarray) -> list[list[int]]:
    """Ids of words one after another, as a list for each word."""
    flat, ends = ids.tolist(), np.cumsum(counts).tolist()
    return [flat[end - count : end] for end, count in zip(ends, counts.tolist())]


def _texts(ids: np.ndarray, counts: np.ndarray) -> list[str]:
    """Ids of words one after another, as a text for each word. A -1 marks its end until all are written."""
    return _text(np.insert(ids, np.cumsum(counts), -1).tolist()).split("-1,")[:-1]


def _text(ids: list[int]) -> str:
    """Ids in decimal with a comma after each."""
    parts = []
    for part in slices.pieces(len(ids), IDS_A_TEXT):
        host.check_interrupts()
        parts.append(str(ids[part])[1:-1].replace(" ", "") + ",")
    return "".join(parts)


def _encoded(word: str) -> bytes:
    try:
        return word.encode()
    except UnicodeEncodeError as error:
        surrogate = ord(word[error.start])
        raise InvalidParameter(
            f"the text contains the surrogate U+{surrogate:04X}, which is not a character",
            hint="Decode the text from its bytes with errors='replace'.",
        ) from None
