"""Conditions of CHECK constraints, read from the text that pg_get_expr gives: comparisons of one column with constants.

`conditions` knows what people write most: IN and =, ranges, lengths, patterns, IS NOT NULL, a boolean by itself; joined by AND,
or by OR where all say which values there are. The rest is not understood, and it says so.
"""

import math
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from ..limits import MOST_BOUND_DIGITS

_TOKEN = re.compile(
    r"""\s*(?:(?P<text>'(?:[^']|'')*')|(?P<number>\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)|(?P<name>"(?:[^"]|"")*"|[^\W\d][\w$]*)
    |(?P<sign>::|<=|>=|<>|[=<>()\[\],.~-]))""",
    re.VERBOSE,
)
_FLIPPED = {"<": ">", ">": "<", "<=": ">=", ">=": "<=", "=": "=", "<>": "<>"}
_WORDS_OF_TYPES = {"varying", "precision", "without", "with", "time", "zone"}
_LENGTHS = {"length", "char_length", "character_length"}
_TEXTS = {"text", "character varying"}
_NUMBERS = {"smallint", "integer", "bigint", "numeric", "double precision", "real"}
_WHOLE = {"smallint", "integer", "bigint"}
_WIDER = {  # types that keep all values of one as they are; text drops blanks that end a character(n)
    "text": _TEXTS,
    "character varying": _TEXTS,
    "character": {"bpchar"},
    "smallint": {*_WHOLE, "numeric", "real", "double precision"},
    "integer": {"integer", "bigint", "numeric", "double precision"},
    "bigint": {"bigint", "numeric"},
    "real": {"real", "double precision"},
}
MOST_NESTED = 50

Node = tuple[Any, ...]


@dataclass
class Conditions:
    """What a column's values must fulfil; `complete` says whether it is all that was said."""

    values: list[Any] | None = None  # texts, numbers (Decimal) or booleans
    low: tuple[Decimal, bool] | None = None  # bound, and whether it is open
    high: tuple[Decimal, bool] | None = None
    least: int = 0  # characters
    most: int | None = None
    patterns: list[str] = field(default_factory=list)
    not_null: bool = False
    complete: bool = True

    def add(self, other: "Conditions") -> None:
        """Both hold."""
        if other.values is not None:
            self.values = [v for v in other.values if self.values is None or v in self.values]
        if other.low is not None:
            self.low = max(self.low or other.low, other.low)
        if other.high is not None:
            self.high = min(self.high or other.high, other.high, key=lambda bound: (bound[0], not bound[1]))
        self.least = max(self.least, other.least)
        if other.most is not None:
            self.most = other.most if self.most is None else min(self.most, other.most)
        self.patterns += other.patterns
        self.not_null |= other.not_null
        self.complete &= other.complete


class _NotUnderstoodError(Exception):
    """The text has something that this module does not know."""


def conditions(expression: str, column: str, kind: str) -> Conditions:
    """What `expression` says about `column`, which has the type `kind` without its length; VALUE is the one of a domain."""
    try:
        node = _Parser(expression).whole()
    except _NotUnderstoodError:
        return Conditions(complete=False)
    found = Conditions()
    for part in _joined("and", node):
        try:
            found.add(_Reader(column, kind).condition(part))
        except _NotUnderstoodError:
            found.complete = False
    return found


def _joined(word: str, node: Node) -> Iterator[Node]:
    if node[0] == word:
        for part in node[1]:
            yield from _joined(word, part)
    else:
        yield node


# --- from text to a tree ----------------------------------------------------------------------------------------------------


class _Parser:
    """Reads what ruleutils.c writes, which puts parentheses around every operator."""

    def __init__(self, expression: str) -> None:
        self.tokens: list[tuple[str, str]] = []
        at, end = 0, len(expression.rstrip())
        while at < end:
            token = _TOKEN.match(expression, at)
            if token is None:
                raise _NotUnderstoodError
            self.tokens.append((token.lastgroup or "", token[token.lastgroup or 0]))
            at = token.end()
        self.tokens.append(("end", ""))
        self.at = self.nested = 0

    def peek(self, *signs: str) -> bool:
        return self.tokens[self.at][1] in signs and self.tokens[self.at][0] in ("sign", "name")

    def take(self, *signs: str) -> str:
        if signs and not self.peek(*signs):
            raise _NotUnderstoodError
        self.at += 1
        return self.tokens[self.at - 1][1]

    def whole(self) -> Node:
        node = self.any_of()
        if self.tokens[self.at][0] != "end":
            raise _NotUnderstoodError
        return node

    def any_of(self) -> Node:
        return self.row("OR", self.all_of)

    def all_of(self) -> Node:
        return self.row("AND", self.negation)

    def row(self, word: str, part: Any) -> Node:
        parts = [part()]
        while self.peek(word):
            self.take()
            parts.append(part())
        return (word.lower(), parts) if len(parts) > 1 else parts[0]

    def negation(self) -> Node:
        if self.peek("NOT"):
            self.take()
            return "not", self.negation()
        left = self.operand()
        if self.peek("IS"):
            self.take()
            negated = self.peek("NOT")
            if negated:
                self.take()
            self.take("NULL")
            return "is not null" if negated else "is null", left
        if not self.peek("=", "<", ">", "<=", ">=", "<>", "~"):
            return left
        sign = self.take()
        if self.peek("ANY"):
            self.take()
            self.take("(")
            right = self.operand()
            self.take(")")
            return "any", sign, left, right
        return "compare", sign, left, self.operand()

    def operand(self) -> Node:
        node = self.primary()
        while self.peek("::"):
            self.take()
            node = "cast", node, self.type()
        return node

    def primary(self) -> Node:
        kind, said = self.tokens[self.at]
        if kind == "text":
            self.at += 1
            return "text", said[1:-1].replace("''", "'")
        if kind == "number":
            self.at += 1
            return "number", Decimal(said)
        if self.peek("("):
            self.nested += 1
            if self.nested > MOST_NESTED:
                raise _NotUnderstoodError
            self.take()
            node = self.any_of()
            self.take(")")
            self.nested -= 1
            return node
        if self.peek("-"):
            self.take()
            if self.tokens[self.at][0] != "number":
                raise _NotUnderstoodError
            return "number", Decimal(self.take()).copy_negate()
        if kind != "name":
            raise _NotUnderstoodError
        return self.named()

    def named(self) -> Node:
        word = self.take()
        if word in ("true", "false"):
            return "boolean", word == "true"
        if word == "ARRAY":
            self.take("[")
            items = [self.operand()]
            while self.peek(","):
                self.take()
                items.append(self.operand())
            self.take("]")
            return "array", items
        if self.peek("(") and word in _LENGTHS:
            self.take()
            inside = self.operand()
            self.take(")")
            return "length", inside
        if self.peek("(", ".") or word == "NULL":
            raise _NotUnderstoodError
        return "column", word[1:-1].replace('""', '"') if word[0] == '"' else word

    def type(self) -> str:
        """The name of a type; one with a length would change what is converted to it."""
        words = [self.take()]
        while self.peek(".", *_WORDS_OF_TYPES):
            words.append(self.take())
            if words[-1] == ".":
                words.append(self.take())
        if self.peek("("):
            raise _NotUnderstoodError
        if self.peek("["):
            self.take()
            self.take("]")
            words.append("[]")
        return " ".join(words).replace(" . ", ".")


# --- from a tree to conditions ----------------------------------------------------------------------------------------------


class _Reader:
    """Reads conditions on one column of one type."""

    def __init__(self, column: str, kind: str) -> None:
        self.column, self.kind = column, kind

    def condition(self, node: Node) -> Conditions:
        """One that is no AND."""
        if node[0] == "is not null" and self.is_column(node[1]):
            return Conditions(not_null=True)
        if node[0] == "or":
            return self.alternatives(node)
        if self.is_column(node):  # a boolean by itself
            return Conditions(values=[True])
        if node[0] == "not" and self.is_column(node[1]):
            return Conditions(values=[False])
        if node[0] == "any" and node[1] == "=" and self.is_column(node[2]):
            return Conditions(values=[self.constant(item) for item in self.array(node[3])])
        if node[0] == "compare":
            return self.comparison(*node[1:])
        raise _NotUnderstoodError

    def alternatives(self, node: Node) -> Conditions:
        """Values joined by OR. NULL fulfils every condition anyway, so IS NULL adds nothing."""
        values: list[Any] = []
        for part in _joined("or", node):
            if part[0] == "is null" and self.is_column(part[1]):
                continue
            found = self.condition(part)
            if found.values is None:
                raise _NotUnderstoodError
            values += found.values
        return Conditions(values=values)

    def comparison(self, sign: str, left: Node, right: Node) -> Conditions:
        if sign in _FLIPPED and (self.is_column(right) or right[0] == "length"):
            sign, left, right = _FLIPPED[sign], right, left
        if left[0] == "length":
            return self.length(sign, left[1], right)
        if not self.is_column(left):
            raise _NotUnderstoodError
        value = self.constant(right)
        if sign == "=":
            return Conditions(values=[value])
        if sign == "~" and isinstance(value, str) and self.kind in _TEXTS:
            return Conditions(patterns=[value])
        if sign == "<>" and value == "" and self.kind in _TEXTS:
            return Conditions(least=1)
        if isinstance(value, Decimal) and sign in (">", ">="):
            return Conditions(low=(value, sign == ">"))
        if isinstance(value, Decimal) and sign in ("<", "<="):
            return Conditions(high=(value, sign == "<"))
        raise _NotUnderstoodError

    def length(self, sign: str, inside: Node, right: Node) -> Conditions:
        """length(column) compared with a number of characters."""
        size = self.constant(right)
        known = self.is_column(inside) and self.kind in _TEXTS
        if not known or not isinstance(size, Decimal) or size != int(size):
            raise _NotUnderstoodError
        count = int(size)
        if sign in (">", ">="):
            return Conditions(least=count + (sign == ">"))
        if sign in ("<", "<="):
            return Conditions(most=count - (sign == "<"))
        if sign == "=":
            return Conditions(least=count, most=count)
        if sign == "<>" and not count:
            return Conditions(least=1)
        raise _NotUnderstoodError

    def is_column(self, node: Node) -> bool:
        """Whether a node is the column, perhaps converted to a type that keeps its values as they are."""
        while node[0] == "cast":
            _, node, to = node
            if to != self.kind and to not in _WIDER.get(self.kind, ()):  # a domain becomes what is under it
                return False
        return node == ("column", self.column)

    def constant(self, node: Node) -> Any:
        """The value of a constant, a text for types that are neither numbers nor booleans."""
        casts = []
        while node[0] == "cast":
            casts.append(node[2])
            node = node[1]
        if node[0] not in ("text", "number", "boolean"):
            raise _NotUnderstoodError
        if node[0] == "boolean":
            return _within_family(node[1], casts, {"boolean"})
        if node[0] == "text" and self.kind not in _NUMBERS and not (casts and casts[-1] in _NUMBERS):
            return _within_family(node[1], casts, {self.kind, *_TEXTS, *_WIDER.get(self.kind, ())} - {"character"})
        return _number(_within_family(node[1], casts, _NUMBERS), casts[::-1])

    def array(self, node: Node) -> list[Node]:
        """The members of an array of constants, each converted as the array is."""
        if node[0] == "cast":
            _, node, to = node
            if not to.endswith("[]") or to[:-3] not in {"bpchar", *_TEXTS, *_NUMBERS} - _WHOLE:
                raise _NotUnderstoodError
            return [("cast", item, to[:-3]) for item in self.array(node)]
        if node[0] != "array":
            raise _NotUnderstoodError
        return node[1]


def _within_family(value: Any, casts: list[str], family: set[str]) -> Any:
    """A value that is converted to types of a family only, and so stays what it is."""
    if not family.issuperset(casts):
        raise _NotUnderstoodError
    return value


def _number(said: str | Decimal, casts: list[str]) -> Decimal:
    """A number after its conversions, the first one first."""
    if isinstance(said, str) and not re.fullmatch(r"-?\d+(\.\d+)?([eE][+-]?\d{1,5})?", said):
        raise _NotUnderstoodError
    value = _short(Decimal(said))
    inexact = False
    for to in casts:
        if to in _WHOLE and value != value.to_integral_value():  # it is rounded
            raise _NotUnderstoodError
        if to == "numeric" and inexact:  # 6 or 15 digits are kept
            raise _NotUnderstoodError
        if to == "real":
            value = _short(_as_real(value))
        if to == "double precision":
            value = Decimal(repr(float(value)))
        inexact = to in ("real", "double precision")
    return value


def _short(value: Decimal) -> Decimal:
    """A number that a schema can have as a bound; others are of thousands of digits at worst."""
    _, digits, exponent = value.as_tuple()
    assert isinstance(exponent, int)  # it is finite
    if max(len(digits), len(digits) + exponent, -exponent) > MOST_BOUND_DIGITS:
        raise _NotUnderstoodError
    return value


def _as_real(value: Decimal) -> Decimal:
    """The real that is nearest to a number, with all its digits. Not understood where a double is too coarse to say which."""
    near = float(value)
    around = (math.nextafter(near, -math.inf), near, math.nextafter(near, math.inf))
    try:
        found = {struct.unpack("f", struct.pack("f", one))[0] for one in around}
    except OverflowError:
        raise _NotUnderstoodError from None
    if len(found) > 1:
        raise _NotUnderstoodError
    return Decimal(found.pop())
