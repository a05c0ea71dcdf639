"""Vocabulary files as GPT-2 ships them, `vocab.json` and `merges.txt`: bytes in, plain data out.

The `tokenizer.json` of Hugging Face is for the client: see loaders/vocabulary.py.
"""

from typing import Any

from ..errors import MalformedData
from .source import decode_text, load_json, shown

MAX_TOKEN_ID = 2**31 - 1  # the column is an integer


def parse_vocab(data: bytes, source: str = "vocab.json") -> dict[str, int]:
    """Token (printable form) -> id, from a JSON object; `source` names the file in errors."""
    return checked_vocab(load_json(data, source), source)


def parse_merges(data: bytes, source: str = "merges.txt") -> list[tuple[str, str]]:
    """(left, right), best first. Only a first line that starts with #version is a comment: `# #` is a merge.

    A file with that line alone says that there are no merges, as transformers writes it; an empty one says nothing.
    """
    lines = decode_text(data, source).split("\n")
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


def checked_vocab(vocab: Any, source: str) -> dict[str, int]:
    """`vocab`, token -> id, if it is a vocabulary; ids need not be contiguous."""
    if not isinstance(vocab, dict) or not vocab:
        raise MalformedData(
            f"{source} holds no vocabulary: expected a JSON object of token and id",
            hint="vocab.json (encoder.json in the original release) maps each token to its id.",
        )
    owner: dict[int, str] = {}
    for token, token_id in vocab.items():
        if type(token_id) is not int or not 0 <= token_id <= MAX_TOKEN_ID:
            raise MalformedData(
                f"{source}: the id of token {shown(token)} is {shown(token_id)}",
                hint="Ids are integers from 0 to 2147483647.",
            )
        if not token or "\0" in token or any("\ud800" <= c <= "\udfff" for c in token):
            raise MalformedData(
                f"{source}: the token {shown(token)} of id {token_id} cannot be a text",
                hint="Tokens are not empty and are written in GPT-2's printable form, where a space is \u0120.",
            )
        if owner.setdefault(token_id, token) != token:
            raise MalformedData(
                f"{source}: id {token_id} is given to {shown(owner[token_id])} and to {shown(token)}",
                hint="Ids are unique.",
            )
    return vocab
