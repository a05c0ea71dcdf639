"""What the sampling options do, one function each, in the order in which transformers' `generate` applies them.

The functions of the first part change scores, given what a stream has read and said; beam search uses them, too. Those of the
second part say which of some scores are kept for a draw; temperature stands between the two. A processor bears the name of
its option. OpenAI's options, which transformers does not have, come where vLLM has them: biases first, penalties after
repetition_penalty.
"""

from array import array
from collections.abc import Callable, Iterable, Sequence
from copy import copy
from typing import Any, NamedTuple

import numpy as np

from .constraints.constraint import Walk
from .softmax import log_softmax, softmax

Stretch = Callable[[Any], float]


class History:
    """What a stream has read, its prompt, and what it has said since; `eos` is the token that ends it, if any, and so do others,
    `also_ends`; `walk` says what it may say, where there is a constraint."""

    def __init__(
        self,
        prompt: Iterable[int] = (),
        eos: int | None = None,
        said: Iterable[int] = (),
        walk: Walk | None = None,
        also_ends: Sequence[int] = (),
    ) -> None:
        self.ids = array("q", prompt)
        self.endings = [] if eos is None else [eos, *also_ends]
        self.walk = walk
        self.occurred = set(self.ids)
        self.new = 0
        self.counts: dict[int, int] = {}  # of what was said
        for token in said:
            self.append(token)

    def copy(self) -> "History":
        """Another stream that has read and said the same."""
        twin = copy(self)
        twin.ids, twin.occurred, twin.counts = self.ids[:], set(self.occurred), dict(self.counts)
        twin.walk = copy(self.walk)
        return twin

    def append(self, token: int) -> None:
        """It says `token`."""
        self.ids.append(token)
        self.occurred.add(token)
        self.new += 1
        self.counts[token] = self.counts.get(token, 0) + 1
        if self.walk:
            self.walk.take(token)

    def ends(self, token: int) -> bool:
        """Whether nothing follows `token`."""
        return token in self.endings

    @property
    def over(self) -> bool:
        """Whether nothing can follow."""
        return self.walk is not None and self.walk.over

    @property
    def only(self) -> int | None:
        """The token that comes next whatever the scores are, if there is one."""
        return self.walk.only if self.walk else None


class Adjustment(NamedTuple):
    """A processor of scores: what it does, what its value becomes once for all, and by how much it may stretch the distance of
    two scores, None where that is not bounded."""

    apply: Callable[[np.ndarray, Any, History], np.ndarray]
    prepare: Callable[[Any], Any]
    stretch: Stretch | None


ADJUSTMENTS: dict[str, Adjustment] = {}  # by option, in order
CUTS: dict[str, Callable[[np.ndarray, Any], np.ndarray]] = {}

Adjust = Callable[[np.ndarray, Any, History], np.ndarray]  # scores [V] -> scores [V], never in place
Cut = Callable[[np.ndarray, Any], np.ndarray]  # scores [n], n > 0 -> the places that are kept, ascending, at least one


def _moves(value: Any) -> float:
    return 1.0


def adjusts(
    *, prepare: Callable[[Any], Any] = lambda value: value, stretch: Stretch | None = None
) -> Callable[[Adjust], Adjust]:
    """Enter a function for the option of its name. Without `stretch`, batches on machines where company changes bits decode each
    prompt once more, alone."""

    def enter(function: Adjust) -> Adjust:
        ADJUSTMENTS[function.__name__] = Adjustment(function, prepare, stretch)
        return function

    return enter


def cuts(function: Cut) -> Cut:
    """Enter a function for the option of its name."""
    CUTS[function.__name__] = function
    return function


# --- scores -----------------------------------------------------------------------------------------------------------


class Sequences:
    """Biases of the last tokens of sequences, where the tokens before the last stand at the end."""

    def __init__(self, biases: Iterable[tuple[Sequence[int], float]]) -> None:
        single = {ids[0]: bias for ids, bias in biases if len(ids) == 1}
        self._ids, self._biases = _arrays(single.items())
        self._longer: dict[int, list[tuple[array, int, np.float32]]] = {}  # by the last token but one
        for ids, bias in biases:
            if len(ids) > 1:
                self._longer.setdefault(ids[-2], []).append((array("q", ids[:-1]), ids[-1], np.float32(bias)))

    def add_to(self, scores: np.ndarray, seen: array, spared: Sequence[int] = ()) -> np.ndarray:
        """`scores` with biases; a sequence of one of `spared` alone has none."""
        bias = np.zeros_like(scores)
        bias[self._ids] = self._biases
        bias[np.array(spared, np.int64)] = 0
        for before, last, value in self._longer.get(seen[-1], ()) if seen else ():
            if seen[-len(before) :] == before:
                bias[last] += value
        return scores + bias


def _arrays(pairs: Iterable[tuple[int, float]]) -> tuple[np.ndarray, np.ndarray]:
    ids, numbers = zip(*pairs) if (pairs := list(pairs)) else ((), ())
    return np.array(ids, np.int64), np.array(numbers, np.float32)


@adjusts(prepare=Sequences, stretch=_moves)
def sequence_bias(scores: np.ndarray, biases: Sequences, history: History) -> np.ndarray:
    """Add the biases of sequences that the next token may complete."""
    return biases.add_to(scores, history.ids)


@adjusts(prepare=_arrays, stretch=_moves)
def logit_bias(scores: np.ndarray, biases: tuple[np.ndarray, np.ndarray], history: History) -> np.ndarray:
    """Add to the scores of tokens, as OpenAI does."""
    ids, numbers = biases
    scores = scores.copy()
    scores[ids] += numbers
    return scores


@adjusts(stretch=lambda penalty: max(penalty, 1 / penalty))
def repetition_penalty(scores: np.ndarray, penalty: float, history: History) -> np.ndarray:
    """Divide the positive and multiply the negative scores of tokens that occurred (Keskar et al. 2019, CTRL)."""
    if not history.occurred:
        return scores
    scores = scores.copy()
    ids = np.fromiter(history.occurred, np.int64)
    values = scores[ids]
    scores[ids] = np.where(values < 0, values * np.float32(penalty), values / np.float32(penalty))
    return scores


@adjusts(stretch=_moves)
def frequency_penalty(scores: np.ndarray, penalty: float, history: History) -> np.ndarray:
    """Subtract the penalty for each time that a token was generated, as OpenAI does."""
    return _less(scores, history, np.float32(penalty) * np.fromiter(history.counts.values(), np.float32))


@adjusts(stretch=_moves)
def presence_penalty(scores: np.ndarray, penalty: float, history: History) -> np.ndarray:
    """Subtract the penalty once from what was generated, as OpenAI does."""
    return _less(scores, history, np.float32(penalty))


def _less(scores: np.ndarray, history: History, penalties: np.ndarray | np.float32) -> np.ndarray:
    """Scores of the generated tokens less `penalties`, one for each or the same for all."""
    scores = scores.copy()
    scores[np.fromiter(history.counts, np.int64)] -= penalties
    return scores


@adjusts(stretch=_moves)
def no_repeat_ngram_size(scores: np.ndarray, size: int, history: History) -> np.ndarray:
    """Exclude what followed the last `size` - 1 tokens when they stood there before."""
    length = len(history.ids)
    if length < size:
        return scores
    ids = np.frombuffer(history.ids, np.int64)
    ends = np.arange(size - 1, length)  # of n-grams
    for back in range(1, size):
        ends = ends[ids[ends - back] == ids[length - back]]
        if not ends.size:
            break
    return _without(scores, ids[ends])


def _without(scores: np.ndarray, ids: np.ndarray) -> np.ndarray:
    scores = scores.copy()
    scores[ids] = -np.inf
    return scores


@adjusts(prepare=lambda words: Sequences([(ids, -np.inf) for ids in words]), stretch=_moves)
def bad_words(scores: np.ndarray, words: Sequences, history: History) -> np.ndarray:
    """Exclude the last token of a sequence where the others stand before it; the end-of-text token alone is none."""
    return words.add_to(scores, history.ids, spared=history.endings)


@adjusts(stretch=_moves)
def min_new_tokens(scores: np.ndarray, least: int, history: History) -> np.ndarray:
    """Exclude the end-of-text token before `least` tokens are there."""
    if history.new >= least or not history.endings:
        return scores
    return _without(scores, np.array(history.endings))


def constrain(scores: np.ndarray, history: History) -> np.ndarray:
    """Exclude what the constraint does not allow, as transformers' prefix_allowed_tokens_fn; that comes before suppress_tokens,
    but as both only exclude, their order does not matter."""
    if history.walk is None:
        return scores
    allowed = history.walk.allowed
    constrained = np.full_like(scores, -np.inf)
    constrained[allowed] = scores[allowed]
    return constrained


@adjusts(prepare=lambda ids: np.array(ids, np.int64), stretch=_moves)
def suppress_tokens(scores: np.ndarray, ids: np.ndarray, history: History) -> np.ndarray:
    """Exclude tokens."""
    return _without(scores, ids)


# --- which scores are kept for a draw, which come divided by the temperature ------------------------------------------


@cuts
def topk(scores: np.ndarray, most: int) -> np.ndarray:
    """The `most` best, and what is as good as the last of them."""
    if most >= len(scores):
        return np.arange(len(scores))
    return np.flatnonzero(scores >= np.partition(scores, -most)[-most])


@cuts
def topp(scores: np.ndarray, mass: float) -> np.ndarray:
    """The fewest most probable ones that together have more than `mass`, the best one in any case."""
    ascending = np.argsort(scores, kind="stable")
    cumulative = np.cumsum(softmax(scores[ascending]), dtype=np.float64).astype(np.float32)
    kept = cumulative > np.float32(1 - mass)
    kept[-1] = True
    return np.sort(ascending[kept])


@cuts
def min_p(scores: np.ndarray, part: float) -> np.ndarray:
    """What has at least this part of the best one's probability."""
    probabilities = softmax(scores)
    return np.flatnonzero(probabilities >= np.float32(part) * probabilities.max())


@cuts
def typical_p(scores: np.ndarray, mass: float) -> np.ndarray:
    """Those whose surprise is nearest to the expected one, the first that reach `mass` together (Meister et al. 2022)."""
    surprise = -log_softmax(scores)
    strange = np.abs(surprise - _entropy(scores))
    order = np.argsort(strange, kind="stable")
    cumulative = np.cumsum(softmax(scores)[order], dtype=np.float64).astype(np.float32)
    last = min(int(np.count_nonzero(cumulative < np.float32(mass))), len(scores) - 1)
    kept = ~(strange > strange[order[last]])
    kept[order[0]] = True
    return np.flatnonzero(kept)


@cuts
def epsilon_cutoff(scores: np.ndarray, least: float) -> np.ndarray:
    """What has at least this probability, the best one in any case (Hewitt et al. 2022)."""
    return np.flatnonzero((softmax(scores) >= np.float32(least)) | (scores == scores.max()))


@cuts
def eta_cutoff(scores: np.ndarray, eta: float) -> np.ndarray:
    """The same, with less asked for where the distribution is flat."""
    least = np.float32(eta)
    return epsilon_cutoff(scores, min(least, np.sqrt(least) * np.exp(-_entropy(scores))))


def _entropy(scores: np.ndarray) -> np.float32:
    """-sum p log p; what is excluded adds nothing."""
    logs = log_softmax(scores[scores > -np.inf])
    return -(np.exp(logs) * logs).sum()
