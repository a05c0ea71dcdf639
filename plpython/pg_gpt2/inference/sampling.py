"""From logits to a token: the processors of Hugging Face's `generate`, in its order, and a seeded draw.

Repetition penalty, temperature, top-k, top-p, min-p; temperature 0 is greedy. Which tokens are kept and their probabilities equal
transformers' LogitsProcessors (`RepetitionPenalty`, `Temperature`, `TopK`, `TopP`, `MinP`); the draws themselves do not.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..errors import InvalidParameter, NullNotAllowed

_UNIT = 2.0**-53
ROUNDING = 4e-5  # two ways of computing a logit differ by less than this part of the largest one
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


def choose(logits: np.ndarray, how: Sampling, draw: float, seen: Sequence[int] = ()) -> int:
    """Id of the next token for `logits` [vocab] after the tokens `seen`; `draw` in [0, 1) decides among those kept."""
    scores = penalize(logits, seen, how.repetition_penalty)
    if how.temperature < _COLDEST:
        return int(np.argmax(scores))
    ids, probabilities = distribution(scores, how)
    cumulative = np.cumsum(probabilities, dtype=np.float64)
    place = np.searchsorted(cumulative, draw * cumulative[-1], side="right")
    return int(ids[min(int(place), len(ids) - 1)])


def is_decisive(logits: np.ndarray, how: Sampling, draw: float, seen: Sequence[int] = ()) -> bool:
    """Whether `choose` gives the same token for all logits that differ from these by no more than rounding."""
    scores = penalize(logits, seen, how.repetition_penalty)
    margin = ROUNDING * max(1.0, float(np.abs(logits).max())) * max(1.0, how.repetition_penalty)
    if how.temperature < _COLDEST:
        return len(scores) == 1 or bool(np.subtract(*np.partition(scores, -2)[:-3:-1]) > margin)
    if 0 < how.topk < len(scores):
        ordered = np.partition(scores, (-how.topk - 1, -how.topk))
        if ordered[-how.topk] - ordered[-how.topk - 1] <= margin:
            return False
    slack = margin / how.temperature  # relative error of a probability
    loose, strict = (_bounds(scores, how, sign * slack) for sign in (1, -1))
    if not np.array_equal(loose, strict):
        return False
    _, probabilities = distribution(scores, how)
    cumulative = np.cumsum(probabilities, dtype=np.float64)
    return bool(np.abs(cumulative / cumulative[-1] - draw).min() > slack)


def _bounds(scores: np.ndarray, how: Sampling, slack: float) -> np.ndarray:
    """Ids kept when top-p and min-p are moved by `slack`."""
    moved = replace(how, topp=min(1.0, max(0.0, how.topp + slack)) if how.topp < 1 else 1.0)
    moved = replace(moved, min_p=min(1.0, max(0.0, how.min_p * (1 - slack))))
    return distribution(scores, moved)[0]


def penalize(logits: np.ndarray, seen: Sequence[int], penalty: float) -> np.ndarray:
    """Divide the positive and multiply the negative logits of `seen` tokens (Keskar et al. 2019, CTRL)."""
    if penalty == 1 or not len(seen):
        return logits
    scores = logits.copy()
    ids = np.unique(np.asarray(seen))
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
