"""Many questions to a model of which each is a text and a tree of what may follow it: log-probabilities of what follows.

A few streams, the slots, keep their keys and values from one question to the next, which goes on from the longest beginning that
some slot has read. Questions share passes where a row's company does not matter, one a slot; so each gets the bits that it gets
alone, and nothing is copied but where a beginning is wanted in one more slot.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import NamedTuple, TypeVar

import numpy as np

from .. import host
from ..core.config import GPT2Config
from ..errors import OutOfMemory
from ..fast import slices
from ..fast.layout import DecoderWeights
from . import prefixes
from .decode import LOGITS_ROWS, PREFILL_ROWS, Decoder, bytes_of_several, checked, logits_of, read_with_trees
from .softmax import log_probabilities
from .trees import NO_TREE, Trie

MOST_SLOTS, MOST_POSITIONS = 32, 6144  # of which all slots together have room for so many
PASS_ROWS = 240  # of several questions: more would only need more slots
LEAST_COPIED = 16  # tokens: fewer are read as quickly
ROOM = 128  # positions: rooms are multiples
MOST_WAITING = 256  # items that wait for the results of one before

T = TypeVar("T")


class Question(NamedTuple):
    """A text's ids, and the tokens that may follow."""

    ids: list[int]
    trie: Trie


class _Slot:
    """A stream, and how much of it the question before went on from."""

    def __init__(self, decoder: Decoder) -> None:
        self.decoder = decoder
        self.shared = 0
        self.is_free = True


class _Turn(NamedTuple):
    """A question that is in the next passes."""

    slot: _Slot
    question: Question
    rest: list[int]  # what remains to be read


class Slots:
    """Answers questions to one model."""

    def __init__(self, params: DecoderWeights, config: GPT2Config) -> None:
        self._params, self._config = params, config
        self._slots: list[_Slot] = []  # least recently used first
        self._most = 1
        self._turns: list[_Turn] = []
        self._rows = 0  # that they need
        self._logits = 0  # rows for which memory was asked

    def answers(self, items: Iterable[tuple[T, list[Question]]]) -> Iterator[tuple[T, list[np.ndarray]]]:
        """Each item with the log-probabilities of the texts of each of its questions, in order; items wait for a few others."""
        waiting: deque[tuple[T, int]] = deque()
        found: deque[np.ndarray] = deque()
        for item, questions in items:
            waiting.append((item, len(questions)))
            for question in questions:
                if not self._take(question):
                    found += self._answer()
                    self._take(question)
            if len(waiting) > MOST_WAITING:
                found += self._answer()
            while waiting and (waiting[0][1] <= len(found)):
                yield waiting[0][0], [found.popleft() for _ in range(waiting.popleft()[1])]
        found += self._answer()
        for item, count in waiting:
            yield item, [found.popleft() for _ in range(count)]

    def answer(self, questions: list[Question]) -> list[np.ndarray]:
        """The log-probabilities of the texts of each of a few questions."""
        ((_, found),) = self.answers([(None, questions)])
        return found

    def give(self) -> None:
        """Keep for later calls what a slot has read."""
        if self._slots:
            prefixes.give(self._slots[-1].decoder)
            self._slots.clear()

    def _take(self, question: Question) -> bool:
        """Have a slot read this question in the next passes; False where those have no room for it."""
        ids = np.asarray(question.ids, np.int64)
        usable = [slot.decoder.usable_for(ids) for slot in self._slots]
        best = max(usable, default=0)
        rows = len(ids) - best + len(question.trie.tree)
        if self._turns and self._rows + rows > PASS_ROWS:
            return False
        slot = self._slot_for(ids, best, usable)
        if slot is None:
            return False
        rest = slot.decoder.resume(question.ids)
        slot.shared, slot.is_free = slot.decoder.length, False
        self._slots.remove(slot)
        self._slots.append(slot)
        self._turns.append(_Turn(slot, question, list(rest)))
        self._rows += rows
        return True

    def _slot_for(self, ids: np.ndarray, best: int, usable: list[int]) -> _Slot | None:
        """A free slot, which has then read the first `best` of ids, as some slot has; None where none is free.

        One that has read these, and of which no more was of use; else a new one, or the least recently used.
        """
        own = zip(self._slots, usable) if best >= LEAST_COPIED else ()
        fitting = (slot for slot, length in own if slot.is_free and length == best >= slot.shared)
        source = self._slots[usable.index(best)].decoder if best >= LEAST_COPIED else None
        slot = next(fitting, None) or self._new_slot(ids) or next((slot for slot in self._slots if slot.is_free), None)
        if slot is not None:
            self._make_room(slot, len(ids))
            if source is not None and slot.decoder.usable_for(ids) < best:
                source.copy_to(slot.decoder, best)
        return slot

    def _new_slot(self, ids: np.ndarray) -> _Slot | None:
        """One more slot, where there may be one more and there is memory for it; the first begins as an earlier call ended."""
        room = len(ids) if not self._slots else _rounded(len(ids))
        if self._slots and self._positions() + room > MOST_POSITIONS:
            return None
        if len(self._slots) >= self._most:
            return None
        try:
            self._require(room)
        except OutOfMemory:
            if not self._slots:
                raise
            self._most = len(self._slots)
            return None
        if self._slots:
            slot = _Slot(Decoder(self._params, self._config, room))
        else:
            slot = _Slot(prefixes.take(self._params, self._config, ids, room))
            self._most = MOST_SLOTS if slot.decoder.exact else 1
        self._slots.insert(0, slot)
        return slot

    def _make_room(self, slot: _Slot, length: int) -> None:
        """See that the slot has room for so many positions; where that makes too many, others are given up."""
        if slot.decoder.cache.room >= length:
            return
        room = _rounded(length)
        for other in [other for other in self._slots if other.is_free and other is not slot]:
            if self._positions() - slot.decoder.cache.room + room <= MOST_POSITIONS:
                break
            self._slots.remove(other)
        self._require(room)
        larger = Decoder(self._params, self._config, room)
        slot.decoder.copy_to(larger, slot.decoder.length)
        slot.decoder = larger

    def _positions(self) -> int:
        """For how many positions there is room in all slots."""
        return sum(slot.decoder.cache.room for slot in self._slots)

    def _require(self, room: int) -> None:
        wanted = bytes_of_several(self._params, self._config, [room])
        host.require_memory(wanted, f"keys and values of {room} positions")

    def _answer(self) -> list[np.ndarray]:
        """Log-probabilities of the texts of each question that was taken."""
        turns, self._turns, self._rows = self._turns, [], 0
        if not turns:
            return []
        tries = [turn.question.trie for turn in turns]
        trees = [trie.tree if len(trie.tree) <= PREFILL_ROWS else NO_TREE for trie in tries]
        hidden = read_with_trees([turn.slot.decoder for turn in turns], [turn.rest for turn in turns], trees)
        blocks: Iterable[np.ndarray] = [np.concatenate(hidden)]
        if len(tries[0].tree) > PREFILL_ROWS:  # it is alone
            decoder = turns[0].slot.decoder
            parts = (decoder.feed_tree(part)[leading:] for part, leading in tries[0].parts(PREFILL_ROWS))
            blocks = chain(blocks, parts)
        if (needed := min(LOGITS_ROWS, sum(map(len, tries)))) > self._logits:
            host.require_memory(2 * 4 * self._config.vocab * needed, f"logits of {needed} tokens")
            self._logits = needed
        starts = np.cumsum([0, *map(len, tries[:-1])])
        rows = np.concatenate([start + trie.rows for start, trie in zip(starts, tries)])
        found = _logprobs(self._params, blocks, rows, np.concatenate([trie.tokens for trie in tries]))
        for turn in turns:
            turn.slot.is_free = True
        ends = np.cumsum([len(trie.rows) for trie in tries])[:-1]
        return [trie.add_up(some) for trie, some in zip(tries, np.split(found, ends))]


def _rounded(length: int) -> int:
    """Room for so many positions, and mostly for the next text."""
    return -(-length // ROOM) * ROOM


def _logprobs(
    params: DecoderWeights, blocks: Iterable[np.ndarray], rows: np.ndarray, tokens: np.ndarray
) -> np.ndarray:  # blocks of [m, D], [k], [k] -> [k]
    """Log-probability of each token after the row beside it; blocks hold the stream after ln_f at all rows, which ascend."""
    found = np.empty(len(rows))
    first = 0
    for block in blocks:
        for piece in slices.pieces(len(block), LOGITS_ROWS):
            begin, end = first + piece.start, first + piece.stop
            some = slice(*np.searchsorted(rows, (begin, end)))
            logits = checked(logits_of(params, block[piece]))
            found[some] = log_probabilities(logits, rows[some] - begin, tokens[some])
            host.check_interrupts()
        first += len(block)
    return found
