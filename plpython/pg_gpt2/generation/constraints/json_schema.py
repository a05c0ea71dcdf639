"""JSON schemas as grammars: what fits the grammar of a schema is JSON text that is valid under it.

Of JSON Schema (draft 4 to 2020-12) it holds what docs/json.md lists; a keyword that it does not hold is refused by name, because
one that is ignored would be broken sooner or later. Text has the form of json.dumps: ", " and ": ", and no other blanks.
An object has its required properties first, in the order of `required`, then others in the order of `properties`.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from decimal import Decimal, InvalidOperation
from typing import Any
from urllib.parse import unquote

from ... import host
from ...errors import FeatureNotSupported, InvalidParameter, LimitExceeded, PgGpt2Error, shown
from ...limits import MOST_SCHEMA_LEVELS, MOST_SUBSCHEMAS
from ...options import Written, read_object
from .grammar import EMPTY, NOTHING, Node, choices, either, optional, repeat, seq, text
from .json_formats import FORMATS, of_format
from .json_numbers import Bound, numbers
from .json_strings import ANYTHING, of_pattern, quoted, spelled, written
from .lengths import of_length

ANNOTATIONS = frozenset(
    ("title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly", "$schema", "$comment", "$id")
)
DEFINITIONS = frozenset(("$defs", "definitions"))
KEYWORDS = {
    "string": ("pattern", "minLength", "maxLength", "format"),
    "number": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"),
    "integer": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"),
    "object": ("properties", "required", "additionalProperties"),
    "array": ("items", "minItems", "maxItems"),
    "boolean": (),
    "null": (),
}
GENERAL = ("type", "enum", "const", "anyOf", "$ref")
SUPPORTED = (*GENERAL, *dict.fromkeys(keyword for keywords in KEYWORDS.values() for keyword in keywords))
WITHOUT_TYPE = ("string", "number", "object", "array")  # what keywords of these types say where there is no `type`
EXAMPLE = '{"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}'
LISTS = {
    "type": '"type": ["string", "null"]',
    "enum": '"enum": ["low", "high"]',
    "anyOf": '"anyOf": [{"type": "string"}, {"type": "null"}]',
    "required": '"required": ["name"]',
}
MOST_TEXT_LEVELS = 4 * MOST_SCHEMA_LEVELS  # of JSON that is a schema: one within the other may be three levels below
BYTES = 20_000  # of memory, that a schema within the schema takes
INSTEAD = {
    "oneOf": "anyOf says the same where no value fits two of the schemas.",
    "allOf": "Put the keywords of all into one schema.",
    "prefixItems": "Use an object with one property per position.",
    "multipleOf": "Use type integer with bounds, or list the allowed numbers in an enum.",
    "nullable": 'Write "type": ["string", "null"] instead.',
}


class SchemaText(str):
    """A schema as JSON, which is read when its grammar is wanted."""


def as_text(schema: Any) -> SchemaText | None:
    """An option's value as text, the same for equal schemas; None where it is no object."""
    if isinstance(schema, SchemaText):
        return schema
    return SchemaText(json_text(schema, "#", most=MOST_TEXT_LEVELS)) if isinstance(schema, Mapping) else None


def parse(schema: str) -> Node:
    """The grammar of a schema that is given as text."""
    return grammar(read_object(schema, EXAMPLE, "schema"))


def grammar(schema: Any) -> Node:
    """The grammar of a schema, which is what json.loads gives for its text.

    0A000 for a keyword that is not held and for a reference to itself, 22023 for a value that a keyword cannot have and for a
    schema that nothing fits, 54000 for one that is too large or too deep.
    """
    node = _Reader(schema).node(schema, "#", 0)
    if node is NOTHING:
        raise InvalidParameter("no value fits the schema", hint="Look at its required properties, enums and bounds.")
    return node


class _Reader:
    """One schema on its way to a grammar. `where` is a JSON pointer to what is read, for errors."""

    def __init__(self, root: Any) -> None:
        self.root = root
        self.references: dict[str, Node | None] = {}  # None while it is read
        self.count = 0

    def node(self, schema: Any, where: str, level: int) -> Node:
        """The grammar of a schema within the schema."""
        host.check_interrupts()
        if self.count % 1000 == 999:
            host.require_memory(1000 * BYTES, "a JSON schema of thousands of properties")
        self.count += 1
        if level > MOST_SCHEMA_LEVELS or self.count > MOST_SUBSCHEMAS:
            raise LimitExceeded(
                f"the schema has more than {MOST_SCHEMA_LEVELS} levels or {MOST_SUBSCHEMAS} schemas within it",
                hint="Generate its parts one by one.",
            )
        if schema is False:
            return NOTHING
        if not isinstance(schema, Mapping):
            raise _wrong(where, f"a schema must be an object, not {shown(schema)}", 'Example: {"type": "string"}.')
        said = {key: value for key, value in schema.items() if key not in ANNOTATIONS and key not in DEFINITIONS}
        if level and "$id" in schema:
            raise _unsupported(where, '"$id" below the top', "It changes what a $ref means; leave it out.")
        for key in said:
            if key not in SUPPORTED:
                raise _unsupported(
                    where, f'keyword "{key[:60]}"', INSTEAD.get(key, f"Supported: {', '.join(SUPPORTED)}.")
                )
        if "$ref" in said:
            _require_alone("$ref", said, where)
            return self.reference(said["$ref"], where, level)
        if "anyOf" in said:
            _require_alone("anyOf", said, where)
            parts = _list(said["anyOf"], where, "anyOf")
            return either(*(self.node(part, f"{where}/anyOf/{n}", level + 1) for n, part in enumerate(parts)))
        if "enum" in said or "const" in said:
            return _values(said, where)
        return either(*(self.of_type(kind, said, where, level) for kind in _types(said, where)))

    def reference(self, pointer: Any, where: str, level: int) -> Node:
        """What `$ref` stands for: a place in the same schema."""
        if not isinstance(pointer, str) or not (pointer == "#" or pointer.startswith("#/")):
            raise _unsupported(
                where, f"$ref {shown(pointer)}", 'Only references within the schema work, such as "#/$defs/name".'
            )
        if pointer in self.references:
            if (found := self.references[pointer]) is not None:
                return found
            raise _recursive(where, pointer)
        if pointer == "#":
            raise _recursive(where, pointer)
        self.references[pointer] = None
        target = self.root
        for part in unquote(pointer[2:]).split("/"):
            name = part.replace("~1", "/").replace("~0", "~")
            if isinstance(target, Mapping) and name in target:
                target = target[name]
            elif isinstance(target, list) and name.isdecimal() and len(name) < 9 and int(name) < len(target):
                target = target[int(name)]
            else:
                raise _wrong(where, f"$ref {shown(pointer)} leads nowhere", 'Example: "#/$defs/name".')
        node = self.references[pointer] = self.node(target, pointer[:200], level + 1)
        return node

    def of_type(self, kind: str, said: Mapping[str, Any], where: str, level: int) -> Node:
        """The values of a type, with the keywords that concern it."""
        if kind == "object":
            return self.object(said, where, level)
        if kind == "array":
            return self.array(said, where, level)
        if kind == "string":
            return _string(said, where)
        if kind in ("number", "integer"):
            return _number(said, where, kind == "integer")
        return choices(("true", "false")) if kind == "boolean" else text("null")

    def array(self, said: Mapping[str, Any], where: str, level: int) -> Node:
        """[item, item]"""
        least, most = _counts(said, where, "minItems", "maxItems")
        if most == 0:
            return text("[]") if least == 0 else NOTHING
        if "items" not in said:
            raise _wrong(where, "an array needs items", 'Example: {"type": "array", "items": {"type": "string"}}.')
        if isinstance(said["items"], list):
            raise _unsupported(where, "a list of items", "Give one schema for all items.")
        item = self.node(said["items"], f"{where}/items", level + 1)
        more = repeat(seq(text(", "), item), max(0, least - 1), None if most is None else most - 1)
        content = either(seq(item, more), EMPTY if least == 0 else NOTHING)
        return seq(text("["), content, text("]"))

    def object(self, said: Mapping[str, Any], where: str, level: int) -> Node:
        """{"name": value, "name": value}"""
        properties = said.get("properties", {})
        if not isinstance(properties, Mapping):
            raise _wrong(where, f"properties must be an object, not {shown(properties)}", _PROPERTIES)
        if said.get("additionalProperties", False) is not False:
            hint = "An object has the properties that are listed, and no others: say false, or leave it out."
            raise _unsupported(where, '"additionalProperties" other than false', hint)
        required = _list(said.get("required", []), where, "required", least=0)
        if missing := [name for name in required if not isinstance(name, str) or name not in properties]:
            raise _wrong(where, f"required lists {shown(missing[0])}, which is not in properties", _PROPERTIES)
        found = {}
        for name, schema in properties.items():
            value = self.node(schema, f"{where}/properties/{name[:60]}", level + 1)
            found[name] = seq(choices([f"{_written_name(name, where)}: "]), value)
        must = [found.pop(name) for name in dict.fromkeys(required)]
        may = [node for node in found.values() if node is not NOTHING]
        if not must:
            return seq(text("{"), optional(_some(may)), text("}"))
        first, *others = must
        return seq(text("{"), first, *(seq(text(", "), other) for other in others), _more(may), text("}"))


_PROPERTIES = f"Example: {EXAMPLE}."


def _more(optionals: Sequence[Node]) -> Node:
    """Each of some properties or not, all with a comma before."""
    host.check_interrupts()
    return seq(*(optional(seq(text(", "), node)) for node in optionals))


def _some(optionals: Sequence[Node]) -> Node:
    """At least one of some properties, with commas between them: one of the first half or more, and then any of the second; or of
    the second only. So a thousand of them are some ten thousand nodes and not a million."""
    if len(optionals) < 2:
        return either(*optionals)
    half = len(optionals) // 2
    return either(seq(_some(optionals[:half]), _more(optionals[half:])), _some(optionals[half:]))


# --- values that are listed -------------------------------------------------------------------------------------------------


def _values(said: Mapping[str, Any], where: str) -> Node:
    """The values of enum and const, of the type if there is one too."""
    others = [key for key in said if key not in ("enum", "const", "type")]
    if others:
        hint = "List the values that fit all keywords, and leave the other keywords out."
        raise _unsupported(where, f'"{others[0]}" together with enum or const', hint)
    values = _list(said["enum"], where, "enum") if "enum" in said else [said["const"]]
    texts = dict.fromkeys(json_text(value, where) for value in values if _is_of(value, said, where))
    if "enum" in said and "const" in said:
        texts = {one: None for one in texts if one == json_text(said["const"], where)}
    return choices(texts)


def _is_of(value: Any, said: Mapping[str, Any], where: str) -> bool:
    """Whether a value has the type that is said, if one is."""
    if "type" not in said:
        return True
    kinds = _types(said, where)
    if isinstance(value, bool) or value is None:
        return ("null" if value is None else "boolean") in kinds
    if isinstance(value, int | float):
        return "number" in kinds or ("integer" in kinds and _exact(value) == _exact(value).to_integral_value())
    kind = "string" if isinstance(value, str) else "array" if isinstance(value, list) else "object"
    return kind in kinds


def json_text(value: Any, where: str, level: int = 0, most: int = MOST_SCHEMA_LEVELS) -> str:
    """A value of at most so many levels as json.dumps has it, but for numbers, which stay as they were written."""
    if level > most:
        raise LimitExceeded(f"the JSON schema at {where} has more than {most} levels", hint="Nest it less deeply.")
    if isinstance(value, Mapping):
        items = (f"{_written_name(key, where)}: {json_text(one, where, level + 1, most)}" for key, one in value.items())
        return "{" + ", ".join(items) + "}"
    if isinstance(value, list):
        return "[" + ", ".join([json_text(one, where, level + 1, most) for one in value]) + "]"
    if isinstance(value, str):
        return _written_name(value, where)
    return value.text if isinstance(value, Written) else json.dumps(value)


def _written_name(value: str, where: str) -> str:
    if any(c == "\0" or "\ud800" <= c <= "\udfff" for c in value):
        raise _wrong(where, "a text has U+0000 or half of a surrogate pair", "jsonb cannot hold that.")
    return written(value)


# --- strings and numbers ----------------------------------------------------------------------------------------------------


def _string(said: Mapping[str, Any], where: str) -> Node:
    least, most = _counts(said, where, "minLength", "maxLength")
    node = ANYTHING
    if "format" in said:
        name = said["format"]
        if "pattern" in said:
            raise _unsupported(where, '"format" together with "pattern"', "Say one of the two.")
        found = of_format(name) if isinstance(name, str) else None
        if found is None:
            raise _unsupported(where, f"format {shown(name)}", f"Supported: {', '.join(FORMATS)}.")
        node = found
    if "pattern" in said:
        if not isinstance(said["pattern"], str):
            raise _wrong(where, f"pattern must be a text, not {shown(said['pattern'])}", 'Example: "^[a-z]+$".')
        with _placed(where):
            node = of_pattern(said["pattern"])
    with _placed(where):
        return quoted(spelled(of_length(node, least, most)))


def _number(said: Mapping[str, Any], where: str, whole: bool) -> Node:
    lows = [_bound(said, where, "minimum", False), _bound(said, where, "exclusiveMinimum", True)]
    highs = [_bound(said, where, "maximum", False), _bound(said, where, "exclusiveMaximum", True)]
    low = max((bound for bound in lows if bound), key=lambda bound: (bound.value, bound.open), default=None)
    high = min((bound for bound in highs if bound), key=lambda bound: (bound.value, not bound.open), default=None)
    with _placed(where):
        return numbers(low, high, whole)


def _bound(said: Mapping[str, Any], where: str, keyword: str, is_open: bool) -> Bound | None:
    if keyword not in said:
        return None
    value = said[keyword]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _wrong(where, f"{keyword} must be a number, not {shown(value)}", f'Example: "{keyword}": 10.')
    found = _exact(value)
    if not found.is_finite():
        raise _wrong(where, f"{keyword} must be finite, not {shown(value)}", "Leave it out for none.")
    return Bound(found, is_open)


def _exact(value: float) -> Decimal:
    """A number as it was written."""
    try:
        return Decimal(value.text if isinstance(value, Written) else repr(value))
    except InvalidOperation:
        raise LimitExceeded(
            f"{shown(value)} is too large or too small a number", hint="Use a number with fewer digits."
        ) from None


# --- what keywords may say --------------------------------------------------------------------------------------------------


def _types(said: Mapping[str, Any], where: str) -> list[str]:
    """The types of a schema: those of `type`, else those whose keywords it has."""
    if "type" not in said:
        kinds = [kind for kind in WITHOUT_TYPE if any(keyword in said for keyword in KEYWORDS[kind])]
        if not kinds:
            raise _wrong(where, "a schema must say of which type a value is", 'Example: {"type": "string"}.')
        return kinds
    found = said["type"] if isinstance(said["type"], list) else [said["type"]]
    for kind in found:
        if not isinstance(kind, str) or kind not in KEYWORDS:
            raise _wrong(where, f"type has no value {shown(kind)}", f"Supported: {', '.join(KEYWORDS)}.")
    return _list(found, where, "type")


def _counts(said: Mapping[str, Any], where: str, lowest: str, highest: str) -> tuple[int, int | None]:
    """How many at least and at most, None = any number."""
    for keyword in (lowest, highest):
        value = said.get(keyword, 0)
        if isinstance(value, bool) or not isinstance(value, int | float) or value < 0 or value % 1:
            raise _wrong(where, f"{keyword} must be 0 or more, not {shown(value)}", f'Example: "{keyword}": 10.')
    return int(said.get(lowest, 0)), int(said[highest]) if highest in said else None


def _list(value: Any, where: str, keyword: str, least: int = 1) -> list[Any]:
    if not isinstance(value, list) or len(value) < least:
        kind = "a list of one or more" if least else "a list"
        raise _wrong(where, f"{keyword} must be {kind}, not {shown(value)}", f"Example: {LISTS[keyword]}.")
    return value


def _require_alone(keyword: str, said: Iterable[str], where: str) -> None:
    for other in said:
        if other != keyword:
            raise _unsupported(where, f'"{other}" together with {keyword}', f"Put it into the schemas of {keyword}.")


def _unsupported(where: str, what: str, hint: str) -> FeatureNotSupported:
    return FeatureNotSupported(f"JSON schema at {where}: {what} is not supported", hint=hint)


def _wrong(where: str, what: str, hint: str) -> InvalidParameter:
    return InvalidParameter(f"JSON schema at {where}: {what}", hint=hint)


@contextmanager
def _placed(where: str) -> Iterator[None]:
    """Errors of what knows nothing of the schema name the place in it."""
    try:
        yield
    except PgGpt2Error as error:
        raise type(error)(f"JSON schema at {where}: {error.message}", hint=error.hint, detail=error.detail) from None


def _recursive(where: str, pointer: str) -> FeatureNotSupported:
    return _unsupported(
        where, f"$ref {shown(pointer)}, which leads to itself,", "Write out as many levels as are wanted."
    )
