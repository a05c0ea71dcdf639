"""The arithmetic of an early end: what is a gain, what is the best, and when patience is exhausted."""

from math import inf, nan

import pytest
from pg_gpt2.training.early import Evaluations


def after(losses: list[float], patience: int | None = None, min_delta: float = 0.0) -> Evaluations:
    found = Evaluations(patience, min_delta)
    for step, loss in enumerate(losses, 1):
        assert not found.exhausted
        found.add(step, loss)
    return found


@pytest.mark.parametrize(
    ("losses", "best", "without_gain"),
    [
        ([], None, 0),
        ([2.0], 1, 0),
        ([2.0, 1.0, 3.0], 2, 1),
        ([2.0, 2.0, 2.0], 1, 2),  # of equals the first
        ([3.0, 1.0, 2.0, 0.5], 4, 0),
        ([nan, 2.0], 2, 0),
        ([nan, nan], None, 1),
        ([2.0, nan, inf, 2.0], 1, 3),
        ([inf, inf, 5.0], 3, 0),
    ],
)
def test_the_best_is_the_lowest_and_a_gain_is_below_it(losses, best, without_gain):
    found = after(losses)
    assert (found.best_step, found.without_gain) == (best, without_gain)
    assert found.best_loss == (losses[best - 1] if best else inf)


def test_add_says_whether_it_is_the_best_so_far():
    found = Evaluations()
    assert [found.add(step, loss) for step, loss in enumerate([nan, 3, 3, 2, 2.5, -1])] == [0, 1, 0, 1, 0, 1]


def test_what_is_lower_by_min_delta_or_less_becomes_the_best_and_is_no_gain():
    found = after([2.0, 1.75, 1.5, 1.25], min_delta=0.25)
    assert (found.best_step, found.without_gain) == (4, 3)
    found.add(5, 0.75)
    assert (found.best_step, found.without_gain) == (5, 0)


def test_patience_is_exhausted_by_evaluations_in_a_row():
    assert after([2.0, 3.0, 3.0, 1.0, 3.0, 3.0, 3.0], patience=3).exhausted
    assert not after([2.0, 3.0, 3.0, 1.0, 3.0, 3.0], patience=3).exhausted
    assert not after([2.0] * 100).exhausted
