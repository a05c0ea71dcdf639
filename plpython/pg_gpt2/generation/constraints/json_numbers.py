"""Numbers of JSON within bounds, exactly, as a grammar of their digits.

They are written plainly: no exponent, no leading zeros, no minus before a zero. PostgreSQL's types of numbers read that, those of
integers, too. Where the bounds do not ask for more, a number has at most 15 digits before the point, which every reader of JSON
keeps, and so many behind it that the whole has 15, but not more than 9.
"""

from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction

from ...errors import LimitExceeded
from ...limits import MOST_BOUND_DIGITS
from .grammar import EMPTY, NOTHING, Node, chars, either, repeat, seq, text

WHOLE = 15  # digits before the point, where no bound says more
POINT = 9  # digits behind it, likewise
DIGIT = chars([(ord("0"), ord("9"))])


@dataclass(frozen=True)
class Bound:
    """The end of a range; `open`: the number itself is not in it."""

    value: Decimal
    open: bool = False


def numbers(low: Bound | None, high: Bound | None, whole: bool) -> Node:
    """Numbers from `low` to `high`, None = no bound; `whole`: integers only. NOTHING where there are none."""
    for bound in (low, high):
        if bound is not None:
            _require_short(bound.value)
    places = 0 if whole else _places([bound.value for bound in (low, high) if bound is not None])
    if not whole and _are_neighbours(low, high, places):
        places += 1
    if low is None:
        low = Bound(_beyond(high.value.copy_negate() if high else Decimal(0)).copy_negate(), True)
    if high is None:
        high = Bound(_beyond(low.value), True)
    parts = []
    if low.value < 0:
        smallest = _negated(high) if high.value < 0 else Bound(Decimal(0), True)
        parts.append(seq(text("-"), _magnitudes(smallest, _negated(low), places)))
    if high.value >= 0:
        parts.append(_magnitudes(low if low.value >= 0 else Bound(Decimal(0)), high, places))
    return either(*parts)


def _negated(bound: Bound) -> Bound:
    return Bound(bound.value.copy_negate(), bound.open)


def _are_neighbours(low: Bound | None, high: Bound | None, places: int) -> bool:
    """Whether both bounds are open, and no number of so many digits behind the point is between them."""
    if low is None or high is None or not (low.open and high.open):
        return False
    return Fraction(high.value) - Fraction(low.value) == Fraction(1, 10**places)


def _require_short(value: Decimal) -> None:
    _, digits, exponent = value.as_tuple()
    assert isinstance(exponent, int)  # JSON has neither infinities nor NaN
    if max(len(digits), len(digits) + exponent, -exponent) > MOST_BOUND_DIGITS:
        raise LimitExceeded(
            f"a bound of a number has more than {MOST_BOUND_DIGITS} digits",
            hint="Use a number with fewer digits, or none.",
        )


def _digits(value: Decimal) -> tuple[str, str]:
    """Digits before and behind the point of a number without its sign."""
    before, _, behind = format(value.copy_abs(), "f").partition(".")
    return before.lstrip("0") or "0", behind.rstrip("0")


def _places(bounds: list[Decimal]) -> int:
    """How many digits a number between `bounds` may have behind the point: as many as they have, or if
    more, as many as a reader of doubles keeps, for which what is below an open bound then is below it, too."""
    found = [_digits(bound) for bound in bounds]
    before = max((len(before) for before, _ in found), default=0)
    return max([max(0, min(POINT, WHOLE - before)), *(len(behind) for _, behind in found)])


def _beyond(bound: Decimal) -> Decimal:
    """What stands for the bound that is not given: the least power of ten that no number reaches."""
    digits = len(_digits(bound)[0]) if bound > 0 else 0
    return Decimal((0, (1,), max(WHOLE, digits + 1)))


def _magnitudes(low: Bound, high: Bound, places: int) -> Node:
    """Numbers from `low` to `high`, none of them negative, with at most so many digits behind the point."""
    if low.value > high.value:
        return NOTHING
    (low_before, low_behind), (high_before, high_behind) = _digits(low.value), _digits(high.value)
    within = _Range(places, low.open, high.open)
    shortest, longest = len(low_before), len(high_before)
    found = []
    for length in sorted({shortest, longest}):
        least = low_before + low_behind if length == shortest else None
        most = high_before + high_behind if length == longest else None
        found.append(within.digits(length, least, most, leading=length > 1))
    if shortest + 1 < longest:
        first = chars([(ord("1"), ord("9"))])
        between = repeat(DIGIT, shortest, longest - 2)
        found.append(seq(first, between, within.fraction(None, None)))
    return either(*found)


@dataclass(frozen=True)
class _Range:
    """What may follow the first digits of a number. `low` and `high` are what is left of the bounds' digits where the digits so
    far are theirs, and None where they have settled that the number is above, or below."""

    places: int
    low_open: bool
    high_open: bool

    def digits(self, count: int, low: str | None, high: str | None, leading: bool = False) -> Node:
        """`count` digits before the point, and what may be behind it; `leading`: the first of them is not 0."""
        if not self.low_open and low is not None and not low.strip("0"):
            low = None
        if not count:
            return self.fraction(low, high)
        if low is None and high is None and not leading:
            return seq(repeat(DIGIT, count, count), self.fraction(None, None))
        return self._next(low, high, int(leading), lambda low, high: self.digits(count - 1, low, high))

    def fraction(self, low: str | None, high: str | None) -> Node:
        """A point and digits, or nothing."""
        nothing, some = self._tail(self.places, low, high)
        return either(seq(text("."), some), EMPTY if nothing else NOTHING)

    def _tail(self, count: int, low: str | None, high: str | None) -> tuple[bool, Node]:
        """Whether no further digit will do, and what one to `count` further digits may be."""
        if not self.low_open and low is not None and not low.strip("0"):
            low = None
        above = low is None  # what ends at an open `low`, or before digits of it that are not zeros, is not above it
        below = high is None or bool(high.strip("0")) or not self.high_open
        if not count:
            return above and below, NOTHING
        if low is None and high is None:
            return True, repeat(DIGIT, 1, count)

        def after(low: str | None, high: str | None) -> Node:
            nothing, some = self._tail(count - 1, low, high)
            return either(some, EMPTY if nothing else NOTHING)

        return above and below, self._next(low, high, 0, after)

    @staticmethod
    def _next(low: str | None, high: str | None, least: int, after: Callable[[str | None, str | None], Node]) -> Node:
        """A digit, `least` or more, and what is `after` it."""
        low_digit = None if low is None else int(low[:1] or 0)
        high_digit = None if high is None else int(high[:1] or 0)
        found, free = [], []
        for digit in range(max(least, low_digit or 0), (9 if high_digit is None else high_digit) + 1):
            rest_low = low[1:] if low is not None and digit == low_digit else None
            rest_high = high[1:] if high is not None and digit == high_digit else None
            if rest_low is None and rest_high is None:
                free.append((ord("0") + digit, ord("0") + digit))
            else:
                found.append(seq(text(str(digit)), after(rest_low, rest_high)))
        return either(*found, *([seq(chars(free), after(None, None))] if free else []))
