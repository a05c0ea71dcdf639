"""Vocabulary files as GPT-2 ships them, `vocab.json` and `merges.txt`: bytes in, plain data out.

The `tokenizer.json` of Hugging Face is for the client: see loaders/vocabulary.py.
"""

import json
from typing import Any

from ..errors import MalformedData

MAX_TOKEN_ID = 2**31 - 1  # the column is an integer


def parse_vocab(data: bytes, source: str = "vocab.json") -> dict[str, int]:
    """Token (printable form) -> id, from a JSON object; `source` names the file in errors."""
    return _checked_vocab(_load_json(data, source), source)


def parse_merges(data: bytes, source: str = "merges.txt") -> list[tuple[str, str]]:
    """(left, right), best first. Only a first line that starts with #version is a comment: `# #` is a merge.

    A file with that line alone says that there are no merges, as transformers writes it; an empty one says nothing.
    """
    lines = _decode(data, source).split("\n")
    while lines and not lines[-1].rstrip("\r"):
        lines.pop()
    if not lines:
        raise MalformedData(
            f"{source} is empty", hint='A vocabulary without merges has a file with the line "#version: 0.2" alone.'
        )
    first = 1 if lines[0].startswith("#version") else 0
    merges = []
    for number, line in enumerate(lines[first:], first + 1):
        left, _, right = line.rstrip("\r").partition(" ")
        if not left or not right or " " in right or "\0" in line:
            raise MalformedData(
                f"{source}, line {number}: expected two tokens separated by one space, found {line[:60]!r}",
                hint="merges.txt (vocab.bpe in the original release) has one merge a line, best first.",
            )
        merges.append((left, right))
    return merges


def _decode(data: bytes, source: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise MalformedData(
            f"{source} is not UTF-8: byte {data[error.start]:#04x} at offset {error.start}",
            hint="Give the file as it was published, not compressed and not re-encoded.",
        ) from None


def _load_json(data: bytes, source: str) -> Any:
    """The JSON value; an object with a key twice is refused, because one of the two would be lost."""

    def unique(items: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(items)
        if len(value) < len(items):
            seen: set[str] = set()
            twice = next(key for key, _ in items if key in seen or seen.add(key))  # type: ignore[func-returns-value]
            raise MalformedData(f"{source} has the key {twice!r} twice", hint="Give the file as it was published.")
        return value

    try:
        return json.loads(_decode(data, source), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:  # a ValueError is also a number of thousands of digits
        raise MalformedData(
            f"{source} is not JSON: {error}", hint="Is the file complete, and is it the file you mean?"
        ) from None


def _shown(value: Any) -> str:
    """A wrong value as JSON had it; of a number with thousands of digits not even that can be printed everywhere."""
    return f"an integer of {value.bit_length()} bits" if type(value) is int and abs(value) >> 64 else repr(value)[:60]


def _checked_vocab(vocab: Any, source: str) -> dict[str, int]:
    """`vocab` if it is a vocabulary; ids need not be contiguous."""
    if not isinstance(vocab, dict) or not vocab:
        raise MalformedData(
            f"{source} holds no vocabulary: expected a JSON object of token and id",
            hint="vocab.json (encoder.json in the original release) maps each token to its id.",
        )
    owner: dict[int, str] = {}
    for token, token_id in vocab.items():
        if type(token_id) is not int or not 0 <= token_id <= MAX_TOKEN_ID:
            raise MalformedData(
                f"{source}: the id of token {token[:60]!r} is {_shown(token_id)}",
                hint="Ids are integers from 0 to 2147483647.",
            )
        if not token or "\0" in token or any("\ud800" <= c <= "\udfff" for c in token):
            raise MalformedData(
                f"{source}: the token {token!r} of id {token_id} cannot be a text",
                hint="Tokens are not empty and are written in GPT-2's printable form, where a space is Ġ.",
            )
        if owner.setdefault(token_id, token) != token:
            raise MalformedData(
                f"{source}: id {token_id} is given to {owner[token_id]!r} and to {token!r}", hint="Ids are unique."
            )
    return vocab
