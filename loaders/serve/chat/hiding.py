"""Messages in which nothing can become a special token: what would is one private character while a template works.

Without it whoever writes a message could end it, and begin another's. Where the rendered chat has its ids, what was hidden is
text again.
"""

import re
from collections.abc import Collection, Mapping, Sequence

PRIVATE = range(0xF0000, 0xFFFFE)  # characters that Unicode leaves to private use, on its plane 15


class Hidden:
    """Hides what would be one of the `special` tokens in characters that are not `taken`; `texts` says what each stands for."""

    def __init__(self, special: Collection[str], taken: Collection[str]) -> None:
        beginnings = {token[:length] for token in special for length in range(1, len(token))}
        self._whole = _one_of(special)
        self._begun = re.compile(rf"(?:{_one_of(beginnings).pattern})(?=\s*\Z)") if beginnings else None
        self._free = (chr(number) for number in PRIVATE if chr(number) not in taken)
        self._characters: dict[str, str] = {}

    def hide(self, text: str) -> str:
        """`text` so, and without the beginning of a token at its end, which what follows could complete."""
        for pattern in (self._whole, self._begun):
            if pattern is not None and pattern.pattern:
                text = pattern.sub(lambda found: self._character(found[0]), text)
        return text

    @property
    def texts(self) -> dict[str, str]:
        """Characters, and what they stand for."""
        return {character: text for text, character in self._characters.items()}

    def _character(self, text: str) -> str:
        if text not in self._characters:
            self._characters[text] = next(self._free)
        return self._characters[text]


def _one_of(texts: Collection[str]) -> re.Pattern[str]:
    """The longest of `texts` at a place; the empty pattern for none."""
    return re.compile("|".join(map(re.escape, sorted(texts, key=len, reverse=True))))


def hidden_in(
    messages: Sequence[Mapping[str, str]], special: Collection[str], template: str
) -> tuple[list[dict[str, str]], Hidden]:
    """Messages, whose roles are known words, without what would be special; and what that was."""
    taken = {character for text in (template, *(t for m in messages for t in m.values())) for character in text}
    hidden = Hidden(special, taken)
    return [
        {key: value if key == "role" else hidden.hide(value) for key, value in message.items()} for message in messages
    ], hidden
