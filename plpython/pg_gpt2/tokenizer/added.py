"""Tokens added to a vocabulary: found in a text as they stand, before the rest is split into words and merged.

Follows AddedVocabulary of Hugging Face `tokenizers`: at each place the longest token, from left to right, and those that are
`normalized` only in what the others leave. There is no normalizer.
"""

import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import NamedTuple

from .. import host
from ..errors import LimitExceeded
from ..limits import MOST_ADDED, MOST_ADDED_TOKEN
from .pretokenize import char_class, ranges
from .unicode_classes import LETTER, WHITE_SPACE, WORD

SEARCHED = 1 << 22  # characters, for one character of a token, between two looks for a cancel request

Part = tuple[int, int, int | None]  # start, end, and the id of the token there; None: ordinary text


class AddedToken(NamedTuple):
    """How a token is found. The names are those of Hugging Face."""

    content: str  # what stands in a text
    special: bool = False  # ordinary text, unless special tokens are asked for
    lstrip: bool = False  # takes the white space before it along
    rstrip: bool = False  # and that after it
    single_word: bool = False  # not next to a letter, a number or what else makes a word
    normalized: bool = False  # sought last


class AddedTokens:
    """The added tokens of a vocabulary, by id."""

    def __init__(self, tokens: Mapping[int, AddedToken]) -> None:
        sizes = [len(token.content) for token in tokens.values()]
        if sum(sizes) > MOST_ADDED or max(sizes, default=0) > MOST_ADDED_TOKEN:
            raise LimitExceeded(
                f"the {len(tokens)} added tokens have {sum(sizes)} characters, and one of them {max(sizes)}; all may have"
                f" {MOST_ADDED}, and one {MOST_ADDED_TOKEN}",
                hint="Tokens that merges make are not added: set added = false in llm_bpe_vocab.",
            )
        self.tokens = {token_id: token for token_id, token in tokens.items() if token.content}
        passes = [{i: token for i, token in self.tokens.items() if token.normalized == last} for last in (False, True)]
        self._passes = [_Finder(some) for some in passes if some]
        self._any_plain = any(not token.special for token in self.tokens.values())
        self._any_with_space = any(set(token.content) & set(_spaces()) for token in self.tokens.values())

    @property
    def any_special(self) -> bool:
        """Whether there is a special one."""
        return any(token.special for token in self.tokens.values())

    def split(self, text: str, special: bool) -> Iterator[Part]:
        """The parts of a text in order: added tokens, and what is between them; special ones only with `special`."""
        if self.tokens and (special or self._any_plain):
            return self._split(text, 0, len(text), special, self._passes)
        return iter([(0, len(text), None)])

    def _split(self, text: str, start: int, end: int, special: bool, passes: list["_Finder"]) -> Iterator[Part]:
        if not passes:
            yield start, end, None
            return
        for part in passes[0].split(text, start, end, special):
            if part[2] is None:
                yield from self._split(text, part[0], part[1], special, passes[1:])
            else:
                yield part

    def settled(self, text: str) -> Iterator[tuple[int, int]]:
        """Start and end of the ordinary parts of a text, last first. Between what is not white space and what is, they may be
        encoded in two, whatever is appended to the text: no token spans such a place. There are none where one could.
        """
        if not self._any_plain:
            yield 0, len(text)
        elif not self._any_with_space:
            yield from ((start, end) for start, end, token in reversed([*self.split(text, False)]) if token is None)


class _Finder:
    """Tokens that are sought together."""

    def __init__(self, tokens: Mapping[int, AddedToken]) -> None:
        self._found = {token.content: (token_id, token) for token_id, token in tokens.items()}
        contents = sorted(self._found, key=len, reverse=True)  # of alternatives, `re` takes the first that matches
        self._pattern = re.compile("|".join(map(re.escape, contents)))
        self._longest = len(contents[0])
        self._window = max(self._longest, SEARCHED // sum(map(len, contents)))

    def split(self, text: str, begin: int, end: int, special: bool) -> Iterator[Part]:
        """The parts of text[begin:end], which is all that there is for them. A match that does not count is passed over whole."""
        done = begin
        for match in self._matches(text, begin, end):
            token_id, token = self._found[match[0]]
            start, stop = match.span()
            if token.special and not special:
                continue
            if token.single_word and (
                (start > begin and _in_word(text[start - 1])) or (stop < end and _in_word(text[stop]))
            ):
                continue
            if token.lstrip:
                start = done + len(text[done:start].rstrip(_spaces()))
            if token.rstrip:
                stop = _white().match(text, stop, end).end()  # type: ignore[union-attr]  # it matches nothing, too
            if done < start:
                yield done, start, None
            if start < stop:  # else one before took all of it along
                yield start, stop, token_id
            done = stop
        if done < end:
            yield done, end, None

    def _matches(self, text: str, begin: int, end: int) -> Iterator[re.Match[str]]:
        """Matches from left to right, none within another, by windows in which they begin."""
        place = begin
        while place < end:
            host.check_interrupts()
            stop = min(end, place + self._window)
            match = self._pattern.search(text, place, min(end, stop + self._longest))
            if match is None or match.start() >= stop:
                place = stop
            else:
                yield match
                place = match.end()


@cache
def _spaces() -> str:
    return "".join(chr(i) for a, b in ranges(WHITE_SPACE) for i in range(a, b + 1))


@cache
def _white() -> re.Pattern[str]:
    return re.compile(f"[{char_class(WHITE_SPACE)}]*")


@cache
def _word() -> re.Pattern[str]:
    return re.compile(f"[{char_class(LETTER)}{char_class(WORD)}]")


def _in_word(character: str) -> bool:
    return _word().match(character) is not None
