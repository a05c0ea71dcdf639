"""Options, each declared once, as a field of a class derived from `Declared`.

Validation, the keys of `options jsonb`, the view that lists them, its table in the reference and the client's keywords follow
from the declarations, which are in generation/options.py and training/options.py. These modules need the standard library only,
so that build.py can read them.
"""

import functools
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import Field, dataclass, field, fields
from typing import Any

from .errors import InvalidParameter, NullNotAllowed, shown
from .limits import MOST_OPTION_CHARACTERS

INT8 = 2**63 - 1
MOST_DIGITS = 400  # of an integer: more than a float has


class Written(float):
    """A number of JSON that is no integer; `text` has all its digits."""

    def __new__(cls, text: str) -> "Written":
        made = super().__new__(cls, text)
        made.text = text
        return made

    text: str


@dataclass(frozen=True)
class Kind:
    """A type of values: its name for people and for the client, and how JSON becomes a value; None where that is of another
    type. A tuple is a value that was read before."""

    name: str
    annotation: str
    read: Callable[[Any], Any]


@dataclass(frozen=True)
class Domain:
    """Which values of a type are good."""

    text: str
    holds: Callable[[Any], bool]


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value)
    except OverflowError:  # an integer of hundreds of digits
        return math.inf if value > 0 else -math.inf


def _integer(value: Any) -> int | None:
    good = isinstance(value, int) and not isinstance(value, bool) and -INT8 - 1 <= value <= INT8
    return value if good else None


def _list_of(kind: type, value: Any) -> tuple[Any, ...] | None:
    good = isinstance(value, list) and all(isinstance(v, kind) and not isinstance(v, bool) for v in value)
    return tuple(value) if good else value if isinstance(value, tuple) else None


def _pairs(value: Any, key: Callable[[str], Any]) -> tuple[tuple[Any, float], ...] | None:
    """((key, number), ...) of an object."""
    if not isinstance(value, dict):
        return value if isinstance(value, tuple) else None
    pairs = [(key(name), _number(number)) for name, number in value.items()]
    return None if any(None in pair for pair in pairs) else tuple(pairs)  # type: ignore[arg-type]


def _id(key: str) -> int | None:
    return int(key) if re.fullmatch(r"0|[1-9][0-9]{0,9}", key) else None


NUMBER = Kind("number", "float", _number)
INTEGER = Kind("integer", "int", _integer)
FLAG = Kind("true or false", "bool", lambda value: value if isinstance(value, bool) else None)
TEXT = Kind("text", "str", lambda value: value if isinstance(value, str) else None)
TEXTS = Kind("list of texts", "str | Sequence[str]", lambda value: _list_of(str, value))
IDS = Kind("list of token ids", "Sequence[int]", lambda value: _list_of(int, value))
TEXT_NUMBERS = Kind("object of a number for each text", "Mapping[str, float]", lambda value: _pairs(value, str))
ID_NUMBERS = Kind("object of a number for each token id", "Mapping[int, float]", lambda value: _pairs(value, _id))

ANY = Domain("any", lambda value: True)


def between(low: float, high: float) -> Domain:
    """From `low` to `high`, both included."""
    return Domain(f"between {low} and {high}", lambda value: low <= value <= high)


def at_least(low: float) -> Domain:
    """From `low` on."""
    return Domain(f"{low} or more", lambda value: value >= low)


def above(low: float, most: float = math.inf) -> Domain:
    """Above `low`, up to `most`."""
    text = f"above {low}" if most == math.inf else f"above {low}, up to {most}"
    return Domain(text, lambda value: low < value <= most)


def from_below(low: float, high: float) -> Domain:
    """From `low`, which is included, to `high`, which is not."""
    return Domain(f"{low} or more, and below {high}", lambda value: low <= value < high)


def one_of(*values: str) -> Domain:
    """One of some texts."""
    return Domain(f"one of {', '.join(values)}", lambda value: value in values)


@dataclass(frozen=True)
class Option:
    """A declaration. `name` is that of the parameter in SQL; `keys` are the names in `options`, the one of the manual first;
    `off` is the value that does nothing."""

    name: str
    keys: tuple[str, ...]
    kind: Kind
    default: Any
    off: Any
    domain: Domain
    hint: str
    meaning: str
    draws: bool  # whether it concerns drawing a token, so that beam search does not take it

    def check(self, value: Any, key: str | None = None) -> Any:
        """`value`, given as `key`, as a value of this option; 22004 or 22023 where it is none."""
        name = key or self.name
        if value is None:
            if self.default in (None, ()):
                return self.default
            raise NullNotAllowed(f"{name} must not be null", hint="Leave it out to get its default.")
        found = self.kind.read(value)
        if found is None:
            raise InvalidParameter(
                f"{name} must be a value of type {self.kind.name}, not {shown(value)}", hint=self.hint
            )
        if self.kind is NUMBER and not math.isfinite(found):
            raise InvalidParameter(f"{name} must be finite, not {shown(value)}", hint=self.hint)
        if not self.domain.holds(found):
            raise InvalidParameter(f"{name} must be {self.domain.text}, not {shown(value)}", hint=self.hint)
        return found


def option(
    default: Any,
    kind: Kind,
    domain: Domain = ANY,
    *,
    hint: str,
    meaning: str,
    key: str = "",
    parameter: str = "",
    draws: bool = False,
    **more: Any,
) -> Any:
    """The field that declares an option. `key` is what Hugging Face or OpenAI call it, and `parameter` what SQL does, where
    these are other names."""
    said = {"key": key, "kind": kind, "domain": domain, "hint": hint, "meaning": meaning, "draws": draws, **more}
    said["parameter"] = parameter
    return field(default=default, metadata=said)


def _declared(place: Field) -> Option:
    said = dict(place.metadata)
    key, name, off = said.pop("key"), said.pop("parameter") or place.name, said.pop("off", place.default)
    return Option(name=name, keys=(key, name) if key else (name,), default=place.default, off=off, **said)


class Declared:
    """Base of classes whose fields are declarations; values are checked when one is made."""

    @classmethod
    @functools.cache
    def options(cls) -> dict[str, Option]:
        """The declarations by the names of their fields, in order."""
        return {place.name: _declared(place) for place in fields(cls)}  # type: ignore[arg-type]

    def __post_init__(self) -> None:
        for place, declared in self.options().items():
            value = getattr(self, place)
            if value != declared.default:
                object.__setattr__(self, place, declared.check(value))


Said = dict[str, tuple[Option, str, Any]]  # parameter -> declaration, key and value


def manual(options: Iterable[Option]) -> Iterator[tuple[str, str, str | None, str, str]]:
    """(name, type, default, domain, meaning) of every option, as people write them."""
    for declared in options:
        default = None if declared.default in (None, ()) else json.dumps(declared.default)
        also = f" The parameter {declared.name} is the same." if len(declared.keys) > 1 else ""
        yield declared.keys[0], declared.kind.name, default, declared.domain.text, declared.meaning + also


def by_key(kinds: Iterable[type[Declared]]) -> dict[str, Option]:
    """The declarations of some classes under each of their keys."""
    return {key: one for kind in kinds for one in kind.options().values() for key in one.keys}


def checked(said: Mapping[str, Any], known: Mapping[str, Option], view: str) -> Said:
    """What an object of `options` says, as values; `known` are the declarations by key, which `view` lists.

    22023 for a key that none of them has, for a value that does not fit, and for two keys of an option that differ; 22004 for
    null where the default is none.
    """
    found: Said = {}
    for key, value in said.items():
        if key not in known:
            there = ", ".join(dict.fromkeys(one.keys[0] for one in known.values()))
            raise InvalidParameter(f"options have no key {shown(key)}", hint=f"{view} tells of {there}.")
        one = known[key]
        value = one.check(value, key)
        _, before, other = found.setdefault(one.name, (one, key, value))
        if other != value:
            raise InvalidParameter(
                f"{before} and {key} are the same option, and options say {shown(other)} and {shown(value)}",
                hint="Give one of the two.",
            )
    return found


def assemble(kinds: Iterable[type[Any]], given: Mapping[str, Any], said: Said) -> list[Any]:
    """An object of each of `kinds` from parameters by name and from what options say, which may set parameters.

    22023 where options say something else than a parameter that was given; 22023 and 22004 for parameters that do not fit.
    """
    values = dict(given)
    for name, (declared, key, value) in said.items():
        parameter = values.get(name)
        if parameter not in (None, declared.default) and declared.check(parameter) != value:
            raise InvalidParameter(
                f"{name} is {shown(parameter)}, and options say {key} {shown(value)}", hint="Give one of the two."
            )
        values[name] = value
    return [
        kind(**{place: values[one.name] for place, one in kind.options().items() if one.name in values})
        for kind in kinds
    ]


def read_object(text: str | None, example: str, what: str = "options") -> dict[str, Any]:
    """The JSON object of a text, empty for None. 22023 where there is none, with `example` as one; so for too long a text."""
    hint = f"Example: '{example}'."
    if text is None:
        return {}
    if len(text) > MOST_OPTION_CHARACTERS:
        raise InvalidParameter(
            f"{what}: {len(text)} characters, and {MOST_OPTION_CHARACTERS} are the most",
            hint="Give fewer or shorter ones.",
        )

    def unique(items: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(found := dict(items)) < len(items):
            raise ValueError("a key is there twice")
        return found

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no number")

    def integer(digits: str) -> int:
        if len(digits) > MOST_DIGITS:
            raise ValueError(f"a number has {len(digits)} digits")
        return int(digits)

    try:
        found = json.loads(
            text, object_pairs_hook=unique, parse_constant=refuse, parse_int=integer, parse_float=Written
        )
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else error
        raise InvalidParameter(f"{what} cannot be read: {reason}", hint=hint) from None
    if not isinstance(found, dict):
        raise InvalidParameter(f"{what} must be an object, not {shown(found)}", hint=hint)
    return found
