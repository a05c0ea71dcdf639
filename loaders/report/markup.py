"""HTML and SVG made of elements, in which text is escaped unless it is markup already."""

import re
from html import escape

CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f]")  # all but tab and newline: HTML has no way to write these


class Markup(str):
    """Text that is HTML already: it is not escaped again."""


def text(value: object) -> Markup:
    """`value` as HTML: markup as it is, other text escaped, control characters as their pictures."""
    if isinstance(value, Markup):
        return value
    return Markup(escape(CONTROL.sub(_picture, str(value))))


def tag(name: str, *children: object, **attributes: object) -> Markup:
    """An element. Attributes lose a final _ and get - for _; those that are None are left out."""
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{text(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Markup(f"<{name}{given}>{join(*children)}</{name}>")


def join(*children: object) -> Markup:
    """Children one after another."""
    return Markup("".join(map(text, children)))


def _picture(found: re.Match[str]) -> str:
    return "␡" if found[0] == "\x7f" else chr(0x2400 + ord(found[0]))
