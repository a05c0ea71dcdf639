"""Rows of llm_dataset: loading text into them, and reading batches out of them.

A batch is fetched when its step needs it, as the binary form of the arrays, which NumPy reads without a Python object a token.
"""

import hashlib
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ... import host
from ...core.config import GPT2Config
from ...core.ops import IGNORED
from ...errors import InconsistentData, InvalidParameter, UndefinedObject, WrongState
from ...tokenizer.bpe import Tokenizer
from ...training.trainer import Batch, nothing_counts
from .. import db
from ..prompts import end_of_text
from ..storage.store import find_config

MANY_TOKENS = 1 << 24  # from where room is asked for
INSERT_TOKENS = 1 << 16  # tokens a statement


class Row(NamedTuple):
    """A row of llm_dataset: tokens [T], targets [T], its weight, and the first 8 bytes of the SHA-256 of all that."""

    tokens: np.ndarray
    targets: np.ndarray
    weight: float
    digest: int

    @property
    def is_plain(self) -> bool:
        """Whether all of its targets count, with weight 1."""
        return self.weight == 1 and self.targets.min() != IGNORED


class RowGone(UndefinedObject):
    """A row of llm_dataset is not there."""


@contextmanager
def unchanged(model: str) -> Iterator[None]:
    """Around the steps of a run, which names rows itself: one that is gone was deleted by somebody else (22000)."""
    try:
        yield
    except RowGone as error:
        raise InconsistentData(
            f'the data of model "{model}" were changed by somebody else during training: {error.message}',
            hint="Do not delete or replace rows of llm_dataset while a model is trained; then train again.",
        ) from None


# Rows that a model learns from: its own, and those of no model with ids that it has.
USABLE = (
    "(model = $1 OR model IS NULL"
    " AND ($2 <= ANY (tokens || target)) IS NOT TRUE AND (0 > ANY (tokens ||"
    f" CASE WHEN array_ndims(target) = 1 THEN array_remove(target, {IGNORED}) ELSE target END)) IS NOT TRUE)"
)


@dataclass(frozen=True)
class Cut:
    """How texts become rows: of `block_size` tokens, across texts, or (`pack` false) of up to that many tokens of one text.

    The last `val_fraction` of the rows go to the split val. `replace`: the rows that the model has in these splits go.
    """

    block_size: int
    split: str
    val_fraction: float
    replace: bool
    pack: bool


@dataclass(frozen=True)
class Places:
    """Where rows begin in a stream of ids, how long they are, how many targets at their beginnings carry no loss, and their
    weights; None: none, and 1."""

    starts: np.ndarray
    lengths: np.ndarray
    ignored: np.ndarray | None = None
    weights: np.ndarray | None = None

    def part(self, part: slice) -> "Places":
        """Some of the rows."""
        ignored, weights = (None if given is None else given[part] for given in (self.ignored, self.weights))
        return Places(self.starts[part], self.lengths[part], ignored, weights)


def add_texts(texts: Iterator[str], tokenizer: Tokenizer, model: str, cut: Cut) -> int:
    """Tokenize `texts`, one end-of-text after each, into rows; their number."""
    eos = end_of_text(model, find_config(model), tokenizer, "training data")
    parts = list(_encoded(texts, tokenizer, eos)) or [np.empty(0, np.int32)]
    ids, sizes = np.concatenate(parts), np.asarray([part.size for part in parts])
    del parts
    starts, lengths = _packed(ids.size, cut.block_size) if cut.pack else _text_by_text(sizes, cut.block_size)
    if not add_rows(ids, Places(starts, lengths), model, cut):
        whole = f"one row of {cut.block_size} and the token after it" if cut.pack else "one row"
        raise InvalidParameter(
            f"the source has {ids.size} tokens, too few for {whole}", hint="Use a smaller block_size, or more text."
        )
    return starts.size


def add_rows(ids: np.ndarray, places: Places, model: str, cut: Cut) -> int:
    """Rows of the stream `ids` into the splits; their number."""
    n_rows = places.starts.size
    first_val = n_rows - round(n_rows * (cut.val_fraction if cut.split == "train" else 0))
    for split, part in ((cut.split, slice(first_val)), ("val", slice(first_val, None))):
        if (here := places.part(part)).starts.size:
            _make_room(model, split, cut.replace)
            _insert(ids, model, split, here)
    return n_rows


def _packed(n_ids: int, block_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Where rows begin in the stream of ids, and their lengths: what does not fill a last row is left out."""
    starts = np.arange(max(0, (n_ids - 1) // block_size)) * block_size
    return starts, np.full_like(starts, block_size)


def _text_by_text(sizes: np.ndarray, block_size: int) -> tuple[np.ndarray, np.ndarray]:
    """The same for texts of `sizes` ids, end-of-text included, whose rows begin and end with them: nothing is left out."""
    ends = np.cumsum(sizes)
    rows = -(-(sizes - 1).clip(0) // block_size)  # nothing precedes the end-of-text of an empty one
    text = np.repeat(np.arange(sizes.size), rows)
    place = np.arange(text.size) - np.repeat(np.cumsum(rows) - rows, rows)  # of a row among those of its text
    starts = (ends - sizes)[text] + place * block_size
    return starts, np.minimum(block_size, ends[text] - 1 - starts)


def _make_room(model: str, split: str, replace: bool) -> None:
    """Say how many rows of the split were there, having deleted them with `replace`."""
    if replace:
        before = db.run(
            "DELETE FROM {schema}.llm_dataset WHERE model = $1 AND split = $2", ["text", "text"], model, split
        )
        if before:
            db.notice(f'replaced the {before} rows that model "{model}" had in split {split}')
        return
    row = db.row(
        "SELECT count(*) AS before FROM {schema}.llm_dataset WHERE model = $1 AND split = $2",
        ["text", "text"],
        model,
        split,
    )
    if before := (row or {})["before"]:
        db.notice(
            f'added to {before} rows that model "{model}" has in split {split}; replace => true would delete them'
        )


def _encoded(texts: Iterator[str], tokenizer: Tokenizer, eos: int) -> Iterator[np.ndarray]:
    """Ids of each text and one `eos`."""
    count, room = 0, MANY_TOKENS
    progress = host.Progress("tokenizing the source", "tokens")
    for text in texts:
        ids = np.asarray([*tokenizer.encode(text), eos], np.int32)
        count += ids.size
        progress.at(count)
        if count > room:
            room = 2 * count
            host.require_memory(2 * ids.itemsize * room, f"data of more than {count} tokens")  # in parts, and as one
        yield ids


def _insert(ids: np.ndarray, model: str, split: str, places: Places) -> None:
    """Rows of the stream `ids`, targets shifted by one."""
    starts, lengths, first = places.starts, places.lengths, 0
    ignored = np.zeros_like(starts) if places.ignored is None else places.ignored
    weights = np.ones(starts.size) if places.weights is None else places.weights
    while first < starts.size:
        last = max(first + 1, int(np.searchsorted(starts, starts[first] + INSERT_TOKENS)))
        rows, sizes = starts[first:last] - starts[first], lengths[first:last]
        part = ids[starts[first] : starts[last - 1] + sizes[-1] + 1]
        db.run(
            "INSERT INTO {schema}.llm_dataset (model, split, tokens, target, weight)"
            " SELECT $1, $2, $3[start + 1 : start + size],"
            f" array_fill({IGNORED}, ARRAY[ignored]) || $3[start + ignored + 2 : start + size + 1], weight"
            " FROM unnest($4, $5, $6, $7) WITH ORDINALITY AS new (start, size, ignored, weight, place) ORDER BY place",
            ["text", "text", "int4[]", "int4[]", "int4[]", "int4[]", "float8[]"],
            *(model, split, part.tolist(), rows.tolist(), sizes.tolist()),
            *(ignored[first:last].tolist(), weights[first:last].tolist()),
        )
        host.check_interrupts()
        first = last


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


# Whether a row may be what rows() refuses; null where it has nulls.
UNFIT = (
    "cardinality(tokens) > $4 OR $2 <= ANY (tokens) OR 0 > ANY (tokens) OR $2 <= ANY (target)"
    f" OR CASE WHEN array_ndims(target) = 1 THEN 0 > ANY (array_remove(target, {IGNORED})) ELSE true END"
)


def refuse_unfit(model: str, config: GPT2Config, split: str, ids: np.ndarray, alone: bool) -> None:
    """Refuse (22023, 22000) rows that no step can learn from, before a run reaches one of them after many steps; and a split,
    whose rows are `ids`, of which no target carries loss. `alone`: a step has one row, a target of which must."""
    row = db.row(
        f"SELECT id FROM {{schema}}.llm_dataset WHERE split = $3 AND {USABLE}"
        f" AND ({UNFIT} OR ($5 AND {IGNORED} = ALL (target))) IS NOT FALSE ORDER BY id LIMIT 1",
        ["text", "int4", "text", "int4", "bool"],
        *(model, config.vocab, split, config.n_positions, alone),
    )
    if row:
        require_loss([row["id"]], rows([row["id"]], model, config))
    if not db.row(
        f"SELECT 1 FROM {{schema}}.llm_dataset WHERE split = $3 AND {USABLE} AND {IGNORED} <> ANY (target) LIMIT 1",
        ["text", "int4", "text"],
        *(model, config.vocab, split),
    ):
        raise nothing_counts(ids.tolist())


def require_loss(ids: Sequence[int], found: Sequence[Row]) -> None:
    """Refuse (22023) rows of which no target carries loss."""
    if found and all((row.targets == IGNORED).all() for row in found):
        raise nothing_counts(ids)


def digest(model: str, config: GPT2Config) -> str:
    """SHA-256 of the training rows that `model` may use, in order; their ids play no part, nor do weights of 1."""
    found = hashlib.sha256()
    for row in db.cursor(
        "SELECT array_send(tokens) AS tokens, array_send(target) AS target, weight"
        f" FROM {{schema}}.llm_dataset WHERE split = 'train' AND {USABLE} ORDER BY id",
        ["text", "int4"],
        *(model, config.vocab),
    ):
        found.update(_digested(row))
        host.check_interrupts()
    return found.hexdigest()


def _digested(row: db.Row) -> bytes:
    """What a digest sees of a row. An array as it is sent begins with the number of its dimensions, and not like this weight."""
    weight = b"" if row["weight"] == 1 else b"weight" + struct.pack(">d", row["weight"])
    return row["tokens"] + row["target"] + weight


def rows(ids: Sequence[int], model: str, config: GPT2Config) -> list[Row]:
    """The rows `ids`, checked, in that order."""
    found = db.query(
        "SELECT id, array_send(tokens) AS tokens, array_send(target) AS target, weight FROM {schema}.llm_dataset"
        " WHERE id = ANY ($1)",
        ["int8[]"],
        np.unique(ids).tolist(),
    )
    by_id = {}
    for row in found:
        host.check_interrupts()
        tokens, targets = _ints(row["id"], row["tokens"]), _ints(row["id"], row["target"])
        _check_row(row["id"], tokens, targets, model, config)
        digest = hashlib.sha256(_digested(row)).digest()
        by_id[row["id"]] = Row(tokens, targets, row["weight"], int.from_bytes(digest[:8], "big", signed=True))
    for row_id in ids:
        if row_id not in by_id:
            raise RowGone(f"llm_dataset has no row {row_id}", hint="SELECT id FROM llm_dataset lists the rows.")
    return [by_id[row_id] for row_id in ids]


def batches(found: Sequence[Row]) -> list[Batch]:
    """Rows as one batch, padded to the longest; or, where all targets count alike, as one for each length.

    The second is as it always was, so that what was recorded of such rows is found again, bit for bit.
    """
    if not all(row.is_plain for row in found):
        return [_padded(found)]
    by_length: dict[int, list[Row]] = {}
    for row in found:
        by_length.setdefault(row.tokens.size, []).append(row)
    return [
        Batch(np.stack([r.tokens for r in rows]), np.stack([r.targets for r in rows])) for rows in by_length.values()
    ]


def _padded(found: Sequence[Row]) -> Batch:
    """Rows of any lengths. What stands behind a row's end is attended to by nothing before it, and carries no loss."""
    shape = len(found), max(row.tokens.size for row in found)
    tokens, targets = np.zeros(shape, np.int64), np.full(shape, IGNORED, np.int64)
    for i, row in enumerate(found):
        tokens[i, : row.tokens.size], targets[i, : row.targets.size] = row.tokens, row.targets
    weights = np.asarray([row.weight for row in found])
    return Batch(tokens, targets, None if (weights == 1).all() else weights)


def _ints(row_id: int, sent: bytes) -> np.ndarray:
    """int4[] in PostgreSQL's binary form: a header of 20 bytes, then length and value, big-endian. NULLs are refused."""
    if int.from_bytes(sent[:4], "big") != 1 or int.from_bytes(sent[4:8], "big"):
        raise InconsistentData(
            f"row {row_id} of llm_dataset has an array with nulls or more than one dimension", hint="Delete the row."
        )
    return np.frombuffer(sent, ">i4", offset=20).reshape(-1, 2)[:, 1].astype(np.int64)


def _check_size(row_id: int, size: int, model: str, config: GPT2Config) -> None:
    if size > config.n_positions:
        raise InvalidParameter(
            f"row {row_id} of llm_dataset has {size} tokens, more than the {config.n_positions} positions of"
            f' model "{model}"',
            hint=f"Load the data with block_size => {config.n_positions} or less.",
        )


def _check_row(row_id: int, tokens: np.ndarray, target: np.ndarray, model: str, config: GPT2Config) -> None:
    _check_size(row_id, tokens.size, model, config)
    for ids in (tokens, target[target != IGNORED]):
        if ids.size and (ids.min() < 0 or ids.max() >= config.vocab):
            raise InvalidParameter(
                f'row {row_id} of llm_dataset has a token id outside 0..{config.vocab - 1}, the ids of model "{model}"',
                hint="Tokenize the text with this model's vocabulary: llm_dataset_load.",
            )
