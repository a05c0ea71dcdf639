"""The body of a request: JSON whose keys and types are those that a TypedDict declares."""

import json
from collections.abc import Mapping, Sequence
from math import isfinite
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

from starlette.requests import Request

from .errors import ApiError

MOST_BYTES = 16 << 20  # of a body


class TooLong(ApiError):
    """A body of more bytes than are read."""

    status = 413


async def read(request: Request, *declared: type[Any]) -> dict[str, Any]:
    """The keys of the body that are not null. ApiError for what is no JSON object, a key that none of `declared` has, or one
    of another type than it has there."""
    kinds = {name: kind for each in declared for name, kind in get_type_hints(each).items()}
    given = {name: value for name, value in (await json_object(request, MOST_BYTES)).items() if value is not None}
    for name, value in given.items():
        if name not in kinds:
            raise ApiError(f"unknown parameter: {name}", param=name, code="unknown_parameter")
        if not _fits(value, kinds[name]):
            raise ApiError(f"{name} must be {_described(kinds[name])}", param=name, code="invalid_type")
    return given


async def json_object(request: Request, most: int) -> dict[str, Any]:
    """The object of JSON in the body, which has at most so many bytes; ApiError where there is none."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        # Any page of the web may send a form or plain text here; for JSON a browser asks first.
        raise ApiError("the body must be JSON, with Content-Type: application/json", code="invalid_content_type")
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > most:
            raise TooLong(f"the body is longer than {most >> 20} MiB")
        parts.append(part)
    try:
        found = json.loads(b"".join(parts), parse_constant=_no_constant, parse_float=_float)
        json.dumps(found, ensure_ascii=False).encode()  # half a surrogate pair is no text
    except (ValueError, RecursionError) as error:
        raise ApiError(f"the body is not JSON: {error}", code="invalid_json") from None
    if not isinstance(found, dict):
        raise ApiError("the body must be a JSON object", code="invalid_json")
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")


def _float(text: str) -> float:
    if not isfinite(value := float(text)):
        raise ApiError(f"{text} is too large: numbers must be finite", code="invalid_value")
    return value


def _fits(value: Any, kind: Any) -> bool:
    """Whether a value of JSON is of a declared type."""
    if isinstance(kind, UnionType):
        return any(_fits(value, each) for each in get_args(kind))
    origin, of = get_origin(kind), get_args(kind)
    if origin in (Sequence, list):
        return isinstance(value, list) and all(_fits(each, of[0]) for each in value)
    if origin in (Mapping, dict):
        return isinstance(value, dict) and all(_fits(each, of[1]) for each in value.values())
    if kind in (int, float) and isinstance(value, bool):
        return False
    return kind is Any or isinstance(value, int | float if kind is float else kind)


WORDS = {int: "an integer", float: "a number", str: "a string", bool: "true or false"}


def _described(kind: Any) -> str:
    """A type in words."""
    if isinstance(kind, UnionType):
        return " or ".join(_described(each) for each in get_args(kind) if each is not NoneType)
    origin, of = get_origin(kind), get_args(kind)
    if origin in (Sequence, list):
        return f"an array, each element {_described(of[0])}"
    if origin in (Mapping, dict):
        return "an object" if of[1] is Any else f"an object, each value {_described(of[1])}"
    return WORDS[kind]
