"""A checkpoint as one file of the server: `.safetensors` or `.npz`, with weights, moments, and a digest of its manifest.

Weights have the names that transformers knows; moments stand after them as `adamw.m.NAME` and `adamw.v.NAME`. The database
keeps the manifest, with the SHA-256 of every block: a file that is incomplete, damaged or of something else is refused. Of an
adapter it has the adapter's own tensors.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from math import prod
from typing import Any, BinaryIO

import numpy as np

from ... import host
from ...core.config import ARCHITECTURE, GPT2Config
from ...errors import InconsistentData, InvalidParameter
from ...formats import NpzReader, SafetensorsReader, TensorReader, hub_metadata, hub_name, write_npz, write_safetensors
from ...formats.checkpoint import COUNTS, STOPS
from ...formats.source import shown
from ...tensor import FLOAT32, to_bytes
from .. import db
from . import server_files, store

KINDS = ("data", "m", "v")
SUFFIXES = (".safetensors", ".npz")
DIGEST_BYTES = 32
MOST_BLOCK_BYTES = 1 << 30  # what PostgreSQL can hold in a value
PIECE_BYTES = 16 << 20  # hashed between two looks for a cancel
MOST_UNUSUAL = 60_000  # bytes; the comment of a zip file, which has the metadata of .npz, ends at 65,535


@dataclass(frozen=True)
class Part:
    """A block: its place, its step, and digests of its weights and moments."""

    name: str
    token_id: int
    shape: list[int]
    step: int
    data: bytes
    m: bytes | None
    v: bytes | None

    def __post_init__(self) -> None:
        """Refuse (22000) what cannot be a row of llm_param: somebody may have changed the rows and manifests that are read."""
        digests = (self.data, *(digest for digest in (self.m, self.v) if digest is not None))
        if not (
            isinstance(self.name, str)
            and _is_count(self.token_id, 1 << 31)
            and _is_count(self.step, 1 << 63)
            and isinstance(self.shape, list)
            and len(self.shape) in (1, 2)
            and all(_is_count(size, 1 << 31) and size for size in self.shape)
            and 4 * prod(self.shape) < MOST_BLOCK_BYTES
            and all(isinstance(digest, bytes) and len(digest) == DIGEST_BYTES for digest in digests)
        ):
            raise InconsistentData(
                f"block {shown(self.token_id)} of tensor {shown(self.name)} has a shape, a step or digests that none can have",
                hint="Rows of llm_param or of a checkpoint were changed by hand, or a file was. Load another checkpoint.",
            )

    def digest(self, kind: str) -> bytes | None:
        """Digest of "data", "m" or "v"."""
        return getattr(self, kind)

    def nbytes(self) -> int:
        """Bytes of weights and moments."""
        return 4 * prod(self.shape) * sum(self.digest(kind) is not None for kind in KINDS)

    def to_json(self) -> list[Any]:
        """As an element of a manifest."""
        digests = [digest and digest.hex() for digest in (self.data, self.m, self.v)]
        return [self.name, self.token_id, self.shape, self.step, *digests]

    @classmethod
    def from_json(cls, values: list[Any]) -> "Part":
        """Back from a manifest."""
        return cls(*values[:4], *(digest and bytes.fromhex(digest) for digest in values[4:]))


def _is_count(value: object, end: int) -> bool:
    return type(value) is int and 0 <= value < end


def sha256(data: bytes) -> bytes:
    """The digest of a block, in pieces: of a gigabyte it takes seconds, and can be interrupted."""
    digest, view = hashlib.sha256(), memoryview(data)
    for start in range(0, len(data), PIECE_BYTES):
        digest.update(view[start : start + PIECE_BYTES])
        host.check_interrupts()
    return digest.digest()


def misfit(config: GPT2Config, parts: Iterable[Part]) -> str | None:
    """The first tensor whose blocks do not cover exactly what `config` says of it; None when all do. Of an adapter, its own."""
    shapes = config.trained_shapes()
    rows = dict.fromkeys(shapes, 0)
    for part in parts:
        if part.name not in rows or tuple(part.shape[1:]) != shapes[part.name][1:] or part.token_id != rows[part.name]:
            return part.name
        rows[part.name] += part.shape[0]
    return next((name for name, shape in shapes.items() if rows[name] != shape[0]), None)


def require_suffix(path: str) -> None:
    """Refuse (22023) the name of a file that does not say which format the file shall have."""
    if not path.endswith(SUFFIXES):
        raise InvalidParameter(
            f'file_path "{path}" must end in .safetensors or .npz', hint="The name decides the format of the file."
        )


def tensor_name(kind: str, name: str) -> str:
    """Name of a tensor in the file."""
    return hub_name(name) if kind == "data" else f"adamw.{kind}.{name}"


def manifest_digest(manifest: Sequence[Part]) -> str:
    """SHA-256 of a manifest as text, and so of everything in the checkpoint."""
    text = json.dumps([part.to_json() for part in manifest], separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def damaged(checkpoint_id: int, name: str, token_id: int, where: str) -> InconsistentData:
    """The error for a block that is not what was saved."""
    return InconsistentData(
        f'checkpoint {checkpoint_id} is damaged: tensor "{name}", block {token_id}, is not what was saved',
        hint=f"Its SHA-256 differs from that {where}. Load another checkpoint; nothing was changed.",
    )


# --- writing ----------------------------------------------------------------------------------------------------------------


def write(path: str, checkpoint_id: int, model: str, config: GPT2Config, manifest: Sequence[Part]) -> None:
    """Write what `model` has now, which must be what `manifest` says."""
    shapes = _file_shapes(config, manifest)
    metadata = hub_metadata(config) | {
        "pg_gpt2.checkpoint": str(checkpoint_id),
        "pg_gpt2.model": model,
        "pg_gpt2.step": str(max(part.step for part in manifest)),
        "pg_gpt2.config": json.dumps(config.to_json()),
        "pg_gpt2.sha256": manifest_digest(manifest),
    }
    unusual = json.dumps(_unusual(config, manifest))
    if len(unusual) < MOST_UNUSUAL:  # the file is the same to its own database, and no other can attach it
        metadata["pg_gpt2.blocks"] = unusual
    blocks = _stored_blocks(model, config, manifest)

    def fill(file: BinaryIO) -> None:
        if path.endswith(".npz"):
            write_npz(file, shapes, blocks, metadata)
            return
        for chunk in write_safetensors(shapes, blocks, metadata):
            file.write(chunk)

    server_files.write(path, fill, is_new=True)


def _usual(shape: tuple[int, ...], step: int, moments: str) -> list[list]:
    """Blocks of a tensor, [first row, rows, step, moments that are not null], where nobody made others."""
    return [[start, stop - start, step, moments] for start, stop in store.row_blocks(shape)]


def _unusual(config: GPT2Config, manifest: Sequence[Part]) -> dict[str, list[list]]:
    """Tensors in other blocks: split by hand, or where blocks or tensors had other steps, as those that were shared."""
    step, shapes = max(part.step for part in manifest), config.trained_shapes()
    found = {}
    for name, group in groupby(manifest, lambda part: part.name):
        parts = list(group)
        blocks = [[part.token_id, part.shape[0], part.step, _moments([part])] for part in parts]
        if blocks != _usual(shapes[name], step, _moments(parts)):
            found[name] = blocks
    return found


def _moments(parts: Sequence[Part]) -> str:
    return "".join(kind for kind in KINDS[1:] if any(part.digest(kind) for part in parts))


def _file_shapes(config: GPT2Config, manifest: Sequence[Part]) -> dict[str, tuple[int, ...]]:
    """Names in the file -> shapes, in file order; moments that are null throughout are left out."""
    present = {(kind, part.name) for part in manifest for kind in KINDS if part.digest(kind) is not None}
    shapes = sorted(config.trained_shapes().items())
    return {tensor_name(kind, name): shape for kind in KINDS for name, shape in shapes if (kind, name) in present}


def _stored_blocks(model: str, config: GPT2Config, manifest: Sequence[Part]) -> Callable[[str], Iterator[np.ndarray]]:
    """A function that gives the blocks of the next tensor in file order, through one cursor, checked."""
    digests = {(part.name, part.token_id): part for part in manifest}
    present = {(kind, part.name) for part in manifest for kind in KINDS if part.digest(kind)}
    rows = db.cursor(
        "SELECT k.kind, p.name, p.token_id, p.shape, CASE k.kind WHEN 'data' THEN data WHEN 'm' THEN m ELSE v END AS bytes"
        f" FROM {store.trained(config)} AS p CROSS JOIN (VALUES (1, 'data'), (2, 'm'), (3, 'v')) AS k (place, kind)"
        ' ORDER BY k.place, p.name COLLATE "C", p.token_id',
        ["text"],
        model,
    )
    tensors = groupby(
        (row for row in rows if (row["kind"], row["name"]) in present), lambda row: (row["kind"], row["name"])
    )

    def blocks(wanted: str) -> Iterator[np.ndarray]:
        (kind, name), found = next(tensors, (("", ""), iter(())))
        for row in found:
            part = digests.get((name, row["token_id"]))
            digest = row["bytes"] and sha256(row["bytes"])
            if tensor_name(kind, name) != wanted or part is None or digest != part.digest(kind):
                raise InconsistentData(
                    f'tensor "{name}" of model "{model}" was changed while it was saved', hint="Save it again."
                )
            host.check_interrupts()
            yield np.frombuffer(row["bytes"] or bytes(4 * prod(row["shape"])), FLOAT32).reshape(row["shape"])

    return blocks


# --- reading ----------------------------------------------------------------------------------------------------------------


def open_file(path: str, checkpoint_id: int, config: GPT2Config, manifest: Sequence[Part]) -> TensorReader:
    """Reader of a checkpoint's file; 22000 when it is not the one that was written, 22P02 when it is cut short."""
    file = server_files.open_to_read(path)
    try:
        most = 12 * config.n_trained() + (1 << 20)
        reader: TensorReader = NpzReader(file, most) if path.endswith(".npz") else SafetensorsReader(file)
        wanted = _file_shapes(config, manifest)
        found = {name: reader.shape(name) for name in reader.names()}
        same = reader.metadata.get("pg_gpt2.sha256") == manifest_digest(manifest) and found == wanted
        if not same or not _says(reader.metadata, config) or misfit(config, manifest) is not None:
            raise InconsistentData(
                f'"{path}" is not the file that was written as checkpoint {checkpoint_id}',
                hint="Put the original file back; llm_checkpoint_drop forgets the checkpoint.",
            )
        return reader
    except Exception:
        file.close()
        raise


def _says(metadata: Mapping[str, str], config: GPT2Config) -> bool:
    """Whether what a file says of the configuration, in its own words and in those of an import, is this one."""
    said = {name: metadata[name] for name in (*COUNTS, STOPS, *ARCHITECTURE) if name in metadata}
    return said == hub_metadata(config) and metadata.get("pg_gpt2.config") == json.dumps(config.to_json())


def survey(path: str) -> tuple[str, GPT2Config, list[Part]]:
    """Model, configuration and manifest of a checkpoint whose row is in another database, every byte compared with the
    digest that the file carries. 22000 when it is none, or is damaged."""
    with server_files.open_to_read(path) as file:
        size = os.fstat(file.fileno()).st_size
        reader: TensorReader = NpzReader(file, size) if path.endswith(".npz") else SafetensorsReader(file)
        metadata = reader.metadata
        try:
            config = GPT2Config.from_json(json.loads(metadata["pg_gpt2.config"]))
            if 4 * config.n_trained() > size or not _says(metadata, config):
                raise ValueError
            model, step, digest = metadata["pg_gpt2.model"], int(metadata["pg_gpt2.step"]), metadata["pg_gpt2.sha256"]
            if "\0" in model or not model.encode():  # which is a ValueError of half of a pair of UTF-16
                raise ValueError
            manifest = _manifest(reader, config, step, json.loads(metadata["pg_gpt2.blocks"]))
        except (KeyError, TypeError, ValueError, RecursionError, AttributeError, InvalidParameter):
            raise InconsistentData(
                f'"{path}" is not a checkpoint that llm_checkpoint_save wrote, or is damaged',
                hint="pg_llm_import_safetensors and pg_llm_import_npz read the weights of other files.",
            ) from None
        if manifest_digest(manifest) != digest:
            raise InconsistentData(
                f'"{path}" is not what llm_checkpoint_save wrote: its tensors differ from the digest in it',
                hint="It was damaged or changed. Give a copy of the original.",
            )
        return model, config, manifest


def _manifest(reader: TensorReader, config: GPT2Config, step: int, unusual: dict[str, list[list]]) -> list[Part]:
    """What the file holds, in the blocks that it was stored in; an error of any kind where it is no such file."""
    within = {name: reader.shape(name) for name in reader.names()}
    layout, shapes = {}, config.trained_shapes()
    for name, shape in sorted(shapes.items()):
        moments = "".join(kind for kind in KINDS[1:] if tensor_name(kind, name) in within)
        layout[name] = unusual.get(name) or _usual(shape, step, moments)
        following = 0
        for first, rows, _, _ in layout[name]:
            if first != following or rows < 1:
                raise ValueError
            following += rows
        if following != shape[0] or any(within[tensor_name(kind, name)] != shape for kind in ("data", *moments)):
            raise ValueError
    digests: dict[tuple[str, int, str], bytes] = {}
    for kind in KINDS:  # in the order of the file
        for name, blocks in layout.items():
            for first, rows, _, moments in blocks:
                if kind == "data" or kind in moments:
                    data = to_bytes(reader.rows(tensor_name(kind, name), first, first + rows))
                    digests[name, first, kind] = sha256(data)
                host.check_interrupts()
    return [
        Part(
            *(name, first, [rows, *shapes[name][1:]], block_step),
            *(digests[name, first, "data"], digests.get((name, first, "m")), digests.get((name, first, "v"))),
        )
        for name, blocks in layout.items()
        for first, rows, block_step, _ in blocks
    ]


def read_block(reader: TensorReader, part: Part, kind: str, checkpoint_id: int) -> bytes | None:
    """Bytes of one block, compared with its digest; None where it was null."""
    if part.digest(kind) is None:
        return None
    data = to_bytes(reader.rows(tensor_name(kind, part.name), part.token_id, part.token_id + part.shape[0]))
    if sha256(data) != part.digest(kind):
        raise damaged(checkpoint_id, part.name, part.token_id, "in llm_checkpoint.manifest")
    return data


def read_into(model: str, path: str, checkpoint_id: int, config: GPT2Config, manifest: Sequence[Part]) -> None:
    """Rows of llm_param from the file, which is read once and in order; `model` has none before."""
    reader = open_file(path, checkpoint_id, config, manifest)
    try:
        largest = max(4 * prod(part.shape) for part in manifest)  # a statement of its own
        store.require_memory_of_batches(4 * config.n_trained())
        if largest > store.BLOCK_BYTES:
            host.require_memory(6 * largest, f"blocks of {largest} bytes")
        for batch in _batches(reader, manifest, "data", checkpoint_id):
            _insert(model, batch)
        for kind in KINDS[1:]:
            for batch in _batches(reader, manifest, kind, checkpoint_id):
                _update(model, kind, batch)
    finally:
        reader.close()


def _batches(
    reader: TensorReader, manifest: Iterable[Part], kind: str, checkpoint_id: int
) -> Iterator[list[tuple[Part, bytes]]]:
    batch: list[tuple[Part, bytes]] = []
    held = 0
    for part in manifest:
        data = read_block(reader, part, kind, checkpoint_id)
        host.check_interrupts()
        if data is None:
            continue
        # A large block is a statement of its own: a value ends at 1 GiB.
        if batch and held + len(data) > store.FLUSH_BYTES:
            yield batch
            batch, held = [], 0
        batch.append((part, data))
        held += len(data)
    if batch:
        yield batch


def _insert(model: str, batch: list[tuple[Part, bytes]]) -> None:
    whole, places = store.joined([data for _, data in batch])
    with db.planned_once(len(whole)):
        db.run(
            "INSERT INTO {schema}.llm_param (model, name, token_id, shape, step, data)"
            " SELECT $1, name, first, shape::integer[], step, substring($8 FROM place FOR size)"
            " FROM unnest($2, $3, $4, $5, $6, $7) AS block (name, first, shape, step, place, size)",
            ["text", "text[]", "int4[]", "text[]", "int8[]", "int4[]", "int4[]", "bytea"],
            *(model, [part.name for part, _ in batch], [part.token_id for part, _ in batch]),
            [f"{{{','.join(map(str, part.shape))}}}" for part, _ in batch],
            *([part.step for part, _ in batch], places, [len(data) for _, data in batch], whole),
        )


def _update(model: str, kind: str, batch: list[tuple[Part, bytes]]) -> None:
    """A moment of rows that are there: their other columns are not written again."""
    whole, places = store.joined([data for _, data in batch])
    with db.planned_once(len(whole)):
        db.run(
            f"UPDATE {{schema}}.llm_param AS p SET {kind} = substring($6 FROM place FOR size)"
            " FROM unnest($2, $3, $4, $5) AS block (name, token_id, place, size)"
            " WHERE p.model = $1 AND p.name = block.name AND p.token_id = block.token_id",
            ["text", "text[]", "int4[]", "int4[]", "int4[]", "bytea"],
            *(model, [part.name for part, _ in batch], [part.token_id for part, _ in batch]),
            *(places, [len(data) for _, data in batch], whole),
        )
