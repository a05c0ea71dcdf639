"""Formats of strings: dates that are in the calendar, times, uuid, email, as grammars. PostgreSQL's types read what fits them."""

from .grammar import Node, chars, choices, either, optional, repeat, seq, text


def _number(low: int, high: int) -> Node:
    return choices(f"{number:02}" for number in range(low, high + 1))


def _date() -> Node:
    """Dates that are in the calendar, from the year 1 to 9999."""
    digit = chars([(48, 57)])
    year = either(
        *(seq(text("0" * zeros), chars([(49, 57)]), repeat(digit, 3 - zeros, 3 - zeros)) for zeros in range(4))
    )
    by_four = range(4, 100, 4)
    leap = either(
        seq(digit, digit, choices(f"{number:02}" for number in by_four)),
        choices(f"{number:02}00" for number in by_four),
    )
    days = either(
        seq(choices(f"-{month:02}-" for month in (1, 3, 5, 7, 8, 10, 12)), _number(1, 31)),
        seq(choices(f"-{month:02}-" for month in (4, 6, 9, 11)), _number(1, 30)),
        seq(text("-02-"), _number(1, 28)),
    )
    return either(seq(year, days), seq(leap, text("-02-29")))


def _time() -> Node:
    """A time of the day with its distance from UTC, without leap seconds; PostgreSQL keeps six digits of a second."""
    sixty = _number(0, 59)
    digits = repeat(chars([(48, 57)]), 1, 6)
    zone = seq(choices("+-"), either(seq(_number(0, 13), text(":"), sixty), text("14:00")))
    return seq(
        _number(0, 23), text(":"), sixty, text(":"), sixty, optional(seq(text("."), digits)), either(text("Z"), zone)
    )


def _uuid() -> Node:
    digit = chars([(48, 57), (97, 102)])
    first, *more = (repeat(digit, count, count) for count in (8, 4, 4, 4, 12))
    return seq(first, *(seq(text("-"), part) for part in more))


def _email() -> Node:
    """name@example.org: letters and digits, of the other characters those that nobody refuses, and no part too long."""
    letters = [(97, 122), (65, 90)]
    alnum = chars([*letters, (48, 57)])
    atom = repeat(chars([*letters, (48, 57), *((ord(c), ord(c)) for c in "_+-")]), 1, 20)
    name = seq(alnum, repeat(chars([*letters, (48, 57), *((ord(c), ord(c)) for c in "_+-")]), 0, 19))
    hyphened = seq(repeat(chars([*letters, (48, 57), (45, 45)]), 0, 30), alnum)
    label = seq(alnum, optional(hyphened))
    domain = seq(repeat(seq(label, text(".")), 1, 3), repeat(chars(letters), 2, 10))
    return seq(name, repeat(seq(text("."), atom), 0, 2), text("@"), domain)


def of_format(name: str) -> Node | None:
    """Texts of a format; None where it is unknown."""
    if name not in _formats:
        if name not in _FORMATS:
            return None
        _formats[name] = _FORMATS[name]()
    return _formats[name]


_FORMATS = {
    "date": _date,
    "time": _time,
    "date-time": lambda: seq(_date(), text("T"), _time()),
    "uuid": _uuid,
    "email": _email,
}
FORMATS = tuple(_FORMATS)
_formats: dict[str, Node] = {}
