"""Drafts of what comes next: what followed the last few tokens when they occurred before (prompt lookup, Saxena 2023).

A draft is verified in one pass of the model, so it may be wrong at the cost of a few rows. Up to four rows cost hardly more
than one; longer drafts have to be earned by shorter ones that came true, and where drafts keep failing they become rare.
"""

from collections.abc import Sequence

NGRAMS = (3, 2, 1)  # tokens that have to agree, the best evidence first
SHORT, LONG = 3, 15  # tokens of a draft: with the token before them 4 to 16 rows
PATIENCE = 32  # tokens without a draft, at most
MEMORY = 0.9  # what counts of a token's outcome after the next one's
MOST_KNOWN = 1 << 16  # n-grams of one length, some 12 MB: after so many, what occurred before is forgotten


class Odds:
    """How often the tokens of drafts came true lately, each if those before it did."""

    def __init__(self) -> None:
        self._true, self._tried = 1.0, 1.5  # before anything is known

    def report(self, drafted: int, accepted: int) -> None:
        """How many of the `drafted` tokens came true."""
        for true in [1.0] * accepted + [0.0] * (accepted < drafted):
            self._true, self._tried = MEMORY * self._true + true, MEMORY * self._tried + 1

    def expected(self, drafted: int) -> float:
        """Tokens that a pass gives which verifies so many: those that come true, and the one after them."""
        chance = self._true / self._tried
        return 1.0 + drafted if chance == 1 else (1 - chance ** (drafted + 1)) / (1 - chance)


class _Ngrams:
    """Where n-grams of one length last occurred, and how drafts that follow from them fare."""

    def __init__(self, n: int) -> None:
        self.n = n
        self.odds = Odds()
        self.pause = self.wait = 0
        self._ends: dict[tuple[int, ...], int] = {}  # n-gram -> the place after its last occurrence but the present one
        self._known = 0  # tokens whose n-grams are entered

    def find(self, seen: Sequence[int]) -> int | None:
        """The place after an earlier occurrence of the last n tokens."""
        if len(self._ends) > MOST_KNOWN:
            self._ends.clear()
        for end in range(max(self._known, self.n), len(seen)):
            self._ends[tuple(seen[end - self.n : end])] = end
        self._known = len(seen)
        return self._ends.get(tuple(seen[-self.n :])) if len(seen) >= self.n else None


class Drafts:
    """Proposals for the continuation of a growing sequence."""

    def __init__(self) -> None:
        self._ngrams = [_Ngrams(n) for n in NGRAMS]
        self._used = self._ngrams[0]  # for the last draft
        self._size = SHORT

    @property
    def odds(self) -> Odds:
        """Of drafts as the last one."""
        return self._used.odds

    def propose(self, seen: Sequence[int], most: int) -> list[int]:
        """Up to `most` tokens that may follow `seen`; none without a precedent."""
        for ngrams, start in [(ngrams, ngrams.find(seen)) for ngrams in self._ngrams]:
            if start is None:
                continue
            if ngrams.wait:
                ngrams.wait -= 1
                continue
            self._used = ngrams
            size = self._size if ngrams is self._ngrams[0] else SHORT
            period = len(seen) - start  # a draft that reaches the end of what was seen repeats itself
            return [seen[start + i % period] for i in range(min(size, most))]
        return []

    def report(self, drafted: int, accepted: int) -> None:
        """How many of the `drafted` tokens came true."""
        if not drafted:
            return
        used = self._used
        used.odds.report(drafted, accepted)
        if accepted == drafted:
            self._size = min(LONG, 2 * self._size + 1)
        elif used is self._ngrams[0]:
            self._size = SHORT
        used.pause = 0 if accepted else min(PATIENCE, 2 * used.pause + 1)
        used.wait = used.pause
