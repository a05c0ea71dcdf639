r"""Splits text into GPT-2's pretokens, the words inside which byte pairs merge; follows OpenAI's encoder.py.

The pattern is `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`. The standard library has no
`\p`, and its `\s` and `\d` differ from the reference, so the classes come from the pinned `unicode_classes`.
"""

import re
from bisect import bisect_right
from collections.abc import Iterator
from functools import cache
from sys import maxunicode

from .. import host
from ..errors import InvalidParameter
from ..limits import MOST_WORD
from .unicode_classes import LETTER, NUMBER, WHITE_SPACE

PIECE = 1024  # characters; small, so that one rare character slows one piece down and not the whole text
LONG_PIECE = 1 << 16  # without a place to cut: its words are looked for in windows
LOOK_AHEAD = 3  # characters after a word that its match may have looked at: 'll
STAND_INS_A_CHECK = 1 << 16
WORDS_SOUGHT = 256  # characters at the end of a text that are searched first for the last place to cut
WINDOW = 1 << 22  # characters that are searched between two looks for an interrupt


def pretokens(text: str) -> list[str]:
    """The pretokens of `text`; joined they are `text` again."""
    return [word for words in split(text) for word in words]


def word_too_long(size: int) -> InvalidParameter:
    """The error for a word of so many bytes or more."""
    return InvalidParameter(
        f"a word of {size} bytes or more is too long: one takes {MOST_WORD}",
        hint="What has no white space, or nothing else, is one word to GPT-2's tokenizer: encode it in parts.",
    )


def pieces(text: str, size: int) -> Iterator[str]:
    """A text in pieces of so many characters, and those up to the next place to cut.

    A piece ends between a character that is not white space and one that is. No pretoken spans that place, for white
    space only starts one; and no pretoken that ends before it looks beyond it, for `(?!\\S)` follows white space.
    """
    start = 0
    while start < len(text):
        end = _cut(text, start + size)
        yield text[start:end]
        start = end


def split(text: str) -> Iterator[list[str]]:
    """Pretokens in lists, each of a piece of about PIECE characters."""
    for piece in pieces(text, PIECE):
        if len(piece) < LONG_PIECE:
            yield _words(piece)
        else:
            yield from _word_lists(piece, 0, len(piece))


def _cut(text: str, start: int) -> int:
    """The first place from `start` on where a piece may end, else the end of the text."""
    while start < len(text):
        if found := _CUT.search(text, start, start + WINDOW):
            return found.end() - 1
        start += WINDOW - 1
        host.check_interrupts()
    return len(text)


def last_cut(text: str) -> int:
    """The last place where a piece may end: whatever is appended to `text`, the words before it stay as they are. 0: none."""
    end, window = len(text), WORDS_SOUGHT
    while end > 1:
        start = max(0, end - window)
        if found := [match.end() - 1 for match in _CUT.finditer(text, start, end)]:
            return found[-1]
        end, window = start + 1, min(4 * window, WINDOW)  # a place to cut is between two characters
        host.check_interrupts()
    return 0


def _word_lists(text: str, start: int, end: int) -> Iterator[list[str]]:
    """`_words` of a long piece in windows, with looks for an interrupt. A window without a whole word is doubled."""
    window = LONG_PIECE
    while start < end:
        host.check_interrupts()
        stop = min(start + window, end)
        words = _words(text[start:stop])
        if stop < end:  # what follows may belong to the last words
            unsure = 0
            while words and unsure < LOOK_AHEAD:
                unsure += len(words.pop())
        if words:
            yield words
            start += sum(map(len, words))
            window = LONG_PIECE
        elif window > MOST_WORD:
            raise word_too_long(window)
        else:
            window *= 2


def _words(piece: str) -> list[str]:
    """Pretokens of one piece, by the cheapest pattern that knows its characters."""
    if piece.isascii():
        return _ASCII.findall(piece)
    if len(piece.encode("utf-16-le", "surrogatepass")) == 2 * len(piece):  # no character beyond U+FFFF
        return _bmp().findall(piece)
    # Ranges beyond U+FFFF make `re` five times slower: put characters of the same class in their place
    words, end = [], 0
    for stand_in in _bmp().findall(_ASTRAL.sub(_stand_ins, piece)):
        start, end = end, end + len(stand_in)
        words.append(piece[start:end])
    return words


def ranges(table: str, first: int = 0, last: int = maxunicode) -> list[tuple[int, int]]:
    """The ranges of a table of `unicode_classes` that begin between `first` and `last`."""
    pairs = (word.partition("-")[::2] for word in table.split())
    found = [(int(a, 16), int(b or a, 16)) for a, b in pairs]
    return [(a, b) for a, b in found if first <= a <= last]


def char_class(table: str, last: int = maxunicode) -> str:
    """The inside of a `re` character class: the members of a table up to `last`."""
    return "".join(f"\\U{a:08x}-\\U{min(b, last):08x}" for a, b in ranges(table, last=last))


def _splitter(last: int) -> re.Pattern[str]:
    """GPT-2's pattern for text without characters beyond `last`.

    Contractions come after letters, which excludes nothing: no match of either can start like one of the other. And letters
    come in two cases, because `re` is quicker to see that a match cannot begin with a space than to try one that may.
    """
    letter, number, space = (char_class(table, last) for table in (LETTER, NUMBER, WHITE_SPACE))
    return re.compile(
        f" [{letter}]+|[{letter}]+|'(?:[stmd]|ll|[rv]e)| ?[{number}]+| ?[^{space}{letter}{number}]+"
        f"|[{space}]+(?![^{space}])|[{space}]+"
    )


@cache
def _bmp() -> re.Pattern[str]:
    """Compiled when first needed, because that takes some 20 ms."""
    return _splitter(0xFFFF)


@cache
def _astral_ranges() -> tuple[list[int], list[tuple[int, str]]]:
    """Starts of the ranges beyond U+FFFF, ascending, and for each its end and a character of its class."""
    found = [(a, b, "a") for a, b in ranges(LETTER, first=0x10000)]
    found += [(a, b, "1") for a, b in ranges(NUMBER, first=0x10000)]
    found.sort()
    return [a for a, _, _ in found], [(b, like) for _, b, like in found]


def _stand_ins(run: re.Match[str]) -> str:
    """For characters beyond U+FFFF as many of the same classes: a, 1 or ! (no contraction contains them)."""
    starts, ends = _astral_ranges()
    likes = []
    for n, c in enumerate(map(ord, run[0])):
        if n % STAND_INS_A_CHECK == 0:
            host.check_interrupts()
        end, like = ends[bisect_right(starts, c) - 1] if c >= starts[0] else (0, "!")
        likes.append(like if c <= end else "!")
    return "".join(likes)


_ASCII = _splitter(0x7F)
_ASTRAL = re.compile("[\U00010000-\U0010ffff]+")
_CUT = re.compile("[^{0}][{0}]".format(char_class(WHITE_SPACE, 0xFFFF)))
