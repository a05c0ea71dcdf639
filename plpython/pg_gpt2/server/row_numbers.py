"""Numbers in the JSON schema of a row: those that a type keeps as they are, within the bounds of CHECK constraints."""

from decimal import ROUND_CEILING, ROUND_FLOOR, Context, Decimal
from typing import Any

import numpy as np

from ..errors import InvalidParameter, LimitExceeded
from ..generation.constraints.json_schema import grammar
from ..limits import MOST_BOUND_DIGITS
from ..options import Written
from .check_expressions import Conditions

Schema = dict[str, Any]

INTEGERS = {"smallint": 2**15, "integer": 2**31, "bigint": 2**63}  # one more than the highest
FLOATS = {"real": 6, "double precision": 15}  # digits that they keep
NAMES = {*INTEGERS, *FLOATS, "numeric"}
_REAL_ENDS = Decimal("3.40282e38")
_FAR = Decimal("1e36")  # a number beyond a bound may have two digits more
_COARSE = Decimal("1e15")  # from which doubles are as far apart as numbers that are written
_exact = Context(prec=3000)


def number(kind: str, modifier: int, wanted: Conditions) -> tuple[Schema, list[str]]:
    """The schema of those numbers of a type that are wanted, and what it does not hold."""
    low, high, scale = _range(kind, modifier, wanted)
    if wanted.values is not None:
        good = [v for v in wanted.values if _is_stored(v, kind, scale) and _is_within(v, low, high, wanted)]
        if scale is not None and scale <= 0:  # types of integers read no point
            good = [v.to_integral_value() for v in good]
        return {"enum": [_written(v) for v in dict.fromkeys(good)]}, []
    lows = [(low, False)] if low is not None else []
    highs = [(high, False)] if high is not None else []
    of_type = {"type": "integer" if scale is not None and scale <= 0 else "number"}
    any_number = of_type | _between(lows, highs)
    if wanted.low is not None:
        lows.append(_inside(*wanted.low, kind, scale, 1))
    if wanted.high is not None:
        highs.append(_inside(*wanted.high, kind, scale, -1))
    schema = of_type | _between(lows, highs)
    try:
        grammar(schema)
    except InvalidParameter:  # no number is within
        if kind in FLOATS and _is_range(wanted):
            return any_number, ["bounds that few numbers are between"]
        return {"enum": []}, []
    except LimitExceeded:
        return any_number, ["bounds of many digits"]
    return schema, []


def _between(lows: list[tuple[Decimal, bool]], highs: list[tuple[Decimal, bool]]) -> Schema:
    """The narrowest of some bounds, which may be open."""
    found: Schema = {}
    if lows:
        bottom, is_open = max(lows)
        found["exclusiveMinimum" if is_open else "minimum"] = _written(bottom)
    if highs:
        top, is_open = min(highs, key=lambda end: (end[0], not end[1]))
        found["exclusiveMaximum" if is_open else "maximum"] = _written(top)
    return found


def _is_range(wanted: Conditions) -> bool:
    """Whether some number is within what is wanted, before a type rounds the bounds."""
    return wanted.low is None or wanted.high is None or wanted.low[0] < wanted.high[0]


def _range(kind: str, modifier: int, wanted: Conditions) -> tuple[Decimal | None, Decimal | None, int | None]:
    """Lowest and highest number of a type, and how many digits behind the point it keeps; None = all that are written."""
    if kind in INTEGERS:
        end = INTEGERS[kind]
        return Decimal(-end), Decimal(end - 1), 0
    if kind == "real" and any(end is not None and abs(end[0]) >= _FAR for end in (wanted.low, wanted.high)):
        return _REAL_ENDS.copy_negate(), _REAL_ENDS, None
    if kind != "numeric" or modifier < 4:
        return None, None, None
    precision = (modifier - 4) >> 16
    scale = ((modifier - 4 & 0x7FF) ^ 1024) - 1024  # of 11 bits with a sign
    kept = scale if scale <= MOST_BOUND_DIGITS else None  # numbers that are written have fewer digits
    if precision - scale > MOST_BOUND_DIGITS:
        return None, None, kept
    highest, places = Decimal((0, (9,) * precision, -scale)), MOST_BOUND_DIGITS - max(0, precision - scale)
    if scale > places:
        highest = highest.quantize(Decimal((0, (1,), -places)), ROUND_FLOOR, _exact) or Decimal(0)
    return highest.copy_negate(), highest, kept


def _inside(bound: Decimal, is_open: bool, kind: str, scale: int | None, way: int) -> tuple[Decimal, bool]:
    """A bound such that what is within it is still so after the type has rounded it; `way` 1 from below, -1 from above."""
    rounding = ROUND_CEILING if way > 0 else ROUND_FLOOR
    if scale is not None:
        step = Decimal((0, (1,), -scale))
        found = bound.quantize(step, rounding, _exact)
        return (_exact.add(found, step * way) if is_open and found == bound else found), False
    kept = FLOATS.get(kind)
    if kept is None or not bound:
        return bound, is_open
    found = Context(kept, rounding).create_decimal(bound)
    if found != bound:
        end, stored = float(bound), _stored(found, kind)
        if (stored > end if way > 0 else stored < end) or (stored == end and not is_open):
            return found, False
    else:
        whole = bound == bound.to_integral_value() and abs(bound) <= 2**24
        if (whole and not is_open) if kind == "real" else not (is_open and abs(bound) >= _COARSE):
            return found, is_open
    step = Decimal((0, (1,), bound.adjusted() - kept + 1))
    return _exact.add(found, step * way), False


def _stored(value: Decimal, kind: str) -> float:
    """What a number becomes as a real or a double."""
    with np.errstate(over="ignore"):
        return float(np.float32(float(value))) if kind == "real" else float(value)


def _is_stored(value: Decimal, kind: str, scale: int | None) -> bool:
    """Whether a type keeps a number as it is."""
    if kind == "real":
        return _stored(value, kind) == float(value)
    return scale is None or value == value.quantize(Decimal((0, (1,), -scale)), context=_exact)


def _is_within(value: Decimal, low: Decimal | None, high: Decimal | None, wanted: Conditions) -> bool:
    if (low is not None and value < low) or (high is not None and value > high):
        return False
    below = wanted.low is not None and (value < wanted.low[0] or (value == wanted.low[0] and wanted.low[1]))
    above = wanted.high is not None and (value > wanted.high[0] or (value == wanted.high[0] and wanted.high[1]))
    return not below and not above


def _written(value: Decimal) -> Any:
    """A number as JSON has it."""
    text = format(value, "f")
    return int(text) if "." not in text else Written(text)
