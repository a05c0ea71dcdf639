"""How often the choices of a model are the answers that were expected, and which it takes for which.

Accuracies are those of lm-evaluation-harness for a task of multiple choice: acc, or what stands in its place where something else
is compared, and acc_norm. What has no result, and an answer that is none of the choices, is not right.
"""

from collections import Counter
from collections.abc import Iterator, Sequence

from .. import host
from .choosing import Scores

BYTES_A_PAIR, BYTES_A_CHARACTER = 400, 4  # of memory, at most, for an answer and what was chosen in its place
FIRST_ASKED = 1 << 20  # bytes: for less, memory is not asked for


class Tally:
    """Counts of answers that were expected and texts that were chosen."""

    def __init__(self) -> None:
        self.n = 0
        self._right = self._right_by_character = 0
        self._pairs: Counter[tuple[str, str | None]] = Counter()
        self._held, self._asked = 0, FIRST_ASKED

    def add(self, expected: str, texts: Sequence[str | None], scores: Scores | None) -> None:
        """An answer, what there was to choose from, and its scores; None where there are none."""
        self.n += 1
        chosen = None
        if scores is not None:
            chosen = texts[scores.best()]
            self._right += chosen == expected
            self._right_by_character += texts[int(scores.per_character.argmax())] == expected
        pair = expected, chosen
        if pair not in self._pairs:
            self._hold(BYTES_A_PAIR + BYTES_A_CHARACTER * sum(len(text or "") for text in pair))
        self._pairs[pair] += 1

    @property
    def accuracy(self) -> float | None:
        """The share of answers that were chosen; None where there are none."""
        return self._right / self.n if self.n else None

    @property
    def accuracy_by_character(self) -> float | None:
        """The same where log-probabilities of a character are compared."""
        return self._right_by_character / self.n if self.n else None

    def confusion(self) -> Iterator[tuple[str, str | None, int]]:
        """(expected, chosen, n), in order; chosen is None, and last, where there was no result."""
        for (expected, chosen), n in sorted(self._pairs.items(), key=lambda item: (item[0][0], _last(item[0][1]))):
            yield expected, chosen, n

    def _hold(self, size: int) -> None:
        self._held += size
        if self._held > self._asked:
            self._asked = 2 * self._held
            host.require_memory(self._asked, f"{len(self._pairs):,} pairs of expected and chosen")


def _last(text: str | None) -> tuple[bool, str]:
    return text is None, text or ""
