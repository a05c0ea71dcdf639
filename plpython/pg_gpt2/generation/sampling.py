"""From logits to a token: the processors of Hugging Face's `generate`, in its order, and a seeded draw.

Repetition penalty, temperature, top-k, top-p, min-p; temperature 0 is greedy. Which tokens are kept and their probabilities equal
transformers' LogitsProcessors (`RepetitionPenalty`, `Temperature`, `TopK`, `TopP`, `MinP`); the draws themselves do not.
"""

import math
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from ..errors import InvalidParameter, NullNotAllowed

_UNIT = 2.0**-53
ROUNDING = 4e-5  # two ways of computing a logit differ by less than this part of the largest one
_FLOAT32 = 1e-6  # what rounding within `distribution` may change of a probability, in parts of it
_COLDEST = 1e-30  # below it logits / temperature may overflow float32; any difference decides: only the best are left


@dataclass(frozen=True)
class Sampling:
    """How to choose the next token. `topk` 0, `topp` 1, `min_p` 0 and `repetition_penalty` 1 switch a step off."""

    temperature: float = 1.0
    topk: int = 50
    topp: float = 0.95
    repetition_penalty: float = 1.0
    min_p: float = 0.0

    def __post_init__(self) -> None:
        for name in ("temperature", "topk", "topp", "repetition_penalty", "min_p"):
            value = getattr(self, name)
            if value is None:
                raise NullNotAllowed(f"{name} must not be null", hint="Leave it out to get its default.")
            if not math.isfinite(value):
                raise InvalidParameter(f"{name} must be finite, not {value}", hint="Leave it out to get its default.")
        _check(self.temperature >= 0, "temperature", self.temperature, "0 or more", "0 takes the most probable token.")
        _check(self.topk >= 0, "topk", self.topk, "0 or more", "0 keeps all tokens.")
        _check(0 <= self.topp <= 1, "topp", self.topp, "between 0 and 1", "1 keeps all tokens.")
        _check(0 <= self.min_p <= 1, "min_p", self.min_p, "between 0 and 1", "0 keeps all tokens.")
        _check(
            self.repetition_penalty > 0,
            "repetition_penalty",
            self.repetition_penalty,
            "above 0",
            "1 is no penalty, 1.2 a usual one.",
        )


def _check(good: bool, name: str, value: float, domain: str, hint: str) -> None:
    if not good:
        raise InvalidParameter(f"{name} must be {domain}, not {value}", hint=hint)


class Draws:
    """Numbers in [0, 1) that depend on the seed only: the n-th of a Philox stream, for the n-th token."""

    def __init__(self, seed: int) -> None:
        self._bits = np.random.Philox(key=seed & (2**64 - 1))

    def next(self) -> float:
        """The next number."""
        return (int(self._bits.random_raw()) >> 11) * _UNIT


def choose(logits: np.ndarray, how: Sampling, draw: float, seen: Collection[int] = ()) -> int:
    """Id of the next token for `logits` [vocab] after the tokens `seen`; `draw` in [0, 1) decides among those kept."""
    scores = penalize(logits, seen, how.repetition_penalty)
    if how.temperature < _COLDEST:
        return int(np.argmax(scores))
    ids, probabilities = distribution(scores, how)
    cumulative = np.cumsum(probabilities, dtype=np.float64)
    place = np.searchsorted(cumulative, draw * cumulative[-1], side="right")
    return int(ids[min(int(place), len(ids) - 1)])


def is_decisive(logits: np.ndarray, how: Sampling, draw: float, seen: Collection[int] = ()) -> bool:
    """Whether `choose` gives the same token for all logits none of which differs from these by more than rounding."""
    scores = penalize(logits, seen, how.repetition_penalty)
    stretched = max(how.repetition_penalty, 1 / how.repetition_penalty)
    error = ROUNDING * max(1.0, float(np.abs(logits).max())) * stretched
    if how.temperature < _COLDEST:
        return len(scores) == 1 or bool(np.subtract(*np.partition(scores, -2)[:-3:-1]) > 2 * error)
    bounds = _Bounds(scores, error, how)
    if how.topp < 1:
        bounds.cut_nucleus(how.topp)
    if how.min_p > 0:
        bounds.cut_min_p(how.min_p)
    return bounds.settle(choose(logits, how, draw, seen), draw)


class _Bounds:
    """What `distribution` may keep when each score is off by up to `error`: tokens that are possible, some of them sure.

    Weights are not normalised: that of a token is between `low` and `high`. Each cut of `distribution` has its method here,
    which narrows both sets; they begin as what top-k leaves.
    """

    def __init__(self, scores: np.ndarray, error: float, how: Sampling) -> None:
        self.ids, least = np.arange(len(scores)), -np.inf
        if 0 < how.topk < len(scores):
            dropped, kept = np.partition(scores, (-how.topk - 1, -how.topk))[-how.topk - 1 :][:2].astype(np.float64)
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


def _summed(values: np.ndarray) -> np.ndarray:  # [n] -> [n + 1], of the first 0, 1, ... n
    return np.concatenate([[0.0], np.cumsum(values)])


def penalize(logits: np.ndarray, seen: Collection[int], penalty: float) -> np.ndarray:
    """Divide the positive and multiply the negative logits of `seen` tokens (Keskar et al. 2019, CTRL)."""
    if penalty == 1 or not len(seen):
        return logits
    scores = logits.copy()
    ids = np.unique(np.fromiter(seen, np.int64))
    values = scores[ids]
    scores[ids] = np.where(values < 0, values * np.float32(penalty), values / np.float32(penalty))
    return scores


def distribution(scores: np.ndarray, how: Sampling) -> tuple[np.ndarray, np.ndarray]:
    """Kept ids, ascending, and their probabilities; temperature must not be 0."""
    if how.temperature < _COLDEST:
        scores = np.where(scores == scores.max(), np.float32(0), np.float32(-np.inf))
    else:
        scores = scores / np.float32(how.temperature)
    ids = np.arange(len(scores))
    if 0 < how.topk < len(scores):
        least = np.partition(scores, -how.topk)[-how.topk]
        ids = np.flatnonzero(scores >= least)
        scores = scores[ids]
    if how.topp < 1:
        kept = _nucleus(scores, how.topp)
        ids, scores = ids[kept], scores[kept]
    probabilities = softmax(scores)
    if how.min_p > 0:
        kept = np.flatnonzero(probabilities >= np.float32(how.min_p) * probabilities.max())
        ids, probabilities = ids[kept], softmax(scores[kept])
    return ids, probabilities


def _nucleus(scores: np.ndarray, topp: float) -> np.ndarray:
    """Places of the fewest most probable scores whose probabilities reach `topp`, ascending; at least one."""
    ascending = np.argsort(scores, kind="stable")
    cumulative = np.cumsum(softmax(scores[ascending]), dtype=np.float64).astype(np.float32)
    kept = cumulative > np.float32(1 - topp)
    kept[-1] = True
    return np.sort(ascending[kept])


def softmax(scores: np.ndarray) -> np.ndarray:
    """Probabilities of `scores`, float32. A score of +inf takes all."""
    top = scores.max()
    if not np.isfinite(top):
        hits = (scores == top).astype(np.float32)
        return hits / hits.sum()
    exponentials = np.exp(scores - top)
    return exponentials / exponentials.sum()


def log_softmax(logits: np.ndarray, token: int) -> float:
    """Log-probability of `token` under `logits`, before any processor."""
    top = float(logits.max())
    return float(logits[token]) - top - math.log(float(np.exp(logits - np.float32(top)).sum(dtype=np.float64)))
