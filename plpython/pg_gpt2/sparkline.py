"""Numbers as a line of bars, for a terminal: a curve at a glance. It has no scale; print the ends beside it."""

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TypeGuard, TypeVar

from . import host
from .fast import slices

T = TypeVar("T")
BARS = "".join(map(chr, range(0x2581, 0x2589)))  # from an eighth of a line to a full one
GAP = " "
AT_A_TIME = 100_000  # values, between looks for an interrupt


def sparkline(values: Sequence[float | None]) -> str:
    """One character per value, scaled from the lowest to the highest value; a gap for one that is null, NaN or infinite."""
    known = [value for value in _interruptibly(values) if _is_finite(value)]
    # halved, so that the span of any two finite numbers is finite
    low = min(known, default=0.0) / 2
    span = max(known, default=0.0) / 2 - low
    return "".join(
        BARS[min(int((value / 2 - low) / span * len(BARS)), len(BARS) - 1) if span else 0] if _is_finite(value) else GAP
        for value in _interruptibly(values)
    )


def means(values: Sequence[float | None], width: int) -> list[float | None]:
    """At most `width` means of consecutive values, in groups of equal length (give or take one); None for a group in which no
    value is finite."""
    if len(values) <= width:
        return list(values)
    ends = [-(-len(values) * place // width) for place in range(width + 1)]  # as llm_run_sparkline cuts a log
    return [_mean([value for value in _interruptibly(values[a:b]) if _is_finite(value)]) for a, b in pairwise(ends)]


def _mean(values: Sequence[float]) -> float | None:
    return math.fsum(value / len(values) for value in _interruptibly(values)) if values else None


def _interruptibly(values: Sequence[T]) -> Iterator[T]:
    for part in slices.pieces(len(values), AT_A_TIME):
        host.check_interrupts()
        yield from values[part]


def _is_finite(value: float | None) -> TypeGuard[float]:
    return value is not None and math.isfinite(value)
