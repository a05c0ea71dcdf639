"""What a call of generation may ask for: every option declared once, as a field of one of these classes.

Validation, the keys of `options jsonb`, the view llm_generation_options, its table in the reference and the client's keywords
follow from the declarations. What an option of `SamplingOptions` does is the function of its name in processors.py. This module
needs the standard library only, so that build.py can read it.
"""

import functools
import json
import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import Field, dataclass, field, fields
from typing import Any, TypeVar

from ..errors import InvalidParameter, NullNotAllowed
from ..limits import MOST_OPTION_CHARACTERS, MOST_STOP_CHARACTERS

T = TypeVar("T")
INT8 = 2**63 - 1
MOST_DIGITS = 400  # of an integer: more than a float has
MOST_SHOWN = 60  # characters of a value in an error


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
SHORT = Domain(
    f"not empty, and {MOST_STOP_CHARACTERS} characters together at most",
    lambda texts: all(texts) and sum(map(len, texts)) <= MOST_STOP_CHARACTERS,
)


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


def _biases(most: float, texts: bool) -> Domain:
    def hold(pairs: Collection[tuple[Any, float]]) -> bool:
        return all(abs(number) <= most for _, number in pairs) and (not texts or SHORT.holds([k for k, _ in pairs]))

    return Domain(f"numbers between {-most:g} and {most:g}{', texts ' + SHORT.text if texts else ''}", hold)


@dataclass(frozen=True)
class Option:
    """A declaration. `keys` are its names in `options`, the one of the manual first; `off` is the value that does nothing."""

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
                f"{name} must be a value of type {self.kind.name}, not {_shown(value)}", hint=self.hint
            )
        if self.kind is NUMBER and not math.isfinite(found):
            raise InvalidParameter(f"{name} must be finite, not {_shown(value)}", hint=self.hint)
        if not self.domain.holds(found):
            raise InvalidParameter(f"{name} must be {self.domain.text}, not {_shown(value)}", hint=self.hint)
        return found


def _shown(value: Any) -> str:
    """A value for an error, as JSON has it but for NaN and infinity; not too much of it."""
    try:
        text = str(value) if isinstance(value, float) else json.dumps(value, ensure_ascii=False)
    except RecursionError:
        text = "a list in lists"
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}..."


def option(
    default: Any,
    kind: Kind,
    domain: Domain = ANY,
    *,
    hint: str,
    meaning: str,
    key: str = "",
    draws: bool = False,
    **more: Any,
) -> Any:
    """The field that declares an option. `key` is what Hugging Face or OpenAI call it, where that is another name."""
    said = {"key": key, "kind": kind, "domain": domain, "hint": hint, "meaning": meaning, "draws": draws, **more}
    return field(default=default, metadata=said)


def _declared(place: Field) -> Option:
    said = dict(place.metadata)
    key, off = said.pop("key"), said.pop("off", place.default)
    keys = (key, place.name) if key else (place.name,)
    return Option(name=place.name, keys=keys, default=place.default, off=off, **said)


class Declared:
    """Base of classes whose fields are declarations; values are checked when one is made."""

    @classmethod
    @functools.cache
    def options(cls) -> dict[str, Option]:
        """The declarations by name, in order."""
        return {place.name: _declared(place) for place in fields(cls)}  # type: ignore[arg-type]

    def __post_init__(self) -> None:
        for name, declared in self.options().items():
            value = getattr(self, name)
            if value != declared.default:
                object.__setattr__(self, name, declared.check(value))


@dataclass(frozen=True)
class SamplingOptions(Declared):
    """How the next token is chosen."""

    temperature: float = option(
        1.0,
        NUMBER,
        at_least(0),
        hint="0 takes the most probable token.",
        meaning="Scores are divided by it; 0 takes the most probable token.",
        draws=True,
    )
    topk: int = option(
        50,
        INTEGER,
        at_least(0),
        key="top_k",
        hint="0 keeps all tokens.",
        meaning="So many of the most probable tokens are kept; 0 keeps all.",
        draws=True,
        off=0,
    )
    topp: float = option(
        0.95,
        NUMBER,
        between(0, 1),
        key="top_p",
        hint="1 keeps all tokens.",
        meaning="The fewest tokens are kept that together have this probability; 1 keeps all.",
        draws=True,
        off=1,
    )
    repetition_penalty: float = option(
        1.0,
        NUMBER,
        above(0),
        hint="1 is no penalty, 1.2 a usual one.",
        meaning="Above 1 it makes tokens less probable that occurred, in the prompt, too; 1 does nothing.",
    )
    min_p: float = option(
        0.0,
        NUMBER,
        between(0, 1),
        hint="0 keeps all tokens.",
        meaning="Tokens are kept that have at least this part of the probability of the best one; 0 keeps all.",
        draws=True,
    )
    typical_p: float = option(
        1.0,
        NUMBER,
        above(0, 1),
        hint="1 keeps all tokens, 0.95 is a usual value.",
        meaning="Tokens are kept whose surprise is nearest to the expected one, until they have this probability; 1 keeps all.",
        draws=True,
    )
    epsilon_cutoff: float = option(
        0.0,
        NUMBER,
        from_below(0, 1),
        hint="0 keeps all tokens, 0.0003 to 0.0009 are usual.",
        meaning="Tokens are kept that have at least this probability; 0 keeps all.",
        draws=True,
    )
    eta_cutoff: float = option(
        0.0,
        NUMBER,
        from_below(0, 1),
        hint="0 keeps all tokens, 0.0003 to 0.004 are usual.",
        meaning="As epsilon_cutoff, but lower where the distribution is flat: min(eta, sqrt(eta) * exp(-entropy)); 0 keeps all.",
        draws=True,
    )
    no_repeat_ngram_size: int = option(
        0,
        INTEGER,
        at_least(0),
        hint="3 lets no three tokens follow each other twice, 0 allows all.",
        meaning="So many tokens never follow each other twice, in the prompt and what is generated; 0 allows all.",
    )
    min_new_tokens: int = option(
        0,
        INTEGER,
        at_least(0),
        hint="The end-of-text token does not come before so many.",
        meaning="Before so many tokens the end-of-text token is excluded; stop strings are not.",
    )
    suppress_tokens: Sequence[int] = option(
        (),
        IDS,
        Domain("ids of the model", lambda ids: min(ids, default=0) >= 0),
        hint="Example: [50256].",
        meaning="Tokens that are never taken.",
    )
    bad_words: Sequence[Any] = option(
        (),
        TEXTS,
        SHORT,
        hint='Example: ["damn", " damn"], since a word after a blank is another token.',
        meaning="Texts whose tokens, encoded as they stand, never come one after the other; a word after a blank is another.",
    )
    sequence_bias: Sequence[tuple[Any, float]] = option(
        (),
        TEXT_NUMBERS,
        _biases(1e6, texts=True),
        hint='Example: {" cat": 2.5, " dog": -1}.',
        meaning="What is added to the score of a text's last token where the tokens before it stand there.",
    )
    logit_bias: Sequence[tuple[int, float]] = option(
        (),
        ID_NUMBERS,
        _biases(100, texts=False),
        hint='Example: {"50256": -100}.',
        meaning="What is added to the scores of tokens.",
    )
    presence_penalty: float = option(
        0.0,
        NUMBER,
        between(-2, 2),
        hint="0 does nothing, above it what was generated becomes less probable.",
        meaning="What is taken from the scores of tokens that were generated, the prompt's do not count; 0 does nothing.",
    )
    frequency_penalty: float = option(
        0.0,
        NUMBER,
        between(-2, 2),
        hint="0 does nothing, above it what was generated becomes less probable.",
        meaning="The same, times how often each was generated; 0 does nothing.",
    )


@dataclass(frozen=True)
class Call(Declared):
    """What every generating call has."""

    max_tokens: int = option(
        64,
        INTEGER,
        at_least(0),
        key="max_new_tokens",
        hint="It is the most that is generated; the default is 64.",
        meaning="So many tokens at most.",
    )
    eos_token: int | None = option(
        None,
        INTEGER,
        Domain("-1 or a token id", lambda value: value >= -1),
        key="eos_token_id",
        hint="Give a token id, null for the model's, or -1 for none.",
        meaning="The token that ends generation; null is the model's, -1 none.",
    )
    model_name: str | None = option(
        None,
        TEXT,
        hint="llm_models lists the models.",
        meaning="The model; null is the setting pg_gpt2.model, else gpt2-small, else the only one that has weights.",
    )


@dataclass(frozen=True)
class Generation(Call):
    """What generation by drawing tokens has beside it."""

    seed: int | None = option(
        None,
        INTEGER,
        hint="Any number of 64 bits; without one, setseed() decides.",
        meaning="The same seed gives the same text; null: setseed() decides.",
    )
    stop: Sequence[str] | None = option(
        None,
        TEXTS,
        key="stop_strings",
        hint='Example: ["\\n\\n"] ends at an empty line.',
        meaning="Texts that end generation and are left out.",
    )


@dataclass(frozen=True)
class TextGeneration(Generation):
    """What generation of text has beside it."""

    echo: bool = option(
        True, FLAG, hint="false leaves the prompt out.", meaning="Whether the prompt comes before the completion."
    )


@dataclass(frozen=True)
class BeamSearch(Call):
    """What beam search has."""

    beam_width: int = option(
        4,
        INTEGER,
        key="num_beams",
        hint="4 to 10 beams are usual.",
        meaning="Beams of llm_beam_search.",
    )
    length_penalty: float = option(
        1.0,
        NUMBER,
        between(-100, 100),
        hint="Above 0 favours longer continuations; Hugging Face's default is 1.",
        meaning="A beam's score is its log-probability over its length to this power; llm_beam_search only.",
    )
    early_stopping: bool = option(
        False,
        FLAG,
        hint="true stops with the first complete beams.",
        meaning="Whether llm_beam_search ends as soon as it has enough complete beams.",
    )


def all_options() -> Iterator[Option]:
    """Every declaration, once."""
    found = SamplingOptions.options() | TextGeneration.options() | BeamSearch.options()
    yield from found.values()


def manual() -> Iterator[tuple[str, str, str | None, str, str]]:
    """(name, type, default, domain, meaning) of every option, as people write them."""
    for declared in all_options():
        default = None if declared.default in (None, ()) else json.dumps(declared.default)
        also = f" The parameter {declared.name} is the same." if len(declared.keys) > 1 else ""
        yield declared.keys[0], declared.kind.name, default, declared.domain.text, declared.meaning + also


def gather(given: Mapping[str, Any], *kinds: type[Any]) -> list[Any]:
    """An object of each of `kinds` from parameters by name, and from the JSON text under the name options, which may set them.

    22023 for a key that none of them declares, or that says something else than a parameter which was given; what beam search
    has no use for is refused by name.
    """
    values = {name: value for name, value in given.items() if name != "options"}
    said = {} if given.get("options") is None else _said(given["options"], kinds)
    for name, (declared, key, value) in said.items():
        parameter = values.get(name)
        if parameter is not None and parameter != declared.default and parameter != value:
            raise InvalidParameter(
                f"{name} is {_shown(parameter)}, and options say {key} {_shown(value)}", hint="Give one of the two."
            )
        values[name] = value
    return [kind(**{name: values[name] for name in kind.options() if name in values}) for kind in kinds]


def _said(text: str, kinds: Sequence[type[Any]]) -> dict[str, tuple[Option, str, Any]]:
    """Name -> (declaration, key, value) of what `options` have, checked."""
    by_key = {key: one for kind in kinds for one in kind.options().values() for key in one.keys}
    drawing = {key for key, one in by_key.items() if one.draws and BeamSearch in kinds}
    known = ", ".join(dict.fromkeys(one.keys[0] for key, one in by_key.items() if key not in drawing))
    said: dict[str, tuple[Option, str, Any]] = {}
    for key, value in _object(text).items():
        if key in drawing:
            raise InvalidParameter(
                f"{key} is for drawing tokens, and beam search draws none", hint=f"It takes {known}."
            )
        if key not in by_key:
            raise InvalidParameter(
                f"options have no key {_shown(key)}", hint=f"llm_generation_options tells of {known}."
            )
        one = by_key[key]
        value = one.check(value, key)
        _, before, other = said.setdefault(one.name, (one, key, value))
        if other != value:
            raise InvalidParameter(
                f"{before} and {key} are the same option, and options say {_shown(other)} and {_shown(value)}",
                hint="Give one of the two.",
            )
    return said


def _object(text: str) -> dict[str, Any]:
    hint = """Example: '{"top_k": 20}'."""
    if len(text) > MOST_OPTION_CHARACTERS:
        raise InvalidParameter(
            f"options have {len(text)} characters, and {MOST_OPTION_CHARACTERS} are the most",
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
        found = json.loads(text, object_pairs_hook=unique, parse_constant=refuse, parse_int=integer)
    except (ValueError, RecursionError) as error:
        reason = "they are nested too deeply" if isinstance(error, RecursionError) else error
        raise InvalidParameter(f"options cannot be read: {reason}", hint=hint) from None
    if not isinstance(found, dict):
        raise InvalidParameter(f"options must be an object, not {_shown(found)}", hint=hint)
    return found
