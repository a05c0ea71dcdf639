"""Words to ids: what was met before is looked up, and only a new word pays.

The new words of a piece of text are merged together where there are many, else one by one.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import numpy as np

from .. import host
from ..errors import InvalidParameter, PgGpt2Error
from ..fast import slices
from ..limits import MOST_WORD
from .bpe_many import Merges
from .bpe_merge import Ranks, merge_by_heap, merge_by_scan
from .pretokenize import word_too_long

AT_ONCE = 1 << 15  # words whose new ones are merged together
CACHED_WORDS = 1 << 17  # some 30 MB; 10 MB of twelve scripts have 120,000
CACHED_LENGTH = 64  # longer words seldom come back
LONG_WORD = 48  # bytes from which the heap is faster
MANY = 512  # new words from which merging them together is faster
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


class Words:
    """The words of one vocabulary. `lacking` makes the error for a symbol that it lacks: see Tokenizer."""

    def __init__(
        self, byte_symbols: list[int], ranks: Ranks, merged: list[int], lacking: Callable[[int], PgGpt2Error]
    ) -> None:
        self._byte_symbols, self._ranks, self._merged, self._lacking = byte_symbols, ranks, merged, lacking
        self.cached: dict[str, list[int]] = {}  # both are emptied when full: the words in use are back at once
        self._texts: dict[str, str] = {}
        self._merges: Merges | None = None

    def encode(self, words: list[str]) -> list[list[int]]:
        """Ids of each word."""
        found = list(map(self.cached.get, words))
        if None not in found:
            return found  # type: ignore[return-value]
        new = self._encode_new(dict.fromkeys(word for word, ids in zip(words, found) if ids is None))
        _keep(self.cached, new)
        return [new[word] if ids is None else ids for word, ids in zip(words, found)]

    def texts(self, words: list[str]) -> list[str]:
        """Ids of each word in decimal, with a comma after each id."""
        found = list(map(self._texts.get, words))
        if None not in found:
            return found  # type: ignore[return-value]
        fresh = [*dict.fromkeys(word for word, text in zip(words, found) if text is None)]
        new = {word: _decimal(ids) for word, ids in zip(fresh, self.encode(fresh))}
        _keep(self._texts, new)
        return [new[word] if text is None else text for word, text in zip(words, found)]

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

    def _encode_new(self, words: Iterable[str]) -> dict[str, list[int]]:
        """Ids of words that are not known yet."""
        short = {word: data for word in words if len(data := _encoded(word)) < LONG_WORD}
        new = self._encode_many(short) if len(short) >= MANY else {}
        new |= {word: self._encode_one(word) for word in words if word not in new}
        if (least := min(map(min, new.values()))) < 0:
            raise self._lacking(least)
        return new

    def _encode_many(self, words: dict[str, bytes]) -> dict[str, list[int]]:
        if self._merges is None:
            self._merges = Merges(self._ranks, self._merged)
        data = np.frombuffer(b"".join(words.values()), np.uint8)
        lengths = np.fromiter(map(len, words.values()), np.int64, len(words))
        return dict(zip(words, self._merges.merge(np.array(self._byte_symbols)[data], lengths)))

    def _encode_one(self, word: str) -> list[int]:
        symbols = self.symbols(word)
        if len(symbols) >= LONG_WORD:
            return merge_by_heap(symbols, self._ranks, self._merged)
        for _ in merge_by_scan(symbols, self._ranks, self._merged):
            pass
        return symbols


def _decimal(ids: list[int]) -> str:
    """Ids with a comma after each."""
    if len(ids) <= AT_ONCE:
        return "".join([f"{i}," for i in ids])
    parts = []
    for part in slices.pieces(len(ids), AT_ONCE):  # of a word of megabytes
        host.check_interrupts()
        parts.append(_decimal(ids[part]))
    return "".join(parts)


def _keep(cache: dict[str, Value], new: dict[str, Value]) -> None:
    """Put into a cache what is new there and not too long."""
    short = [(word, value) for word, value in new.items() if len(word) <= CACHED_LENGTH]
    if len(cache) + len(short) > CACHED_WORDS:
        cache.clear()
    cache |= short[:CACHED_WORDS]


def _encoded(word: str) -> bytes:
    try:
        return word.encode()
    except UnicodeEncodeError as error:
        surrogate = ord(word[error.start])
        raise InvalidParameter(
            f"the text contains the surrogate U+{surrogate:04X}, which is not a character",
            hint="Decode the text from its bytes with errors='replace'.",
        ) from None
