"""Code points as bytes of UTF-8: which sequences of ranges of bytes are a range of characters."""

from collections.abc import Iterable, Iterator

Range = tuple[int, int]  # lowest and highest, both included

LAST = 0x10FFFF
_CHARACTERS = ((1, 0xD7FF), (0xE000, LAST))  # all but U+0000 and surrogates
_ENDS = (0x7F, 0x7FF, 0xFFFF, LAST)  # the last code points of 1, 2, 3 and 4 bytes


def normalised(ranges: Iterable[Range]) -> tuple[Range, ...]:
    """The same code points in ascending ranges that neither touch nor overlap, without U+0000 and surrogates."""
    found: list[Range] = []
    for low, high in sorted((max(low, least), min(high, most)) for low, high in ranges for least, most in _CHARACTERS):
        if low > high:
            continue
        if found and low <= found[-1][1] + 1:
            found[-1] = found[-1][0], max(high, found[-1][1])
        else:
            found.append((low, high))
    return tuple(found)


def complement(ranges: Iterable[Range]) -> tuple[Range, ...]:
    """All other characters."""
    found, after = [], 0
    for low, high in normalised(ranges):
        found.append((after, low - 1))
        after = high + 1
    return normalised([*found, (after, LAST)])


def byte_ranges(low: int, high: int) -> Iterator[tuple[Range, ...]]:
    """Sequences of byte ranges that are the characters from `low` to `high`; there are no surrogates among these."""
    for end in _ENDS:
        if low <= end:
            part = min(high, end)
            yield from _of_one_length(low, part)
            low = part + 1
        if low > high:
            return


def _of_one_length(low: int, high: int) -> Iterator[tuple[Range, ...]]:
    """The same where `low` and `high` have equally many bytes: cut so that later bytes run from 80 to BF wherever first ones
    differ."""
    for bits in (6, 12, 18):
        tail = (1 << bits) - 1
        if high > 0x7F and low & ~tail != high & ~tail:
            if low & tail:
                yield from _of_one_length(low, low | tail)
                yield from _of_one_length((low | tail) + 1, high)
                return
            if high & tail != tail:
                yield from _of_one_length(low, (high & ~tail) - 1)
                yield from _of_one_length(high & ~tail, high)
                return
    yield tuple(zip(chr(low).encode(), chr(high).encode()))
