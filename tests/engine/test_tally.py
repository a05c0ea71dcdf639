"""What is counted of choices and answers."""

import numpy as np
import pytest
from pg_gpt2 import host
from pg_gpt2.errors import OutOfMemory
from pg_gpt2.generation.choosing import Scores
from pg_gpt2.generation.tally import FIRST_ASKED, Tally

TEXTS = ["yes", "no", "maybe not"]


def scores(*logprobs: float) -> Scores:
    """Of TEXTS, where log-probabilities are what is compared."""
    values = np.array(logprobs)
    return Scores(values, np.ones(3, int), values, values / [len(text) for text in TEXTS], 0)


def test_accuracies_are_shares_of_all_that_was_expected() -> None:
    tally = Tally()
    assert (tally.accuracy, tally.accuracy_by_character, list(tally.confusion())) == (None, None, [])
    tally.add("yes", TEXTS, scores(-1, -2, -2))  # right, but a character of maybe not is likelier: -2 / 9
    tally.add("maybe not", TEXTS, scores(-3, -3, -4))  # the other way round
    tally.add("maybe not", TEXTS, scores(-3, -3, -5))
    tally.add("no", TEXTS, scores(-9, -1, -99))  # both: -1 / 2
    tally.add("else", TEXTS, scores(-1, -2, -9))
    tally.add("no", TEXTS, None)
    assert (tally.accuracy, tally.accuracy_by_character, tally.n) == (2 / 6, 3 / 6, 6)
    assert list(tally.confusion()) == [
        ("else", "yes", 1),
        ("maybe not", "yes", 2),
        ("no", "no", 1),
        ("no", None, 1),
        ("yes", "yes", 1),
    ]


def test_memory_is_asked_for_by_pairs_and_not_by_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def refuse(wanted: int, purpose: str) -> None:
        asked.append(wanted)
        if wanted > 8 * FIRST_ASKED:
            raise OutOfMemory(purpose)

    monkeypatch.setattr(host, "require_memory", refuse)
    tally = Tally()
    for _ in range(20_000):
        tally.add("yes", TEXTS, scores(-1, -2, -8))
    assert not asked
    for n in range(8_000):
        tally.add(f"answer {n}", TEXTS, None)
    assert 1 < len(asked) < 6, "by doubling"
    with pytest.raises(OutOfMemory, match="pairs of expected and chosen"):
        tally.add("answer" * FIRST_ASKED, TEXTS, None)
    assert asked == sorted(asked)
