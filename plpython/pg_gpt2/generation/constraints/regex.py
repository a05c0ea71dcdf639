"""Patterns: the regular part of what PostgreSQL's and Python's regular expressions have in common, as a grammar.

A text that is made of the grammar matches the whole pattern in both; only PostgreSQL has [[:alpha:]] and the like. What else
they read differently, or what is not regular, is refused with its place. There is no recursion: a pattern may be nested as deeply
as it is long.
"""

from ... import host
from ...errors import InvalidRegularExpression
from . import classes
from .grammar import Node, chars, choices, either, repeat, seq, text

MOST_TIMES = 2**31 - 1  # that a quantifier may say
BYTES_A_CHARACTER = 500  # of memory, that a pattern takes at most
MANY_CHARACTERS = 10_000  # of a pattern, from which memory is asked for

_LETTERS = {"n": "\n", "t": "\t", "r": "\r", "f": "\f", "v": "\v", "a": "\a"}
_DIGITS = {"x": 2, "u": 4, "U": 8}  # of an escape in hexadecimal
_HEXADECIMAL = frozenset("0123456789abcdefABCDEF")
_BETWEEN = "a place between characters is not regular: write the characters that stand there"
_REFUSED = {  # escapes, and why
    **dict.fromkeys("123456789", "a back reference is not regular: repeat the group's pattern"),
    **dict.fromkeys("mMyYbB", _BETWEEN),
    "0": "no text has U+0000",
}
_GROUPS = {  # what may follow "(?", and why it is refused
    "=": "look-ahead is not regular: write what may stand there",
    "!": "look-ahead is not regular: write what may stand there",
    "<": "look-behind and named groups are not supported: write (?:...)",
    "P": "PostgreSQL has no named groups: write (?:...)",
    ">": "PostgreSQL has no atomic groups: write (?:...)",
    "#": "comments are not supported: leave it out",
}


def parse(pattern: str, before: int = 0) -> Node:
    """The grammar of the texts that match a whole pattern. 2201B where it cannot be read or is not regular; errors count its
    characters, and so many that stood `before` it."""
    if len(pattern) > MANY_CHARACTERS:
        host.require_memory(BYTES_A_CHARACTER * len(pattern), f"a pattern of {len(pattern)} characters")
    return _Parser(pattern, before).parse()


class _Group:
    """A group that is being read: alternatives that are complete, and the parts of the present one."""

    def __init__(self, place: int, at_start: bool) -> None:
        self.place = place
        self.at_start = at_start  # whether nothing comes before it
        self.alternatives: list[Node] = []
        self.texts: list[str] = []  # alternatives that are letters only
        self.parts: list[Node] = []
        self.letters: list[str] = []  # after these parts
        self.repeatable = False  # whether a quantifier may follow
        self.anchored = False  # whether it has ^ or $
        self.ended = False  # whether the present alternative has $: nothing may follow
        self.ends = False  # whether any alternative has

    def add(self, part: Node | str, repeatable: bool = True) -> None:
        """A part that comes next: a letter, or anything else."""
        self.repeatable = repeatable
        if isinstance(part, str):
            self.letters.append(part)
        else:
            self.spell()
            self.parts.append(part)

    def spell(self) -> None:
        """Make a part of the letters."""
        if self.letters:
            self.parts.append(text("".join(self.letters)))
            self.letters = []

    def take_last(self) -> Node:
        """The last letter or part, which is no part any more."""
        return chars([(ord(self.letters[-1]), ord(self.letters.pop()))]) if self.letters else self.parts.pop()

    def next_alternative(self) -> None:
        """Complete the present one."""
        if self.parts:
            self.spell()
            self.alternatives.append(seq(*self.parts))
        else:
            self.texts.append("".join(self.letters))
        self.ends |= self.ended
        self.parts, self.letters, self.repeatable, self.ended = [], [], False, False

    def node(self) -> Node:
        """All alternatives."""
        self.next_alternative()
        return either(choices(self.texts), *self.alternatives)


class _Parser:
    def __init__(self, pattern: str, before: int) -> None:
        self.pattern = pattern
        self.before = before
        self.at = 0
        self.groups = [_Group(0, at_start=True)]

    def parse(self) -> Node:
        steps = {"(": self.open, ")": self.close, "|": self.alternative, "^": self.start, "$": self.end}
        steps |= {**dict.fromkeys("*+?", self.quantifier), "\\A": self.start, "\\Z": self.end}
        while self.at < len(self.pattern):
            host.check_interrupts()
            character = self.pattern[self.at]
            if character == "\\":
                character += self.peek(1)
            if character == "{" and self.peek(1) in (*"0123456789", ","):
                self.quantifier()
            elif character in steps:
                steps[character]()
                self.at += len(character) == 2
            else:
                self.atom(character)
        if len(self.groups) > 1:
            raise self.refuse("a group is not closed", self.groups[-1].place)
        return self.groups[0].node()

    # --- groups and anchors

    def open(self) -> None:
        place, group = self.at, self.groups[-1]
        if self.peek(1) == "?":
            if (found := self.peek(2)) != ":":
                raise self.refuse(_GROUPS.get(found, "options within a pattern are not supported"))
            self.at += 2
        self.at += 1
        self.must_go_on(place)
        self.groups.append(_Group(place, group.at_start and not (group.parts or group.letters)))

    def close(self) -> None:
        if len(self.groups) == 1:
            raise self.refuse("a parenthesis closes no group")
        inner = self.groups.pop()
        node, outer = inner.node(), self.groups[-1]
        outer.add(node, repeatable=not inner.anchored)
        outer.anchored |= inner.anchored
        outer.ended |= inner.ends
        self.at += 1

    def alternative(self) -> None:
        self.groups[-1].next_alternative()
        self.at += 1

    def start(self) -> None:
        group = self.groups[-1]
        if group.parts or group.letters or not group.at_start:
            raise self.refuse("^ may stand at the beginning only")
        group.anchored, group.repeatable = True, False
        self.at += 1

    def end(self) -> None:
        group = self.groups[-1]
        group.anchored = group.ended = True
        group.repeatable = False
        self.at += 1

    def must_go_on(self, place: int) -> None:
        """Something is about to come, which must not be after $."""
        if self.groups[-1].ended:
            raise self.refuse("$ may stand at the end only", place)

    # --- quantifiers

    def quantifier(self) -> None:
        place, group = self.at, self.groups[-1]
        least, most = self.bounds()
        if not group.repeatable:
            raise self.refuse("there is nothing that this could repeat", place)
        if self.peek() == "?":  # lazy: it decides what is captured, not what matches
            self.at += 1
        group.add(repeat(group.take_last(), least, most), repeatable=False)

    def bounds(self) -> tuple[int, int | None]:
        """How often, of *, +, ? or {m,n}, which is read."""
        character = self.pattern[self.at]
        self.at += 1
        if character != "{":
            return (1 if character == "+" else 0), (1 if character == "?" else None)
        place = self.at - 1
        least = most = self.count(place)
        if self.peek() == ",":
            self.at += 1
            most = None if self.peek() == "}" else self.count(place)
        if self.peek() != "}" or least is None:
            raise self.refuse(r"a bound is {m}, {m,} or {m,n}; write \{ for the character", place)
        self.at += 1
        if most is not None and most < least:
            raise self.refuse(f"{least} is more than {most}", place)
        return least, most

    def count(self, place: int) -> int | None:
        """A number, None where there is none."""
        digits = self.at
        while self.peek() in (*"0123456789",):
            self.at += 1
        found = self.pattern[digits : self.at]
        if len(found) > 10 or (found and int(found) > MOST_TIMES):
            raise self.refuse(f"nothing is repeated more than {MOST_TIMES} times", place)
        return int(found) if found else None

    # --- characters

    def atom(self, character: str) -> None:
        place = self.at
        self.must_go_on(place)
        if character == "[":
            part: Node | str = self.bracket()
        elif character[0] == "\\":
            found = self.escape()
            part = found if isinstance(found, str) else chars(found.surely)
        else:
            self.at += 1
            part = chars(classes.ANY.surely) if character == "." else self.storable(character, place)
        self.groups[-1].add(part)

    def escape(self) -> classes.Class | str:
        r"""What \... says: a class, or a character."""
        place, letter = self.at, self.peek(1)
        self.at += 2
        if letter in classes.ESCAPES:
            return classes.ESCAPES[letter]
        if letter in _LETTERS:
            return _LETTERS[letter]
        if letter in _DIGITS:
            return self.storable(self.hexadecimal(place, _DIGITS[letter]), place)
        if not letter:
            raise self.refuse("a backslash ends the pattern", place)
        if letter.isascii() and letter.isalnum():
            raise self.refuse(_REFUSED.get(letter, f"\\{letter} is not the same everywhere, or unknown"), place)
        return self.storable(letter, place)

    def hexadecimal(self, place: int, count: int) -> str:
        digits = self.pattern[self.at : self.at + count]
        self.at += count
        if len(digits) < count or not _HEXADECIMAL.issuperset(digits):
            raise self.refuse(f"{count} hexadecimal digits must follow", place)
        if count == 2 and self.peek() in _HEXADECIMAL:
            raise self.refuse(r"PostgreSQL reads a third digit: write \u and four", place)
        if int(digits, 16) > 0x10FFFF:
            raise self.refuse("there is no such character", place)
        return chr(int(digits, 16))

    def storable(self, character: str, place: int) -> str:
        """A character, if a text can have it."""
        if character == "\0" or "\ud800" <= character <= "\udfff":
            raise self.refuse(f"no text has U+{ord(character):04X}", place)
        return character

    # --- brackets

    def bracket(self) -> Node:
        place = self.at
        self.at += 1
        negated = self.peek() == "^"
        self.at += negated
        parts: list[classes.Class] = []
        while not parts or self.peek() != "]":
            parts.append(self.in_bracket(place))
        self.at += 1
        found = classes.union(parts)
        return chars((found.opposite() if negated else found).surely)

    def in_bracket(self, opened: int) -> classes.Class:
        """A character, a range or a class within brackets."""
        place, low = self.at, self.element(opened)
        if self.peek() != "-" or self.peek(1) == "]":
            return low if isinstance(low, classes.Class) else classes.of([(ord(low), ord(low))])
        self.at += 1
        high = self.element(opened)
        if isinstance(low, classes.Class) or isinstance(high, classes.Class) or high < low:
            raise self.refuse("this is no range of characters", place)
        if self.peek() == "-" and self.peek(1) != "]":
            raise self.refuse("two ranges share an end", place)
        return classes.of([(ord(low), ord(high))])

    def element(self, opened: int) -> classes.Class | str:
        place, character = self.at, self.peek()
        if not character:
            raise self.refuse("a bracket is not closed", opened)
        if character == "\\":
            return self.escape()
        if character == "[" and self.peek(1) in (".", "=", ":"):
            return self.posix()
        self.at += 1
        return self.storable(character, place)

    def posix(self) -> classes.Class:
        """A class like [:alpha:], of PostgreSQL's."""
        place, end = self.at, self.pattern.find(":]", self.at, self.at + 12)
        name = self.pattern[place + 2 : end]
        if self.peek(1) != ":" or name not in classes.POSIX:
            raise self.refuse(f"the classes within brackets are {', '.join(f'[:{n}:]' for n in classes.POSIX)}")
        self.at = end + 2
        return classes.POSIX[name]

    # --- what is read

    def peek(self, ahead: int = 0) -> str:
        """A character to come; '' at the end."""
        return self.pattern[self.at + ahead : self.at + ahead + 1]

    def refuse(self, reason: str, place: int | None = None) -> InvalidRegularExpression:
        number = 1 + self.before + (self.at if place is None else place)
        return InvalidRegularExpression(
            f"the regular expression cannot be used, character {number}: {reason}",
            hint="It may have literals, classes, groups, alternatives and quantifiers.",
        )
