"""Attributes of ops as JSON, the column `llm_tape.extra`: read and checked on the way in, written on the way out.

An attribute has one kind whatever op it belongs to. Which attributes an op takes, the op itself knows.
"""

import inspect
import json
from collections.abc import Callable, Mapping
from sys import float_info
from typing import Any

import numpy as np

from ..errors import InvalidParameter, shown
from ..fast.ops import lookup
from ..limits import MOST_DIMENSIONS

NUMBERS = {"eps", "factor", "p"}
LARGEST = float_info.max
INTEGERS = {"axis", "chunk", "n_head", "seed", "site", "start", "step", "stop"}


def parse(op: str, text: str | None) -> dict[str, Any]:
    """The attributes of an application of `op`; 22023 naming the op and what does not fit."""
    extra = parse_jsonb(text or "{}", f"{op}: extra")
    if not isinstance(extra, dict):
        raise InvalidParameter(
            f"{op}: extra must be a JSON object, not {shown(extra)}", hint="Example: '{\"axis\": 0}'."
        )
    known = inspect.signature(lookup(op).forward).parameters
    takes = [name for name, parameter in known.items() if parameter.kind is parameter.KEYWORD_ONLY]
    for name, value in extra.items():
        if name not in takes:
            raise InvalidParameter(
                f'{op}: extra has "{name}", which the op does not take',
                hint=f"It takes: {', '.join(takes) or 'nothing'}.",
            )
        if _is_deep(value) or (name == "shape" and isinstance(value, list) and len(value) > MOST_DIMENSIONS):
            raise InvalidParameter(
                f'{op}: extra."{name}" has more than {MOST_DIMENSIONS} dimensions',
                hint="A list of lists has two.",
            )
        _check(op, name, value)
    for name in takes:
        if name not in extra and known[name].default is inspect.Parameter.empty:
            raise InvalidParameter(f'{op}: extra lacks "{name}"', hint=f"It takes: {', '.join(takes)}.")
    return extra


def parse_jsonb(text: str, what: str) -> Any:
    """A jsonb value as Python has it; 22023 for one that Python cannot have, such as a number of thousands of digits."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidParameter(f"{what} cannot be read: {error}", hint="Write shorter numbers, less deeply.") from None


def _check(op: str, name: str, value: Any) -> None:
    if name == "weight":
        good, kind = value is None or _is_list(value, True, _is_number), "null or a list of numbers"
    elif name in NUMBERS:
        good, kind = _is_number(value) and -LARGEST <= value <= LARGEST, "a finite number"
    elif name in INTEGERS:
        good, kind = _is_integer(value) or (value is None and name == "axis" and op in ("sum", "mean")), "an integer"
    else:
        single = name in ("ids", "target")
        good, kind = _is_list(value, nested=single) or (single and _is_integer(value)), "a list of integers"
    if good and name in ("chunk", "n_head"):
        good, kind = value >= 1, "1 or more"
    if good and name == "eps":
        good, kind = value >= 0, "0 or more"
    if not good:
        raise InvalidParameter(
            f'{op}: extra."{name}" must be {kind}, not {shown(value)}',
            hint="\\df+ llm_op lists what each op takes.",
        )


def _is_deep(value: Any) -> bool:
    """Whether lists are nested beyond MOST_DIMENSIONS; found without recursion, which Python limits."""
    level = [value]
    for _ in range(MOST_DIMENSIONS):
        level = [inner for outer in level if isinstance(outer, (list, dict)) for inner in outer]
    return any(isinstance(inner, (list, dict)) for inner in level)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and -(1 << 63) <= value < 1 << 63


def _is_list(value: Any, nested: bool, is_item: Callable[[Any], bool] = _is_integer) -> bool:
    """Integers, or other items; nested: or lists of one length of them."""
    if not isinstance(value, list):
        return False
    if nested and value and all(isinstance(part, list) for part in value):
        return len({len(part) for part in value}) == 1 and all(_is_list(part, nested, is_item) for part in value)
    return all(map(is_item, value))


def to_json(attrs: Mapping[str, Any]) -> str:
    """The attributes as JSON text; arrays become lists."""
    return json.dumps({name: _plain(value) for name, value in attrs.items()})


def _plain(value: Any) -> Any:
    if isinstance(value, (np.ndarray, np.generic)):
        return value.tolist()
    return list(value) if isinstance(value, tuple) else value
