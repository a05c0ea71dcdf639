"""Learns a byte-pair vocabulary from text: the pair of tokens that occurs most becomes a token, again and again.

Follows Sennrich et al. 2016 on GPT-2's pretokens, with the ties and the ids of Hugging Face's BpeTrainer: the same text
gives the same vocabulary. Counts are kept up to date in the words that a merge touches, never taken afresh.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable
from heapq import heapify, heappop, heappush
from itertools import pairwise
from typing import TypeAlias

from .. import host
from ..errors import InvalidParameter
from ..fast import slices
from ..limits import MOST_WORD
from .pretokenize import split, word_too_long
from .tables import BYTE_CHARACTERS, END_OF_TEXT

Pair: TypeAlias = tuple[int, int]
WORDS_A_CHECK = 16  # of any length
SYMBOLS_A_CHECK = 1 << 14
MANY_SYMBOLS, BYTES_A_SYMBOL = 1 << 22, 24  # from where room is asked for; in a word, and in its next state
MANY_WORDS, BYTES_A_WORD = 1 << 18, 1500  # likewise; counted, as symbols, and its place among the pairs


def train(texts: Iterable[str], vocab_size: int) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges in printable form, as for vocab.json and merges.txt.

    `vocab_size` counts the 256 bytes (ids 0 to 255 in GPT-2's order) and <|endoftext|>, which is the last id. When no
    pair is left to merge, the vocabulary is smaller than asked.
    """
    if vocab_size < 257:
        raise InvalidParameter(
            f"vocab_size {vocab_size} is too small", hint="256 bytes and <|endoftext|> make 257; GPT-2 has 50257."
        )
    # GPT-2 numbers the bytes by their printable characters; Hugging Face comes to the same order
    vocab = {c: i for i, c in enumerate(sorted(BYTE_CHARACTERS))}
    tokens = list(vocab)
    counted = _count_words(texts)
    words = _words_of_bytes(counted, [vocab[c] for c in BYTE_CHARACTERS])
    merges = []
    pairs = _PairCounts(words, list(counted.values()))
    progress = host.Progress("learning a vocabulary", "tokens", vocab_size)
    while len(vocab) < vocab_size - 1 and (pair := pairs.pop_most_frequent()):
        left, right = (tokens[i] for i in pair)
        merges.append((left, right))
        # Two pairs can make the same token; it keeps its first id
        merged = vocab.setdefault(left + right, len(tokens))
        if merged == len(tokens):
            tokens.append(left + right)
        pairs.merge(pair, merged)
        progress.at(len(vocab))
    vocab[END_OF_TEXT] = len(vocab)
    return vocab, merges


def _count_words(texts: Iterable[str]) -> Counter[str]:
    """How often each pretoken occurs in `texts`."""
    counted: Counter[str] = Counter()
    room = MANY_WORDS
    progress = host.Progress("reading the source of a vocabulary", "characters")
    read = 0
    for text in texts:
        for words in split(text):
            host.check_interrupts()
            progress.at(read)
            counted.update(words)
            read += sum(map(len, words))
            if len(counted) > room:
                room *= 2
                host.require_memory(BYTES_A_WORD * room, f"a vocabulary from more than {len(counted)} different words")
    return counted


def _words_of_bytes(counted: Iterable[str], ids: list[int]) -> list[list[int]]:
    """The words as symbols: `ids` of their bytes."""
    total, room = 0, MANY_SYMBOLS
    words = []
    for word in counted:
        data = word.encode()
        if len(data) > MOST_WORD:
            raise word_too_long(len(data))
        total += len(data)
        if total > room:
            room = 2 * total
            host.require_memory(BYTES_A_SYMBOL * room, f"a vocabulary from words of more than {total} bytes")
        symbols: list[int] = []
        for part in slices.pieces(len(data), SYMBOLS_A_CHECK):
            host.check_interrupts()
            symbols += [ids[b] for b in data[part]]
        words.append(symbols)
    return words


class _PairCounts:
    """The words as symbols, how often each pair occurs in them and in which it does, and the pairs by frequency."""

    def __init__(self, words: list[list[int]], frequencies: list[int]) -> None:
        self.words, self.frequencies = words, frequencies
        self.counts: defaultdict[Pair, int] = defaultdict(int)
        self.places: defaultdict[Pair, set[int]] = defaultdict(set)  # words that hold the pair, or held it once
        for n, word in enumerate(words):
            if n % WORDS_A_CHECK == 0:
                host.check_interrupts()
            for place, pair in enumerate(pairwise(word), 1):
                if place % SYMBOLS_A_CHECK == 0:
                    host.check_interrupts()
                self.counts[pair] += frequencies[n]
                self.places[pair].add(n)
        # Highest count first, then the lowest ids
        self.queue = [(-count, pair) for pair, count in self.counts.items()]
        heapify(self.queue)

    def pop_most_frequent(self) -> Pair | None:
        """The pair to merge next; None when no word has two symbols left."""
        while self.queue:
            count, pair = heappop(self.queue)
            current = self.counts[pair]
            if current == -count:
                return pair
            if current > 0:
                heappush(self.queue, (-current, pair))  # counts fall behind the queue's back, and are seen here
        return None

    def merge(self, pair: Pair, merged: int) -> None:
        """Replaces `pair` by the symbol `merged` in all words."""
        grown: set[Pair] = set()
        for seen, n in enumerate(self.places.pop(pair)):
            if seen % WORDS_A_CHECK == 0:
                host.check_interrupts()
            new_pairs = self._merge_in_word(n, pair, merged)
            for new in new_pairs:
                self.places[new].add(n)
            grown |= new_pairs
        del self.counts[pair]
        for new in grown:
            if self.counts[new] > 0:  # not so if the next place in the word took it again
                heappush(self.queue, (-self.counts[new], new))

    def _merge_in_word(self, n: int, pair: Pair, merged: int) -> set[Pair]:
        """Replaces `pair` in one word from the left, counts what that changes, and gives the new pairs.

        `list.index` finds the places, so that a rare pair in a very long word is cheap.
        """
        a, b = pair
        word, frequency, counts = self.words[n], self.frequencies[n], self.counts
        result: list[int] = []
        new_pairs: set[Pair] = set()
        start, i, last = 0, -1, len(word) - 1
        for seen in range(1, word.count(a) + 1):
            if seen % SYMBOLS_A_CHECK == 0:
                host.check_interrupts()
            i = word.index(a, i + 1)
            if i < start or i == last or word[i + 1] != b:  # i < start: its a is the b of the pair before
                continue
            result += word[start:i]
            if result:
                counts[result[-1], a] -= frequency
                counts[result[-1], merged] += frequency
                new_pairs.add((result[-1], merged))
            if i + 2 <= last:
                counts[b, word[i + 2]] -= frequency
                counts[merged, word[i + 2]] += frequency
                new_pairs.add((merged, word[i + 2]))
            result.append(merged)
            start = i + 2
        self.words[n] = result + word[start:]
        return new_pairs
