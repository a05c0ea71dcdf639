"""Vocabulary files: `vocab.json` and `merges.txt` as GPT-2 ships them, and the `tokenizer.json` of Hugging Face.

Bytes in, plain data out, and back. Only byte-level BPE with GPT-2's own splitting is accepted: another pattern or a
normaliser would load and give wrong ids.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import FeatureNotSupported, InconsistentData, MalformedData

MAX_TOKEN_ID = 2**31 - 1  # the column is an integer
MERGES_HEADER = "#version: 0.2"


def parse_vocab(data: bytes, source: str = "vocab.json") -> dict[str, int]:
    """Token (printable form) -> id, from a JSON object; `source` names the file in errors."""
    return _checked_vocab(_load_json(data, source), source)


def parse_merges(data: bytes, source: str = "merges.txt") -> list[tuple[str, str]]:
    """(left, right), best first. Only a first line that starts with #version is a comment: `# #` is a merge."""
    lines = _decode(data, source).split("\n")
    while lines and not lines[-1].rstrip("\r"):
        lines.pop()
    first = 1 if lines and lines[0].startswith("#version") else 0
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


def parse_tokenizer_json(data: bytes, source: str = "tokenizer.json") -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary, added tokens included, and merges."""
    document = _load_json(data, source)
    model = document.get("model") if isinstance(document, dict) else None
    if not isinstance(model, dict):
        raise MalformedData(f'{source} has no "model"', hint="Give the tokenizer.json that save_pretrained wrote.")
    _refuse_other_tokenizers(document, model, source)
    vocab = _checked_vocab(_with_added_tokens(model.get("vocab"), document.get("added_tokens"), source), source)
    merges = model.get("merges")
    if not isinstance(merges, list):
        raise MalformedData(f"{source}: the model has no list of merges", hint="A BPE tokenizer has model.merges.")
    return vocab, [_merge_pair(rank, merge, source) for rank, merge in enumerate(merges)]


def render_vocab(vocab: Mapping[str, int]) -> bytes:
    """The content of vocab.json, in the order of ids."""
    ordered = dict(sorted(vocab.items(), key=lambda item: item[1]))
    return json.dumps(ordered, ensure_ascii=False).encode()


def render_merges(merges: Sequence[tuple[str, str]]) -> bytes:
    """The content of merges.txt."""
    return "".join(f"{line}\n" for line in (MERGES_HEADER, *(f"{left} {right}" for left, right in merges))).encode()


def merged_ids(vocab: Mapping[str, int], merges: Sequence[tuple[str, str]]) -> list[int]:
    """For each merge the id of the token it makes; a merge with a token that `vocab` lacks is an error naming both."""
    for rank, (left, right) in enumerate(merges):
        for token in (left, right, left + right):
            if token not in vocab:
                raise InconsistentData(
                    f"merge {rank} ({left!r}, {right!r}) needs the token {token!r}, which the vocabulary lacks",
                    hint="Load the vocabulary and the merges that belong together, or fewer merges.",
                )
    return [vocab[left + right] for left, right in merges]


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
    except (json.JSONDecodeError, RecursionError) as error:
        raise MalformedData(
            f"{source} is not JSON: {error}", hint="Is the file complete, and is it the file you mean?"
        ) from None


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
                f"{source}: the id of token {token!r} is {token_id!r}", hint="Ids are integers from 0 to 2147483647."
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


def _with_added_tokens(vocab: Any, added: Any, source: str) -> Any:
    """`vocab` and the tokens that tokenizer.json lists beside it."""
    if not isinstance(vocab, dict) or not added:
        return vocab
    whole = dict(vocab)
    for token in added if isinstance(added, list) else [added]:
        if not isinstance(token, dict) or not isinstance(token.get("content"), str):
            raise MalformedData(f"{source}: {token!r} is not an added token", hint="It has an id and a content.")
        content, token_id = token["content"], token.get("id")
        if whole.setdefault(content, token_id) != token_id:
            raise MalformedData(
                f"{source}: the added token {content!r} has id {token_id!r}, in the vocabulary {whole[content]!r}",
                hint="Write the file again with save_pretrained.",
            )
    return whole


def _merge_pair(rank: int, merge: Any, source: str) -> tuple[str, str]:
    """A merge is "left right" in older files and ["left", "right"] in newer ones."""
    parts = merge.split(" ") if isinstance(merge, str) else merge
    if isinstance(parts, list) and len(parts) == 2 and all(isinstance(part, str) and part for part in parts):
        return parts[0], parts[1]
    raise MalformedData(f"{source}: merge {rank} is {merge!r}", hint="A merge names two tokens.")


def _refuse_other_tokenizers(document: dict[str, Any], model: dict[str, Any], source: str) -> None:
    """Stops at every setting that would make ids differ from GPT-2's way of encoding."""
    splitter = document.get("pre_tokenizer") or {}
    facts = {
        f"the model type {model.get('type')!r}": model.get("type", "BPE") not in ("BPE", None),
        f"the pre-tokenizer {splitter.get('type')!r}": splitter.get("type") != "ByteLevel",
        "add_prefix_space": bool(splitter.get("add_prefix_space", True)),
        "a pattern of its own": not splitter.get("use_regex", True),
        "a normalizer": document.get("normalizer") is not None,
        **{
            name: bool(model.get(name))
            for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "ignore_merges")
        },
    }
    if unknown := [fact for fact, present in facts.items() if present]:
        raise FeatureNotSupported(
            f"{source} is not a GPT-2 tokenizer: it has {', '.join(unknown)}",
            hint="GPT-2's is byte-level BPE with the ByteLevel pre-tokenizer, no prefix space and no normalizer.",
        )
