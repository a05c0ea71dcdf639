"""What a tokenizer looks up, made of a vocabulary once: arrays, which sessions can share as they lie in memory.

A symbol is a token id, or a negative number for a string that merges make and the vocabulary lacks (a truncated one): that is an
error only when it remains in a word.
"""

from collections.abc import Iterable, Mapping
from itertools import accumulate, pairwise
from operator import add
from typing import NamedTuple

import numpy as np

from ..errors import InconsistentData
from .added import AddedToken
from .pairs import EMPTY, hash_table, pair_keys, spread_of

END_OF_TEXT = "<|endoftext|>"


def _byte_characters() -> list[str]:
    """GPT-2's printable character of each byte: printable Latin-1 is itself, the others follow from U+0100."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [b for b in range(256) if b not in printable]
    return [chr(b if b in printable else 0x100 + others.index(b)) for b in range(256)]


BYTE_CHARACTERS = _byte_characters()
_CODE_OF = np.array([*map(ord, BYTE_CHARACTERS)], "<u2")


class Tables(NamedTuple):
    """A vocabulary of n tokens and m merges."""

    ids: np.ndarray  # [n] int32, ascending
    ends: np.ndarray  # [n] int64: where the bytes of each token end in `data`
    data: np.ndarray  # uint8
    byte_symbols: np.ndarray  # [256] int32
    merged: np.ndarray  # [m] int32: the symbol that each merge makes, best first
    pairs: np.ndarray  # [m + 1] int64: the pair that each merges: see pairs.Pairs
    places: np.ndarray  # [a power of two] int32: their hash table
    spread: int  # what it is made with
    missing: list[str]  # of the symbols -1, -2 and so on, in printable form
    eos_token_id: int | None
    added: dict[int, AddedToken]

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """Those of them that are arrays, by name."""
        return {name: value for name, value in self._asdict().items() if isinstance(value, np.ndarray)}

    def lacking(self, vocab: int) -> tuple[int, ...]:
        """The ids below `vocab` that are no tokens."""
        return tuple(np.setdiff1d(np.arange(vocab), self.ids, assume_unique=True).tolist())

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        return sum(array.nbytes for array in self.arrays.values())

    @property
    def are_mapped(self) -> bool:
        """Whether they are those of a file, which are read-only."""
        return not self.ids.flags.writeable


class _Symbols(dict[str, int]):
    """Printable form -> symbol. A string that has none gets one when it is asked for."""

    def __init__(self, known: Iterable[tuple[str, int]]) -> None:
        super().__init__(known)
        self.missing: list[str] = []

    def __missing__(self, token: str) -> int:
        self.missing.append(token)
        self[token] = symbol = -len(self.missing)
        return symbol

    def of(self, tokens: Iterable[str], count: int) -> np.ndarray:
        """The symbol of each of so many. [count] int32."""
        return np.fromiter(map(self.__getitem__, tokens), np.int32, count)


def made_of(
    tokens: Mapping[int, bytes],
    merges: Iterable[tuple[str, str]],
    eos_token_id: int | None = None,
    added: Mapping[int, AddedToken] | None = None,
) -> Tables:
    """The tables of `tokens`, id -> bytes; of `merges`, (left, right) in printable form, best first; and of `added`, id -> how it
    is found in a text, of those that no merges make. `<|endoftext|>` is a special one, where nothing else is said of it."""
    if not tokens:
        raise InconsistentData("the vocabulary has no tokens", hint="Load vocab.json first.")
    found, added = dict(sorted(tokens.items())), dict(added or {})
    order = sorted(found, key=added.__contains__)  # of two tokens with one text, merges make the one that was not added
    texts = token_texts([found[token_id] for token_id in order])
    symbols = _Symbols(zip(reversed(texts), reversed(order)))  # of several with one text, the first
    eos = symbols.get(END_OF_TEXT) if eos_token_id is None else eos_token_id
    end_of_text = symbols.get(END_OF_TEXT, eos)
    if end_of_text is not None and not any(token.content == END_OF_TEXT for token in added.values()):
        added.setdefault(end_of_text, AddedToken(END_OF_TEXT, special=True))
    left, right = zip(*merges) if (merges := [*merges]) else ((), ())
    keys = pair_keys(symbols.of(left, len(left)), symbols.of(right, len(left)))
    spread = spread_of(keys)
    return Tables(
        ids=np.fromiter(found, np.int32, len(found)),
        ends=np.cumsum(np.fromiter(map(len, found.values()), np.int64, len(found))),
        data=np.frombuffer(b"".join(found.values()), np.uint8),
        byte_symbols=symbols.of(BYTE_CHARACTERS, 256),
        merged=symbols.of(map(add, left, right), len(left)),
        pairs=np.append(keys, EMPTY),
        places=hash_table(keys, spread),
        spread=spread,
        missing=symbols.missing,
        eos_token_id=eos,
        added=added,
    )


def token_texts(tokens: list[bytes]) -> list[str]:
    """The printable form of each of many, of which one by one would take most of the time of loading a vocabulary."""
    text = str(_CODE_OF[np.frombuffer(b"".join(tokens), np.uint8)].data, "utf-16-le")
    return [text[start:end] for start, end in pairwise(accumulate(map(len, tokens), initial=0))]
