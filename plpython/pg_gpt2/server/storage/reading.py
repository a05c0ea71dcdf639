"""Tensors out of rows: the version of what is visible of a model, and its blocks put together.

The rows of an adapter's base are read as the adapter sees them, so that whoever uses it needs no right to anything else.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from math import prod
from typing import Any, NamedTuple

import numpy as np

from ... import host
from ...core.config import GPT2Config
from ...errors import InconsistentData
from ...fast import slices
from ...tensor import FLOAT32, PART
from .. import db, resources
from . import store

# One text a row that changes whenever the row does. cmin is there for a table that is truncated and filled again in one
# transaction: then ctid and xmin alone repeat.
ROW_VERSION = "concat_ws(' ', p.name, p.token_id, p.ctid, p.xmin, p.cmin)"
# Keys and versions of the rows that store.resolved() has. Every call asks for them, so the plan must be the same however many
# models there are: without an eye on the name the planner keeps one, and does not make one at each call; and it finds what
# is shared by its key, where it would read the whole table for a hash join.
MODEL, KEY = "(SELECT $1)", "p.ctid, p.xmin, p.cmin, p.model AS source_model"
VISIBLE = (
    f"(SELECT p.name, p.token_id, {KEY} FROM {{schema}}.llm_param AS p WHERE p.model = {MODEL}"
    " UNION ALL SELECT s.target_name, s.target_token_id, p.ctid, p.xmin, p.cmin, p.source_model"
    f" FROM {{schema}}.llm_param_share AS s CROSS JOIN LATERAL (SELECT {KEY} FROM {{schema}}.llm_param AS p"
    " WHERE p.model = s.source_model AND p.name = s.source_name AND p.token_id = s.source_token_id OFFSET 0) AS p"
    f" WHERE s.target_model = {MODEL})"
)
NO_ROWS = hashlib.md5(b"").hexdigest()  # version of a model without weights
WHOLE, BASE, OWN = "true", f"p.name NOT {store.IS_OWN}", f"p.name {store.IS_OWN}"  # which rows of a model
READING = 3  # times a row is in memory while it is read: in the server, as bytes, and the one before

Params = dict[str, np.ndarray]
Shapes = Mapping[str, tuple[int, ...]]


class Versions(NamedTuple):
    """Of the visible rows of a model, and of those of its base among them; and that base, where it has any of them. A model that
    is no adapter has none."""

    whole: str
    base_version: str = NO_ROWS
    own: str = NO_ROWS  # of the others
    base: str | None = None


def version_of(model: str) -> str:
    """Digest of the versions of the visible rows of `model`; that of no rows when it has no weights."""
    return versions_of(model, store.find_config(model)).whole


def versions_of(model: str, config: GPT2Config | None) -> Versions:
    """The versions of the visible rows of `model`, whose configuration is known."""
    return versions_and_role(model, config)[0]


def versions_and_role(model: str, config: GPT2Config | None) -> tuple[Versions, str]:
    digest = f"md5(string_agg({ROW_VERSION}, E'\\n' ORDER BY p.name, p.token_id)"
    if config is None or config.adapter is None:
        row = db.row(f"SELECT {digest}) AS version, current_user AS role FROM {VISIBLE} AS p", ["text"], model)
        return Versions((row or {})["version"] or NO_ROWS), (row or {})["role"]
    row = db.row(
        f"SELECT {digest} FILTER (WHERE {BASE})) AS theirs, {digest} FILTER (WHERE {OWN})) AS own, current_user AS role,"
        " CASE WHEN bool_or(p.source_model = a.base) THEN a.base END AS base"
        f" FROM {{schema}}.llm_adapter AS a LEFT JOIN {VISIBLE} AS p ON true WHERE a.model = {MODEL} GROUP BY a.base",
        ["text"],
        model,
    )
    if row is None:  # dropped since we read its configuration
        raise store.unknown(model)
    theirs, own = row["theirs"] or NO_ROWS, row["own"] or NO_ROWS
    return Versions(together(theirs, own), theirs, own, row["base"]), row["role"]


def together(base: str, own: str) -> str:
    """The version of an adapter: that of no rows where neither has any."""
    return NO_ROWS if base == own == NO_ROWS else hashlib.md5(f"{base} {own}".encode()).hexdigest()


class Rows(NamedTuple):
    """Where the rows of a model are read: those of `model`, or a part of them; a base, as one of its adapters sees it."""

    model: str
    part: str = WHOLE


def largest(shapes: Shapes) -> int:
    """Bytes of the largest tensor."""
    return max(4 * prod(shape) for shape in shapes.values())


def reading_bytes(size: int) -> int:
    """Bytes that reading rows of `size` takes, besides the arrays that are made of them."""
    return READING * min(size, store.BLOCK_BYTES)


def read_params(rows: Rows, name: str, shapes: Shapes) -> tuple[str, Params]:
    """Version and tensors."""
    size = sum(4 * prod(shape) for shape in shapes.values())
    resources.require_memory(size + largest(shapes) + reading_bytes(size), f'model "{name}"')
    digest = hashlib.md5()
    params = dict(tensors(rows, name, shapes, digest))
    return digest.hexdigest(), {name: params[name] for name in shapes}


def tensors(rows: Rows, name: str, shapes: Shapes, digest: Any) -> Iterator[tuple[str, np.ndarray]]:
    """Each tensor when its last row is read, through one cursor, hence of one snapshot. `digest`, an MD5, gets the version."""
    found = db.cursor(
        f"SELECT p.name, p.token_id, p.shape, p.data, {ROW_VERSION} AS version"
        f" FROM {store.resolved()} AS p WHERE {rows.part} ORDER BY p.name, p.token_id",
        ["text"],
        rows.model,
    )
    assembly = Assembly(name, shapes)
    for count, row in enumerate(found):
        digest.update((("\n" if count else "") + row["version"]).encode())
        if assembly.add(row["name"], row["token_id"], row["shape"], row["data"]):
            yield row["name"], assembly.params.pop(row["name"])
        host.check_interrupts()
    assembly.check()


def digest_of(tensors: Iterable[np.ndarray]) -> str:
    """SHA-256 of tensors, one after the other."""
    found = hashlib.sha256()
    for array in tensors:
        values = np.ascontiguousarray(array, FLOAT32).reshape(-1)
        for part in slices.pieces(values.size, PART):
            found.update(values[part].data)
            host.check_interrupts()
    return found.hexdigest()


def require_whole(model: str, config: GPT2Config) -> None:
    """Refuse (22000) a model of which rows are missing, too many or misshapen, as reading its weights would, without that."""
    rows = db.query(
        f"SELECT p.name, p.token_id, p.shape FROM {store.resolved()} AS p ORDER BY p.name, p.token_id", ["text"], model
    )
    assembly = Assembly(model, config.param_shapes())
    for row in rows:
        assembly.place(row["name"], row["token_id"], row["shape"])
    assembly.check()


class Assembly:
    """Puts blocks of rows together; what is missing, too much or misshapen is an error that names the tensor."""

    def __init__(self, model: str, shapes: Shapes) -> None:
        self.model = model
        self.shapes = shapes
        self.params: Params = {}
        self._rows: dict[str, int] = {}

    def add(self, name: str, first: int, shape: list[int], data: bytes) -> bool:
        """Take one block, blocks of a tensor in ascending order; whether it was the last of its tensor."""
        last = self.place(name, first, shape)
        if name not in self.params:
            self.params[name] = np.empty(self.shapes[name], FLOAT32)
        self.params[name][first : first + shape[0]] = np.frombuffer(data, FLOAT32).reshape(shape)
        return last

    def place(self, name: str, first: int, shape: list[int]) -> bool:
        """Check that one block is in its place, as `add` does, without its data."""
        if name not in self.shapes:
            raise self._refusal(
                f'has a tensor "{name}" that its configuration does not', "Delete its rows from llm_param."
            )
        wanted = self.shapes[name]
        if tuple(shape[1:]) != wanted[1:]:
            raise self._refusal(
                f'tensor "{name}" has a block of shape {shape}; its shape is {list(wanted)}', "Import it again."
            )
        if first != self._rows.get(name, 0) or first + shape[0] > wanted[0]:
            raise self._refusal(
                f'tensor "{name}": block {first} of {shape[0]} rows does not follow row {self._rows.get(name, 0)} of {wanted[0]}',
                "The blocks of a tensor must cover its rows without gap or overlap; import it again.",
            )
        self._rows[name] = first + shape[0]
        return self._rows[name] == wanted[0]

    def finish(self) -> Params:
        """All tensors, in the order of the configuration; for when none was taken out of `params`."""
        self.check()
        return {name: self.params[name] for name in self.shapes}

    def check(self) -> None:
        """Refuse a model of which a tensor is missing or not complete, or which has no weights at all (55000)."""
        if not self._rows:
            raise store.no_weights(self.model)
        for name, shape in self.shapes.items():
            rows = self._rows.get(name, 0)
            if rows < shape[0]:
                raise self._refusal(f'tensor "{name}" has rows 0 to {rows} of {shape[0]}', "Import the model again.")

    def _refusal(self, problem: str, hint: str) -> InconsistentData:
        return InconsistentData(f'model "{self.model}": {problem}', hint=hint)
