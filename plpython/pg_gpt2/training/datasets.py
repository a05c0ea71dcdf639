"""Rows of llm_dataset: loading text into them, and reading batches out of them.

A batch is fetched when its step needs it, as the binary form of the arrays, which NumPy reads without a Python object a token.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from .. import db, host
from ..config import GPT2Config
from ..errors import InconsistentData, InvalidParameter, UndefinedObject, WrongState
from ..tokenizer.bpe import Tokenizer

MANY_TOKENS = 1 << 24  # from where room is asked for
INSERT_TOKENS = 1 << 16  # tokens a statement

Batch = tuple[np.ndarray, np.ndarray]  # tokens [B, T], targets [B, T]


class Row(NamedTuple):
    """A row of llm_dataset: tokens [T], targets [T], and the first 8 bytes of the SHA-256 of both."""

    tokens: np.ndarray
    targets: np.ndarray
    digest: int


# Rows that a model learns from: its own, and those of nobody whose ids it has.
USABLE = (
    "(model = $1 OR model IS NULL"
    " AND ($2 <= ANY (tokens || target)) IS NOT TRUE AND (0 > ANY (tokens || target)) IS NOT TRUE)"
)


def load(
    texts: Iterator[str], tokenizer: Tokenizer, model: str, block_size: int, split: str, val_fraction: float
) -> int:
    """Tokenize `texts`, one end-of-text after each, into rows of `block_size`; the number of rows."""
    if tokenizer.eos_token_id is None:
        raise WrongState(
            f'the vocabulary of "{model}" has no end-of-text token to put after each text',
            hint="Add a token <|endoftext|> to llm_bpe_vocab.",
        )
    ids = np.concatenate(list(_encoded(texts, tokenizer)) or [np.empty(0, np.int32)])
    rows = (ids.size - 1) // block_size
    if rows < 1:
        raise InvalidParameter(
            f"the source has {ids.size} tokens, too few for one row of {block_size} and the token after it",
            hint="Use a smaller block_size, or more text.",
        )
    first_val = rows - round(rows * val_fraction)
    _insert(ids, model, block_size, split, 0, first_val)
    _insert(ids, model, block_size, "val", first_val, rows)
    return rows


def _encoded(texts: Iterator[str], tokenizer: Tokenizer) -> Iterator[np.ndarray]:
    """Ids of each text and one end-of-text."""
    count, room = 0, MANY_TOKENS
    progress = host.Progress("tokenizing the source", "tokens")
    for text in texts:
        ids = np.asarray([*tokenizer.encode(text), tokenizer.eos_token_id], np.int32)
        count += ids.size
        progress.at(count)
        if count > room:
            room = 2 * count
            host.require_memory(2 * ids.itemsize * room, f"data of more than {count} tokens")  # in parts, and as one
        yield ids


def _insert(ids: np.ndarray, model: str, block_size: int, split: str, start: int, stop: int) -> None:
    """Rows start..stop of the stream `ids`, targets shifted by one."""
    step = max(1, INSERT_TOKENS // block_size)
    for first in range(start, stop, step):
        rows = min(step, stop - first)
        part = ids[first * block_size : (first + rows) * block_size + 1]
        db.run(
            "INSERT INTO {schema}.llm_dataset (model, split, tokens, target)"
            " SELECT $1, $2, $3[i * $4 + 1 : (i + 1) * $4], $3[i * $4 + 2 : (i + 1) * $4 + 1]"
            " FROM generate_series(0, $5 - 1) AS i ORDER BY i",
            ["text", "text", "int4[]", "int4", "int4"],
            *(model, split, part.tolist(), block_size, rows),
        )
        host.check_interrupts()


def row_ids(model: str, config: GPT2Config, split: str) -> np.ndarray:
    """Ids of the rows that `model` may use, in order; 55000 when there is none."""
    rows = db.query(
        f"SELECT id FROM {{schema}}.llm_dataset WHERE split = $3 AND {USABLE} ORDER BY id",
        ["text", "int4", "text"],
        *(model, config.vocab, split),
    )
    if not rows:
        raise WrongState(
            f'there is no data of split "{split}" for model "{model}"',
            hint=f"Load some: SELECT llm_dataset_load('SELECT body FROM documents', '{model}',"
            f" {min(config.n_positions, 256)}{'' if split == 'train' else ', val_fraction => 0.1'}).",
        )
    return np.asarray([row["id"] for row in rows])


def digest(model: str, config: GPT2Config) -> str:
    """SHA-256 of the training rows that `model` may use, in order; their ids play no part."""
    found = hashlib.sha256()
    for row in db.cursor(
        "SELECT array_send(tokens) AS tokens, array_send(target) AS target"
        f" FROM {{schema}}.llm_dataset WHERE split = 'train' AND {USABLE} ORDER BY id",
        ["text", "int4"],
        *(model, config.vocab),
    ):
        found.update(row["tokens"])
        found.update(row["target"])
        host.check_interrupts()
    return found.hexdigest()


def rows(ids: Sequence[int], model: str, config: GPT2Config) -> list[Row]:
    """The rows `ids`, checked, in that order."""
    found = db.query(
        "SELECT id, array_send(tokens) AS tokens, array_send(target) AS target FROM {schema}.llm_dataset WHERE id = ANY ($1)",
        ["int8[]"],
        list(map(int, ids)),
    )
    by_id = {}
    for row in found:
        tokens, targets = _ints(row["id"], row["tokens"]), _ints(row["id"], row["target"])
        _check_row(row["id"], tokens, targets, model, config)
        digest = hashlib.sha256(row["tokens"] + row["target"]).digest()
        by_id[row["id"]] = Row(tokens, targets, int.from_bytes(digest[:8], "big", signed=True))
    for row_id in ids:
        if row_id not in by_id:
            raise UndefinedObject(f"llm_dataset has no row {row_id}", hint="SELECT id FROM llm_dataset lists the rows.")
    return [by_id[row_id] for row_id in ids]


def batches(found: Iterable[Row]) -> list[Batch]:
    """Rows as batches of equal length, in their order within a length."""
    by_length: dict[int, list[Row]] = {}
    for row in found:
        by_length.setdefault(row.tokens.size, []).append(row)
    return [(np.stack([r.tokens for r in rows]), np.stack([r.targets for r in rows])) for rows in by_length.values()]


def _ints(row_id: int, sent: bytes) -> np.ndarray:
    """int4[] in PostgreSQL's binary form: a header of 20 bytes, then length and value, big-endian. NULLs are refused."""
    if int.from_bytes(sent[:4], "big") != 1 or int.from_bytes(sent[4:8], "big"):
        raise InconsistentData(
            f"row {row_id} of llm_dataset has an array with nulls or more than one dimension", hint="Delete the row."
        )
    return np.frombuffer(sent, ">i4", offset=20).reshape(-1, 2)[:, 1].astype(np.int64)


def _check_row(row_id: int, tokens: np.ndarray, target: np.ndarray, model: str, config: GPT2Config) -> None:
    if tokens.size > config.n_positions:
        raise InvalidParameter(
            f"row {row_id} of llm_dataset has {tokens.size} tokens, more than the {config.n_positions} positions of"
            f' model "{model}"',
            hint=f"Load the data with block_size => {config.n_positions} or less.",
        )
    for ids in (tokens, target):
        if ids.min() < 0 or ids.max() >= config.vocab:
            raise InvalidParameter(
                f'row {row_id} of llm_dataset has a token id outside 0..{config.vocab - 1}, the ids of model "{model}"',
                hint="Tokenize the text with this model's vocabulary: llm_dataset_load.",
            )
