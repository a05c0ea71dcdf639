"""Drafts of what comes next: what followed the last few tokens when they occurred before (prompt lookup, Saxena 2023).

A draft is verified in one pass of the model, so it may be wrong at the cost of a few rows. Up to four rows cost hardly more
than one; longer drafts have to be earned by shorter ones that came true, and where drafts keep failing they become rare.
"""

from collections.abc import Sequence

NGRAM = 3  # tokens that have to agree
SHORT, LONG = 3, 15  # tokens of a draft: with the token before them 4 to 16 rows
PATIENCE = 32  # tokens without a draft, at most


class Drafts:
    """Proposals for the continuation of a growing sequence."""

    def __init__(self) -> None:
        self._ends: dict[tuple[int, ...], int] = {}  # n-gram -> the place after its last occurrence but the present one
        self._known = 0  # tokens whose n-grams are entered
        self._size = SHORT
        self._pause = self._wait = 0

    def propose(self, seen: Sequence[int], most: int) -> list[int]:
        """Up to `most` tokens that may follow `seen`; none without a precedent."""
        for end in range(max(self._known, NGRAM), len(seen)):
            self._ends[tuple(seen[end - NGRAM : end])] = end
        self._known = len(seen)
        start = self._ends.get(tuple(seen[-NGRAM:])) if len(seen) >= NGRAM else None
        if self._wait:
            self._wait -= 1
            return []
        if start is None:
            return []
        period = len(seen) - start  # a draft that reaches the end of what was seen repeats itself
        return [seen[start + i % period] for i in range(min(self._size, most))]

    def report(self, drafted: int, accepted: int) -> None:
        """How many of the `drafted` tokens came true."""
        if not drafted:
            return
        if accepted == drafted:
            self._size = min(LONG, 2 * self._size + 1)
        else:
            self._size = SHORT
        if accepted:
            self._pause = 0
        else:
            self._pause = min(PATIENCE, 2 * self._pause + 1)
        self._wait = self._pause
