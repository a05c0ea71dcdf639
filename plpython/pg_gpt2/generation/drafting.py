"""Drafts by a smaller model: it says what may follow, and a pass of the model that was asked verifies several tokens at once.

Reference: Leviathan et al. 2023, "Fast Inference from Transformers via Speculative Decoding". Other than there the model draws
every token itself, with the number that it would draw it with alone, and a draft has come true where it is the same token: hence
the bits of plain decoding. The draft is drawn with these numbers as well, so that both often draw the same; or where that comes
true more often, with what they and numbers near them draw most, since the two models place tokens differently between 0 and 1.

Drafts of what occurred before (lookup.py) cost nothing to make. `Guesses` takes those of which more is expected in the time.
"""

from time import perf_counter
from typing import NamedTuple

import numpy as np

from ..core.config import GPT2Config
from ..errors import InvalidParameter
from ..fast.layout import DecoderWeights
from . import prefixes
from .decode import Decoder, checked, logits_of
from .lookup import Drafts, Odds
from .processors import History
from .sampling import Draws, Sampling, likely

FIRST, LONGEST = 3, 15  # tokens of a draft, before anything is known of it and at most
A_ROW = 0.05  # of the time of a pass, for a further token in it
WIDTHS = (0.0, 0.3)  # of the numbers that a token of a draft is drawn with
MEMORY = 0.97  # what counts of how these fare after the next token
PATIENCE, MOST_PATIENCE = 16, 256  # tokens until a draft is tried again that promised no gain
SLOWER = 1.02  # by which a measured time grows with each later one, because the machine may be busier now


class DraftModel(NamedTuple):
    """A model that makes drafts, with the vocabulary of the one that it makes them for."""

    params: DecoderWeights
    config: GPT2Config


class Speaker:
    """A draft model that goes on with a text, in a window of its own."""

    def __init__(self, model: DraftModel, how: Sampling, draws: Draws, room: int) -> None:
        """`how` and `draws` are what the text's own model draws with; the text will have up to `room` tokens."""
        self._model, self._how, self._draws, self._room = model, how, draws, room
        self._decoder: Decoder | None = None
        self._start = 0  # where in the text its window begins
        self._tokens: list[list[int]] = []  # of the last draft, one for each of WIDTHS
        self._true = [0.0] * len(WIDTHS)  # how many of each came true, lately
        self.seconds = 0.0  # for a token, lately

    def propose(self, history: History, most: int) -> list[int]:
        """Up to `most` tokens, at least 1, that this model would say after a text."""
        there, window = history.copy(), self._model.config.n_positions
        most = min(most, window - max(1, window // 2) + 1)
        decoder, row = self._read(history, most)
        found: list[int] = []
        self._tokens = []
        way = self._true.index(max(self._true))
        while True:
            began = perf_counter()
            try:
                row = checked(row, "the draft model's logits")
                tokens = likely(row, self._how, self._draws.ahead(len(found)), there, WIDTHS)
            except InvalidParameter:  # the options leave nothing after such a text
                return found
            self._tokens.append(tokens)
            found.append(token := tokens[way])
            there.append(token)
            if len(found) == most or there.ends(token) or there.over:
                return found
            row = decoder.feed_all([token])[0]
            self.seconds = lately(self.seconds, perf_counter() - began)

    def report(self, said: list[int], true: int) -> None:
        """What was said after the last draft, of which so many tokens came true."""
        for tokens, token in zip(self._tokens[: true + 1], said):
            self._true = [MEMORY * known + (other == token) for known, other in zip(self._true, tokens)]

    def _read(self, history: History, most: int) -> tuple[Decoder, np.ndarray]:  # -> [V]
        """Read a text; its end only, where the window holds no more with `most` tokens after it. The logits after it."""
        params, config = self._model
        if len(history.ids) - self._start + most - 1 > config.n_positions:
            self._start = len(history.ids) - max(1, config.n_positions // 2)
            if self._decoder:
                self._decoder.rewind(0)
        ids = np.array(history.ids[self._start :], np.int64)
        if self._decoder is None:
            self._decoder = prefixes.take(params, config, ids, self._room)
        rest = _forget_others(self._decoder, ids)
        return self._decoder, logits_of(params, self._decoder.read(rest))[0]

    def keep(self, history: History) -> None:
        """Keep what was read of the text for later calls; nothing is proposed any more."""
        if self._decoder and not self._start:
            _forget_others(self._decoder, np.array(history.ids, np.int64))
            prefixes.give(self._decoder)
        self._decoder = None


def _forget_others(decoder: Decoder, ids: np.ndarray) -> np.ndarray:
    """Let a decoder forget what is no beginning of `ids`; the rest of them, at least the last. Bits may depend on the passes."""
    decoder.rewind(min(len(ids) - 1, prefixes.alike(np.array(decoder.ids), ids)))
    return ids[decoder.length :]


class Guesses:
    """Drafts of two kinds, of which the one is taken that promises more tokens a second; or none, where plain decoding does."""

    def __init__(self, lookup: Drafts | None, speaker: Speaker | None) -> None:
        self._lookup, self._speaker = lookup, speaker
        self._odds = Odds()  # of the speaker's tokens
        self._found: list[int] = []  # by lookup, taken or not
        self._spoken: list[int] = []
        self._patience, self._waited = PATIENCE, 0
        self._pass = 0.0  # seconds of a pass of the model over one token, lately

    def propose(self, history: History, most: int) -> list[int]:
        """Up to `most` tokens that may follow a text."""
        self._found = self._lookup.propose(history.ids, most) if self._lookup else []
        self._spoken = []
        if self._speaker is None or most < 1:
            return self._found
        size = self._size()
        found = self._lookup.odds if self._lookup and self._found else None
        if found and found.expected(len(self._found)) / _cost(len(self._found)) >= self._promise(size):
            return self._found
        if not size:
            self._waited += 1
            if self._waited < self._patience:
                return self._found
            size = FIRST
        self._waited = 0
        self._spoken = self._speaker.propose(history, min(size, most))
        return self._spoken

    def _size(self) -> int:
        """The length of the speaker's drafts that promises most, 0 for none."""
        if not (self._pass and self._speaker and self._speaker.seconds):
            return FIRST
        return max(range(LONGEST + 1), key=self._promise)

    def _promise(self, size: int) -> float:
        """Tokens that are expected in the time of a pass over one, with drafts of this size by the speaker."""
        share = self._speaker.seconds / self._pass if self._speaker and self._pass else 0.0
        return self._odds.expected(size) / (_cost(size) + share * size)

    def report(self, drafted: int, said: list[int], seconds: float) -> None:
        """What was `said` after the last proposal, of `drafted` tokens: one or more; `seconds` of the pass that verified it."""
        self._pass = lately(self._pass, seconds / _cost(drafted))
        if self._lookup and self._found:
            self._lookup.report(*_outcome(self._found, said))
        if self._speaker and self._spoken:
            tried, true = _outcome(self._spoken, said)
            self._odds.report(tried, true)
            self._speaker.report(said, true)
            hopeless = not self._size()
            self._patience = min(MOST_PATIENCE, 2 * self._patience) if hopeless else PATIENCE

    def keep(self, history: History) -> None:
        """The text is at its end."""
        if self._speaker:
            self._speaker.keep(history)


def _outcome(draft: list[int], said: list[int]) -> tuple[int, int]:
    """How many tokens of a draft are known to be right or wrong, after so many were said, and how many came true."""
    known = min(len(draft), len(said))
    return known, next((i for i in range(known) if draft[i] != said[i]), known)


def _cost(drafted: int) -> float:
    """Of a pass that verifies so many tokens, in those over one."""
    return 1 + A_ROW * drafted


def lately(known: float, seconds: float) -> float:
    """The time that something takes when nothing disturbs it: the last and the earlier ones, 0 where there are none."""
    return min(seconds, known * SLOWER) if known else seconds
