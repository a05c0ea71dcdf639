"""Random JSON schemas, random texts of a grammar, and a plain validator, for the tests of constrained JSON."""

import json
import random
import re
from datetime import date
from decimal import Decimal
from typing import Any

import numpy as np
from pg_gpt2.generation.constraints.constraint import Walk
from pg_gpt2.generation.constraints.grammar import Node

NAMES = ("a", "id", "last name", 'quo"te', "é", "tab\t", "c/d", "e~f", "")
TEXTS = ("", "low", "high", 'say "x"', "back\\slash", "日本", "🙂", "line\nbreak", "\x01\x7f", "null", "1")
FORMATS = ("date", "time", "date-time", "uuid", "email")


def accepts(node: Node, said: str) -> bool:
    """Whether a text fits a grammar, by following all ways through it."""
    nodes = {node}
    for byte in said.encode():
        nodes = {after for each in nodes for low, high, after in each.firsts() if low <= byte <= high}
    return any(each.nullable for each in nodes)


def random_text(node: Node, rng: random.Random, soon: int = 60) -> str:
    """A text that fits; after `soon` bytes the shortest way to an end is taken."""
    found = bytearray()
    while not (node.nullable and (not (firsts := node.firsts()) or len(found) >= soon or rng.random() < 0.3)):
        firsts = node.firsts()
        if len(found) >= soon:
            nearest = min(after.shortest for _, _, after in firsts)
            firsts = [first for first in firsts if first[2].shortest == nearest]
        low, high, node = rng.choice(firsts)
        found.append(rng.choice((low, high, rng.randint(low, high))))
    return found.decode()


# --- random schemas ---------------------------------------------------------------------------------------------------------


def random_schema(rng: random.Random, patterns: bool = True) -> dict[str, Any]:
    """A schema that all is held of; `patterns`: with such as well."""
    definitions = {f"d{n}": _schema(rng, 1, {}, patterns) for n in range(rng.choice((0, 0, 1, 3)))}
    where = rng.choice(("$defs", "definitions"))
    found = _schema(rng, 3, {f"#/{where}/{name}": None for name in definitions}, patterns)
    return {where: definitions, **found} if definitions else found


def _schema(rng: random.Random, levels: int, references: dict[str, None], patterns: bool) -> dict[str, Any]:
    kinds = [_string, _string, _number, _number, _listed, _plain]
    if levels:
        kinds += [_object, _object, _array, _any_of]
    if references and rng.random() < 0.2:
        return {"$ref": rng.choice(list(references))}
    found = rng.choice(kinds)(rng, levels - 1, references, patterns)
    if rng.random() < 0.2:
        found |= {"title": "t", "description": "d", "default": 3, "examples": [1], "$comment": "c"}
    if found.get("type", "null") != "null" and "enum" not in found and rng.random() < 0.15:
        found["type"] = [found["type"], "null"]
    return found


def _string(rng: random.Random, levels: int, references: dict[str, None], patterns: bool) -> dict[str, Any]:
    found: dict[str, Any] = {"type": "string"}
    choice = rng.random()
    if choice < 0.3:
        found["format"] = rng.choice(FORMATS)
    elif choice < 0.5 and patterns:
        found["pattern"] = rng.choice(PATTERNS)
        return found
    elif choice < 0.8:
        found["minLength"] = least = rng.randint(0, 4)
        if rng.random() < 0.7:
            found["maxLength"] = least + rng.randint(0, 5)
    elif choice < 0.9:
        found["maxLength"] = rng.choice((0, 1, 3, 2**31))
    return found


PATTERNS = (
    *("^[a-z]+$", "^a|b$", "a.c", "^(low|high)$", r"^\d{3}-\d{4}$", r"\w+@\w+", '^["\\\\]{2}$', "^[^a]*$", "x|^y$", ""),
    *(r"\s", r"^\S\D\W$", "^(a|b)*c?$", "[😀-😂]", "^\\$[0-9]+\\.[0-9]{2}$", "(?:ab)+"),
)


def _number(rng: random.Random, levels: int, references: dict[str, None], patterns: bool) -> dict[str, Any]:
    whole = rng.random() < 0.5
    found: dict[str, Any] = {"type": "integer" if whole else "number"}
    places = rng.choice((0, 1, 2))
    low = round(rng.uniform(-1, 1) * 10 ** rng.randint(0, 6), places)
    high = round(low + rng.choice((1, 1.5, 10, 1234.5, 1e6)), places)
    if rng.random() < 0.6:
        found[rng.choice(("minimum", "exclusiveMinimum"))] = low
    if rng.random() < 0.6:
        found[rng.choice(("maximum", "exclusiveMaximum"))] = high
    return found


def _listed(rng: random.Random, levels: int, references: dict[str, None], patterns: bool) -> dict[str, Any]:
    values: list[Any] = [*rng.sample(TEXTS, 2), rng.randint(-5, 5), 0.5, None, True, [1, "a", []], {"k": {"n": [0.25]}}]
    if rng.random() < 0.3:
        return {"const": rng.choice(values)}
    if rng.random() < 0.3:
        return {"type": "string", "enum": rng.sample(TEXTS, 3)}
    return {"enum": rng.sample(values, rng.randint(1, 4))}


def _plain(rng: random.Random, levels: int, references: dict[str, None], patterns: bool) -> dict[str, Any]:
    return {"type": rng.choice(("boolean", "null", "string", "integer", "number"))}


def _object(rng: random.Random, levels: int, references: dict[str, None], patterns: bool) -> dict[str, Any]:
    names = rng.sample(NAMES, rng.randint(0, 5))
    properties = {name: _schema(rng, levels, references, patterns) for name in names}
    found: dict[str, Any] = {"type": "object", "properties": properties}
    if rng.random() < 0.7:
        found["required"] = rng.sample(names, rng.randint(0, len(names)))
    if rng.random() < 0.5:
        found["additionalProperties"] = False
    return found


def _array(rng: random.Random, levels: int, references: dict[str, None], patterns: bool) -> dict[str, Any]:
    found: dict[str, Any] = {"type": "array", "items": _schema(rng, levels, references, patterns)}
    least = rng.randint(0, 2)
    if rng.random() < 0.5:
        found["minItems"] = least
    if rng.random() < 0.5:
        found["maxItems"] = least + rng.randint(0, 2)
    return found


def _any_of(rng: random.Random, levels: int, references: dict[str, None], patterns: bool) -> dict[str, Any]:
    return {"anyOf": [_schema(rng, levels, references, patterns) for _ in range(rng.randint(1, 3))]}


# --- a validator, as plain as can be ----------------------------------------------------------------------------------------


def read(said: str) -> Any:
    """The value of a text of JSON; numbers keep their digits. A number that is not plain, or a key twice, is a failure."""

    def unique(items: list[tuple[str, Any]]) -> dict[str, Any]:
        assert len(dict(items)) == len(items)
        return dict(items)

    return json.loads(said, parse_float=Decimal, object_pairs_hook=unique)


def is_valid(value: Any, schema: dict[str, Any], root: dict[str, Any]) -> bool:
    """Whether a value is valid; of what `random_schema` makes all is looked at."""
    if "$ref" in schema:
        _, where, name = schema["$ref"].split("/")
        return is_valid(value, root[where][name], root)
    if "anyOf" in schema:
        return any(is_valid(value, one, root) for one in schema["anyOf"])
    if "const" in schema:
        return same(value, schema["const"])
    if "enum" in schema and not any(same(value, one) for one in schema["enum"]):
        return False
    if "type" not in schema:
        return True
    kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    return any(_fits(kind, value, schema, root) for kind in kinds)


def same(one: Any, other: Any) -> bool:
    """Whether two values are the same to JSON, where true is not 1."""
    return json.dumps(one, default=float, sort_keys=True) == json.dumps(other, default=float, sort_keys=True)


def _fits(kind: str, value: Any, schema: dict[str, Any], root: dict[str, Any]) -> bool:
    if kind == "null":
        return value is None
    if kind == "boolean":
        return isinstance(value, bool)
    if kind == "string":
        return isinstance(value, str) and _string_fits(value, schema)
    if kind == "array":
        least, most = schema.get("minItems", 0), schema.get("maxItems", len(value) if isinstance(value, list) else 0)
        return (
            isinstance(value, list)
            and least <= len(value) <= most
            and all(is_valid(item, schema["items"], root) for item in value)
        )
    if kind == "object":
        properties = schema["properties"]
        return (
            isinstance(value, dict)
            and set(schema.get("required", ())) <= set(value) <= set(properties)
            and all(is_valid(item, properties[name], root) for name, item in value.items())
        )
    if (
        isinstance(value, bool)
        or not isinstance(value, int | Decimal)
        or (kind == "integer" and not isinstance(value, int))
    ):
        return False
    bounds = {key: Decimal(repr(schema[key])) for key in schema if "imum" in key}
    return (
        bounds.get("minimum", value) <= value <= bounds.get("maximum", value)
        and ("exclusiveMinimum" not in bounds or value > bounds["exclusiveMinimum"])
        and ("exclusiveMaximum" not in bounds or value < bounds["exclusiveMaximum"])
    )


def _string_fits(value: str, schema: dict[str, Any]) -> bool:
    if "\0" in value or any("\ud800" <= c <= "\udfff" for c in value):
        return False
    if not schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", len(value)):
        return False
    if "pattern" in schema and not re.search(schema["pattern"], value):
        return False
    return "format" not in schema or _has_format(value, schema["format"])


def _has_format(value: str, name: str) -> bool:
    clock = r"([01]\d|2[0-3]):[0-5]\d:[0-5]\d(\.\d{1,6})?(Z|[+-](0\d|1[0-4]):[0-5]\d)"
    if name == "date":
        return bool(re.fullmatch(r"\d{4}-\d\d-\d\d", value) and date.fromisoformat(value))
    if name == "date-time":
        return _has_format(value[:10], "date") and value[10] == "T" and _has_format(value[11:], "time")
    patterns = {
        "time": clock,
        "uuid": r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}",
        "email": r"[\w+-]+(\.[\w+-]+)*@([a-zA-Z0-9]([a-zA-Z0-9-]*[a-zA-Z0-9])?\.)+[a-zA-Z]{2,}",
    }
    return bool(re.fullmatch(patterns[name], value, re.ASCII))


# --- a small vocabulary -----------------------------------------------------------------------------------------------------

_PIECES = (
    '": ',
    '", "',
    '{"',
    '"}',
    "true",
    "null",
    "a",
    "ab",
    "low",
    "id",
    "123",
    "00",
    "-0",
    "日",
    "é",
    "e",
    " ",
    ", ",
)
TOKENS = {byte: bytes([byte]) for byte in range(256)} | {256 + n: piece.encode() for n, piece in enumerate(_PIECES)}
_LONGEST_FIRST = sorted(TOKENS, key=lambda token: -len(TOKENS[token]))


def encode(said: str) -> list[int]:
    """Tokens of a text, always the longest that fits."""
    data, found = said.encode(), []
    while data:
        token = next(token for token in _LONGEST_FIRST if data.startswith(TOKENS[token]))
        found.append(token)
        data = data[len(TOKENS[token]) :]
    return found


def walked(walk: Walk, rng: np.random.Generator) -> str:
    """A text of tokens taken at random; it ends where nothing can follow, where chance says so, or when no token is left."""
    found = b""
    while walk.left and not walk.over and not (walk.state.nullable and rng.random() < 0.2):
        token = int(rng.choice(walk.allowed))
        found += TOKENS[token]
        walk.take(token)
    assert walk.state.nullable
    return found.decode()
