"""From logits to a token: the processors of Hugging Face's `generate`, in its order, and a seeded draw.

Which tokens are kept and their probabilities equal transformers' LogitsProcessors; the draws themselves do not. Temperature 0 is
greedy over what the processors of scores leave.
"""

import functools
import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import numpy as np

from ..core import rng
from ..errors import InvalidParameter
from ..options import ID_NUMBERS, IDS, TEXT_NUMBERS, TEXTS
from .options import CONSTRAINTS, SamplingOptions
from .processors import ADJUSTMENTS, CUTS, Cut, History, constrain
from .softmax import softmax

_UNIT = 2.0**-53
ROUNDING = 4e-5  # two ways of computing a logit differ by less than this part of the largest one
_NARROW = 0.5  # a temperature at which rare tokens are too rare to matter
_FLOAT32 = 1e-6  # what rounding within `distribution` may change of a probability, in parts of it
_HOTTEST = 1e38  # above it an excluded score over an infinite temperature would be no number
_COLDEST = 1e-30  # below it logits / temperature may overflow float32; any difference decides: only the best are left


@dataclass(frozen=True)
class Sampling(SamplingOptions):
    """How to choose the next token: the options, and the processors that they ask for."""

    @functools.cached_property
    def adjustments(self) -> list[tuple[str, Any]]:
        """(name, prepared value) of the processors of scores, in order."""
        return [(name, ADJUSTMENTS[name].prepare(getattr(self, name))) for name in ADJUSTMENTS if self._is_on(name)]

    @functools.cached_property
    def cuts(self) -> list[tuple[str, Cut, Any]]:
        """(name, function, value) of what leaves tokens out of a draw, in order."""
        return [(name, cut, getattr(self, name)) for name, cut in CUTS.items() if self._is_on(name)]

    @property
    def is_greedy(self) -> bool:
        """Whether the best token is taken, whatever is drawn."""
        return self.temperature < _COLDEST

    def _is_on(self, name: str) -> bool:
        return getattr(self, name) != self.options()[name].off

    def adjusted(self, scores: np.ndarray, history: History) -> np.ndarray:  # [V] -> [V]
        """Scores after all processors that come before the temperature."""
        for name, value in self.adjustments:
            scores = ADJUSTMENTS[name].apply(scores, value, history)
        return constrain(scores, history)

    def in_ids(self, vocab: int, encode: Callable[[str], list[int]]) -> "Sampling":
        """The same with the texts of its processors as ids, which `encode` gives. 22023 for an id that is not below `vocab`."""
        found: dict[str, Any] = {}
        for name, declared in self.options().items():
            if not (value := getattr(self, name)) or name in CONSTRAINTS:
                continue
            ids: tuple[Any, ...] = ()
            if declared.kind is TEXTS:
                ids = found[name] = tuple(tuple(encode(text)) for text in value)
            elif declared.kind is TEXT_NUMBERS:
                found[name] = tuple((tuple(encode(text)), number) for text, number in value)
                ids = tuple(sequence for sequence, _ in found[name])
            elif declared.kind is ID_NUMBERS:
                ids = (tuple(token for token, _ in value),)
            elif declared.kind is IDS:
                ids = (value,)
            for token in chain.from_iterable(ids):
                if token >= vocab:
                    raise InvalidParameter(
                        f"token id {token} of {name} is not in 0..{vocab - 1}",
                        hint="llm_encode(text, model) gives ids.",
                    )
        return replace(self, **found) if found else self


class Draws:
    """Numbers in [0, 1) that depend on the seed only: the n-th of a Philox stream, for the n-th token."""

    def __init__(self, seed: int) -> None:
        self._words = rng.words(seed)
        self._waiting: deque[float] = deque()  # those that were looked at ahead

    def next(self) -> float:
        """The next number."""
        return self._waiting.popleft() if self._waiting else self._draw()

    def ahead(self, skipped: int) -> float:
        """What `next` will give after so many others."""
        while len(self._waiting) <= skipped:
            self._waiting.append(self._draw())
        return self._waiting[skipped]

    def _draw(self) -> float:
        return (next(self._words) >> 11) * _UNIT


def choose(logits: np.ndarray, how: Sampling, draw: float, history: History) -> int:
    """Id of the next token for `logits` [vocab] after `history`; `draw` in [0, 1) decides among those kept."""
    if (only := history.only) is not None:
        return only
    scores = _scores(logits, how, history)
    if how.is_greedy:
        return int(np.argmax(scores))
    ids, probabilities = distribution(scores, how)
    cumulative = np.cumsum(probabilities, dtype=np.float64)
    place = np.searchsorted(cumulative, draw * cumulative[-1], side="right")
    return int(ids[min(int(place), len(ids) - 1)])


def likely(logits: np.ndarray, how: Sampling, draw: float, history: History, widths: Sequence[float]) -> list[int]:
    """What `choose` may give for logits that differ from these, for each of `widths`: the token that most numbers give which
    are within a width of `draw`. With width 0 it is the token for these logits, with 1 the most probable one."""
    if history.only is not None or how.is_greedy:
        return [choose(logits, how, draw, history)] * len(widths)
    ids, probabilities = distribution(_scores(logits, how, history), how)
    ends = np.cumsum(probabilities, dtype=np.float64)
    ends /= ends[-1]
    starts = np.concatenate([[0.0], ends[:-1]])
    shares = [np.minimum(ends, draw + width) - np.maximum(starts, draw - width) for width in widths]
    return [int(ids[share.argmax()]) for share in shares]


def _scores(logits: np.ndarray, how: Sampling, history: History) -> np.ndarray:
    scores = how.adjusted(logits, history)
    if how.adjustments or history.walk:
        require_choice(bool(scores.max() > -np.inf))
    return scores


def require_choice(there: bool) -> None:
    """Refuse (22023) options that leave no token."""
    if not there:
        raise InvalidParameter(
            "the options exclude every token", hint="Suppress fewer tokens, or give a larger no_repeat_ngram_size."
        )


def distribution(scores: np.ndarray, how: Sampling) -> tuple[np.ndarray, np.ndarray]:
    """Kept ids, ascending, and their probabilities, from scores that are adjusted; temperature must not be 0."""
    if how.is_greedy:
        scores = np.where(scores == scores.max(), np.float32(0), np.float32(-np.inf))
    else:
        scores = scores / np.float32(min(how.temperature, _HOTTEST))
    ids = None
    for _, cut, value in how.cuts:
        kept = cut(scores, value)
        ids, scores = kept if ids is None else ids[kept], scores[kept]
    return np.arange(len(scores)) if ids is None else ids, softmax(scores)


def choose_surely(logits: np.ndarray, how: Sampling, draw: float, history: History) -> int | None:
    """The token that `choose` gives for all logits none of which differs from these by more than rounding; None if there may be
    several.

    Only what is known here to be bounded counts: with any other processor it is None.
    """
    if (only := history.only) is not None:
        return only
    found = _adjusted_within(logits, how, history)
    if found is None:
        return None
    scores, error = found
    if how.is_greedy:
        is_sure = len(scores) == 1 or np.subtract(*np.partition(scores, -2)[:-3:-1]) > 2 * error
        return choose(logits, how, draw, history) if is_sure else None
    bounds = _Bounds(scores, error, how)
    for name, _, value in how.cuts:
        if name not in _BOUNDED:
            return None
        _BOUNDED[name](bounds, value)
    token = choose(logits, how, draw, history)
    return token if bounds.settle(token, draw) else None


def is_mostly_decisive(how: Sampling) -> bool:
    """Whether `choose_surely` mostly chooses: everything is bounded, and a draw is not among all tokens, of which many are so
    rare that rounding decides between neighbours."""
    bounded = all(ADJUSTMENTS[name].stretch is not None for name, _ in how.adjustments)
    bounded = bounded and all(name in _BOUNDED for name, _, _ in how.cuts)
    return bounded and bool(how.temperature < _NARROW or how.topk or how.min_p or how.constraint)


def _adjusted_within(logits: np.ndarray, how: Sampling, history: History) -> tuple[np.ndarray, float] | None:
    """Adjusted scores, and how far rounding may move one; None where a processor is not bounded."""
    scores, error = logits, ROUNDING * max(1.0, float(np.abs(logits).max()))
    for name, value in how.adjustments:
        processor = ADJUSTMENTS[name]
        if processor.stretch is None:
            return None
        scores = processor.apply(scores, value, history)
        largest = np.abs(scores[np.isfinite(scores)]).max(initial=0)
        error = error * processor.stretch(value) + 2.0**-22 * float(largest)  # of the sum or product, on either side
    return constrain(scores, history), error


class _Bounds:
    """What `distribution` may keep when each score is off by up to `error`: tokens that are possible, some of them sure.

    Weights are not normalised: that of a token is between `low` and `high`. Each cut that is bounded has its method here,
    which narrows both sets; they begin as what top-k leaves.
    """

    def __init__(self, scores: np.ndarray, error: float, how: Sampling) -> None:
        self.ids, least = np.arange(len(scores)), -np.inf
        if 0 < how.topk < len(scores):
            ascending = np.partition(scores, -how.topk)  # around two places it is ten times slower
            kept, dropped = np.float64(ascending[-how.topk]), np.float64(ascending[: -how.topk].max())
            self.ids, least = np.flatnonzero(scores >= kept - 2 * error), dropped + 2 * error
        scores = scores[self.ids].astype(np.float64)
        best = scores.max()
        self.sure = scores > least
        self.is_best = scores == best  # whatever rounding does
        self.is_best &= np.count_nonzero(scores >= best - 2 * error) == 1
        self.scores = (scores - best) / how.temperature
        self.error = error / how.temperature + _FLOAT32
        self.low = np.exp(self.scores)
        self.high = np.exp(np.minimum(self.scores + 2 * self.error, 600))  # ratios count; 600 keeps their sums finite

    def cut_nucleus(self, topp: float) -> None:
        """Top-p: a token stays where it and those below it have more than 1 - p, and the best one does."""
        order = np.argsort(self.scores)
        scores, low, high = self.scores[order], self.low[order], self.high[order]
        sum_low, sum_high = _summed(np.where(self.sure[order], low, 0)), _summed(high)
        below = np.searchsorted(scores, scores - 2 * self.error)  # so many are below it, so many may be
        near = np.searchsorted(scores, scores + 2 * self.error, side="right")
        least, most = low + sum_low[below], sum_high[near]
        possible, sure = np.empty((2, len(order)), bool)
        possible[order] = most > (1 - topp - _FLOAT32) * (most + sum_low[-1] - sum_low[near])
        sure[order] = least > (1 - topp + _FLOAT32) * (least + sum_high[-1] - sum_high[below] - high)
        self._narrow(possible | (self.scores >= -2 * self.error), sure | self.is_best)

    def cut_min_p(self, min_p: float) -> None:
        """Min-p: a token stays where it has this part of the best one's probability."""
        gap = self.scores - math.log(min_p)
        self._narrow(possible=gap >= -2 * self.error, sure=(gap >= 2 * self.error) | self.is_best)

    def cut_epsilon(self, epsilon: float) -> None:
        """A token stays where it has this probability, and the best one does."""
        least = np.where(self.sure, self.low, 0)
        possible = self.high >= (1 - _FLOAT32) * epsilon * (self.high + (least.sum() - least))
        sure = self.low >= (1 + _FLOAT32) * epsilon * (self.low + (self.high.sum() - self.high))
        self._narrow(possible | (self.scores >= -2 * self.error), sure | self.is_best)

    def _narrow(self, possible: np.ndarray, sure: np.ndarray) -> None:
        self.sure &= sure
        for name in ("ids", "scores", "sure", "is_best", "low", "high"):
            setattr(self, name, getattr(self, name)[possible])

    def settle(self, token: int, draw: float) -> bool:
        """Whether `draw` gives `token`, whatever is kept and whatever it weighs."""
        place = int(np.searchsorted(self.ids, token))
        if place == len(self.ids) or self.ids[place] != token or not self.sure[place]:
            return False
        least = np.where(self.sure, self.low, 0)
        own, least_before, least_after = least[place], least[:place].sum(), least[place + 1 :].sum()
        most_before, most_after = self.high[:place].sum(), self.high[place + 1 :].sum()
        return bool(
            (not most_before or (1 - draw) * most_before < draw * (own + least_after))
            and (not most_after or draw * most_after < (1 - draw) * (own + least_before))
        )


_BOUNDED: dict[str, Callable[[_Bounds, Any], None]] = {
    "topk": lambda bounds, value: None,  # what they begin with
    "topp": _Bounds.cut_nucleus,
    "min_p": _Bounds.cut_min_p,
    "epsilon_cutoff": _Bounds.cut_epsilon,
}


def _summed(values: np.ndarray) -> np.ndarray:  # [n] -> [n + 1], of the first 0, 1, ... n
    return np.concatenate([[0.0], np.cumsum(values)])
