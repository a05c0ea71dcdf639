"""Bars of numbers."""

import math

from hypothesis import given
from hypothesis import strategies as st
from pg_gpt2.sparkline import BARS, GAP, means, sparkline

NUMBERS = st.lists(st.none() | st.floats())


@given(NUMBERS, st.integers(1, 50))
def test_a_bar_a_number_at_most_width_and_a_gap_where_there_is_none(values, width):
    few = means(values, width)
    assert len(few) == min(len(values), width)
    line = sparkline(few)
    assert [letter == GAP for letter in line] == [value is None or not math.isfinite(value) for value in few]


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=2))
def test_bars_are_ordered_as_the_numbers_are(values):
    heights = [BARS.index(letter) for letter in sparkline(values)]
    assert sorted(heights) == [height for _, height in sorted(zip(values, heights))]


def test_means_are_of_neighbours():
    assert means([1, 2, 3, 4, 5, math.nan, None, 8], 4) == [1.5, 3.5, 5, 8]
    assert means([math.inf, None, 1], 2) == [None, 1]
