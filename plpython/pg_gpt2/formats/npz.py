"""The standard `.npz`: a zip file of `.npy` arrays, stored or deflated, as numpy.savez and savez_compressed write it.

Read member by member as a stream, so a tensor is never whole in memory unless it is in Fortran order. The number of
attention heads and the like travel as JSON in the zip comment, where numpy.load does not see it.
"""

import io
import json
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from math import prod
from typing import BinaryIO

import numpy as np

from .. import host
from ..errors import MalformedData
from .npy import NpyHeader, read_npy_header
from .safetensors import exact_blocks
from .source import DEFAULT_MAX_BYTES, MAX_TENSORS, check_rows, read_array, reading, skip, to_float32

MAX_DIRECTORY_BYTES = 1 << 20  # gpt2-xl needs 60 kB; reading 20,000 members takes a quarter of a second


class NpzReader:
    """Arrays of an open zip file. Rows of one tensor are cheap in ascending order only."""

    def __init__(self, file: BinaryIO, max_bytes: int = DEFAULT_MAX_BYTES) -> None:
        self._file = file
        with reading("the .npz file"):
            refuse_large_directory(file)
            self._zip = zipfile.ZipFile(file)
        self.metadata = read_comment(self._zip.comment)
        self._members = self._index(max_bytes)
        self._headers = {name: self._header(name) for name in self._members}
        self._open: tuple[str, BinaryIO, int] | None = None  # name, stream, row at which the stream stands
        self._whole: tuple[str, np.ndarray] | None = None  # the last tensor in Fortran order

    def _index(self, max_bytes: int) -> dict[str, zipfile.ZipInfo]:
        """Members by tensor name, refusing by their declared sizes before anything is inflated."""
        infos = self._zip.infolist()
        if len(infos) > MAX_TENSORS:
            raise MalformedData(
                f"the .npz file has {len(infos)} members, over the limit of {MAX_TENSORS}",
                hint="Is this the checkpoint of a GPT-2?",
            )
        members: dict[str, zipfile.ZipInfo] = {}
        for info in infos:
            name = info.filename.removesuffix(".npy")
            if name == info.filename:
                raise MalformedData(
                    f"member {name!r:.80} of the .npz file is not a .npy array",
                    hint="Write the file with numpy.savez, one array a tensor.",
                )
            if name in members:
                raise MalformedData(
                    f"tensor {name:.80} stands twice in the .npz file", hint="Write the file again, each tensor once."
                )
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or info.flag_bits & 1:
                raise MalformedData(
                    f"tensor {name:.80} is encrypted or compressed by another method than deflate",
                    hint="Write the file with numpy.savez or numpy.savez_compressed.",
                )
            if info.compress_size > 2 * info.file_size + 1024:  # deflate adds an eighth at most
                raise MalformedData(
                    f"tensor {name:.80} has {info.compress_size} compressed bytes for {info.file_size}",
                    hint="The file is damaged: copy or export it again.",
                )
            members[name] = info
        total = sum(info.file_size for info in infos)
        if total > max_bytes:
            raise too_large(total, max_bytes)
        return members

    def _header(self, name: str) -> NpyHeader:
        host.check_interrupts()
        with self._stream(name) as stream:
            header = read_npy_header(stream, name)
        declared = self._members[name].file_size
        if header.size + header.nbytes != declared:
            raise MalformedData(
                f"tensor {name} of shape {list(header.shape)} and dtype {header.descr} needs "
                f"{header.size + header.nbytes} bytes, its zip member has {declared}",
                hint="The file is damaged: copy or export it again.",
            )
        return header

    def _stream(self, name: str) -> BinaryIO:
        with reading(f"tensor {name}"):
            return self._zip.open(self._members[name])  # type: ignore[return-value]

    def names(self) -> Sequence[str]:
        return list(self._headers)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._headers[name].shape

    def rows(self, name: str, start: int, stop: int) -> np.ndarray:
        header = self._headers[name]
        dtype = header.float_dtype(name)
        width = check_rows(name, header.shape, start, stop)
        if header.fortran_order:
            return self._fortran(name)[start:stop]
        stream = self._at_row(name, start, width * dtype.itemsize)
        values = read_array(stream, (stop - start) * width, dtype, f"tensor {name}")
        if stop == header.shape[0]:
            read_to_end(stream, name)
        self._open = name, stream, stop
        return to_float32(values).reshape(stop - start, *header.shape[1:])

    def _at_row(self, name: str, start: int, row_bytes: int) -> BinaryIO:
        """The member's stream, standing at row `start`; going back means inflating it again."""
        opened, self._open = self._open, None
        if opened is not None and opened[0] == name and opened[2] <= start:
            _, stream, row = opened
        else:
            if opened is not None:
                opened[1].close()
            stream, row = self._stream(name), 0
            skip(stream, self._headers[name].size, f"tensor {name}")
        skip(stream, (start - row) * row_bytes, f"tensor {name}")
        return stream

    def _fortran(self, name: str) -> np.ndarray:
        """The whole of a tensor in column-major order, as rows."""
        if self._whole is None or self._whole[0] != name:
            header = self._headers[name]
            self._whole = None
            with self._stream(name) as stream:
                skip(stream, header.size, f"tensor {name}")
                host.require_memory(header.nbytes + 8 * prod(header.shape), f"tensor {name} in Fortran order")
                values = read_array(stream, prod(header.shape), header.float_dtype(name), f"tensor {name}")
                read_to_end(stream, name)
            self._whole = name, np.ascontiguousarray(to_float32(values).reshape(header.shape, order="F"))
        return self._whole[1]

    def close(self) -> None:
        if self._open is not None:
            self._open[1].close()
        self._zip.close()
        self._file.close()


def refuse_large_directory(file: BinaryIO) -> None:
    """Refuse (22P02) a long directory before zipfile makes an object of a thousand bytes of each member, of which a file can
    have tens of millions.

    zipfile itself says where it would read the directory: two ways of reading a hostile file find two different things.
    """
    end = zipfile._EndRecData(file)  # type: ignore[attr-defined]
    if end and end[zipfile._ECD_SIZE] > MAX_DIRECTORY_BYTES:  # type: ignore[attr-defined]
        raise MalformedData(
            f"the .npz file has a directory of {end[zipfile._ECD_SIZE]} bytes,"  # type: ignore[attr-defined]
            f" over the limit of {MAX_DIRECTORY_BYTES}",
            hint="Is this the checkpoint of a GPT-2?",
        )


def read_to_end(stream: BinaryIO, name: str) -> None:
    """Step over the end of a member, where zipfile compares its checksum."""
    with reading(f"tensor {name}"):
        stream.read(1)


def read_comment(comment: bytes) -> dict[str, str]:
    """Metadata in a zip comment of ours; a foreign comment is none."""
    try:
        found = json.loads(comment)
    except (ValueError, RecursionError):
        return {}
    return {key: value for key, value in found.items() if isinstance(value, str)} if isinstance(found, dict) else {}


def too_large(size: int, max_bytes: int) -> MalformedData:
    """The error for a file that would inflate to more than the model can need."""
    return MalformedData(
        f"the file claims {size} bytes of tensors, this model can use at most {max_bytes}",
        hint="Is it the checkpoint of another model? Compare with llm_model_config.",
    )


def write_npz(
    file: BinaryIO,
    shapes: Mapping[str, Sequence[int]],
    blocks: Callable[[str], Iterable[np.ndarray]],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a float32 `.npz` to `file`, uncompressed (random floats do not shrink), from the arrays of `blocks(name)`.

    The same tensors give the same bytes: members are dated 1980, the earliest that zip can say.
    """
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, shape in shapes.items():
            start = npy_header(shape)
            member = zipfile.ZipInfo(f"{name}.npy")
            member.external_attr = 0o600 << 16
            member.file_size = len(start) + 4 * prod(shape)  # lets zipfile choose zip64 where it must
            with archive.open(member, "w") as stream:
                stream.write(start)
                for data in exact_blocks(name, shape, blocks(name)):
                    stream.write(data)
        archive.comment = json.dumps(dict(metadata)).encode() if metadata else b""


def npy_header(shape: Sequence[int]) -> bytes:
    """Header of a C-ordered little-endian float32 array."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f4", "fortran_order": False, "shape": tuple(int(dim) for dim in shape)}
    )
    return header.getvalue()
