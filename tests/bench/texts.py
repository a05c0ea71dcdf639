"""Texts to measure with: English from documentation that Python packages bring, and words of many scripts."""

import random
import re
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from shapes import ROOT

DOCSTRING = re.compile(r'"""(.*?)"""', re.DOTALL)
SCRIPTS = {  # ranges of letters: each word is of one of them
    "latin": "a-zß-öø-ÿ",
    "greek": "α-ω",
    "cyrillic": "а-яё",
    "hebrew": "א-ת",
    "arabic": "ا-ي",
    "devanagari": "क-ह",
    "thai": "ก-ฮ",
    "hangul": "가-힣",
    "kana": "ぁ-ん",
    "han": "一-龥",
    "emoji": "😀-🙏",
    "digits": "0-9",
}
DICTIONARY, RARE = 5_000, 0.1  # words of a script; share of words that were never seen before


def english(size: int) -> tuple[str, int]:
    """`size` characters of ASCII: this project's text, then docstrings of Python; and how many until it repeats."""
    parts, length = [], 0
    for part in _prose():
        parts.append(part)
        length += len(part) + 1
        if length >= size:
            break
    text = "\n".join(parts)
    return (text * (size // len(text) + 1))[:size], min(size, len(text))


def _prose() -> Iterator[str]:
    yield _ascii((ROOT / "loaders" / "data" / "postgresql_docs.txt").read_text(encoding="utf-8"))
    seen = set()
    for place in ("stdlib", "purelib"):
        for file in sorted(Path(sysconfig.get_path(place)).rglob("*.py")):
            for found in DOCSTRING.findall(file.read_text(encoding="utf-8", errors="ignore")):
                text = _ascii(found)
                if len(text) > 100 and text not in seen:
                    seen.add(text)
                    yield text


def _ascii(text: str) -> str:
    return text.encode("ascii", "ignore").decode()


def mixed(size: int, seed: int = 1) -> str:
    """About `size` bytes of UTF-8 in twelve scripts: sentences of one script, few words often and many seldom."""
    rng = random.Random(seed)
    letters = {name: _letters(ranges) for name, ranges in SCRIPTS.items()}
    words = {name: [_word(rng, each) for _ in range(DICTIONARY)] for name, each in letters.items()}
    parts, length = [], 0
    while length < size:
        script = rng.choice(list(SCRIPTS))
        sentence = []
        for _ in range(rng.randrange(4, 16)):
            rank = int(DICTIONARY ** rng.random()) - 1  # frequencies fall as 1 / rank
            sentence.append(_word(rng, letters[script]) if rng.random() < RARE else words[script][rank])
        parts.append(("" if script in ("han", "kana", "thai") else " ").join(sentence) + rng.choice((". ", ", ", "\n")))
        length += len(parts[-1].encode())
    return "".join(parts)


def _letters(ranges: str) -> list[str]:
    pairs = re.findall(r"(.)-(.)|(.)", ranges)
    return [chr(c) for low, high, one in pairs for c in range(ord(low or one), ord(high or one) + 1)]


def _word(rng: random.Random, letters: list[str]) -> str:
    return "".join(rng.choices(letters, k=rng.randrange(2, 9)))
