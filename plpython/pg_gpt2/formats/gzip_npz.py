"""The older ".npz" container: one gzip stream of (u16 name length, name, .npy array) until its end; read only.

A stream has no directory, so opening inflates it once to find the tensors, keeping nothing, and reading inflates it a
second time. Fortran order is refused, as it always was in this format. The standard library's GzipFile is not used: it steps over
millions of empty members in one call, which cannot be interrupted.
"""

import io
import zlib
from collections.abc import Sequence
from typing import Any, BinaryIO

import numpy as np

from .. import host
from ..errors import FeatureNotSupported, MalformedData
from .npy import NpyHeader, read_npy_header
from .npz import too_large
from .source import DEFAULT_MAX_BYTES, MAX_TENSORS, check_rows, read_array, read_exactly, reading, skip, to_float32

MAX_NAME_BYTES = 1000  # a stream that inflates to names alone must not fill the memory
PIECE_BYTES = 1 << 14  # of the compressed file, between two looks for a cancel


class Inflated(io.RawIOBase):
    """The bytes of a gzip file, of all its members one after another, each compared with its checksum; can be interrupted."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._member: Any = None  # what inflates the member that has begun
        self._input = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        """Some bytes, or 0 at the end. zlib.error or EOFError when the file is damaged."""
        while True:
            host.check_interrupts()
            self._input = self._input or self._file.read(PIECE_BYTES)
            if self._member is None:
                if not self._input:
                    return 0
                self._input = self._input.lstrip(b"\0")  # padding, as of tapes
                if self._input:
                    self._member = zlib.decompressobj(16 + zlib.MAX_WBITS)
                continue
            data = self._member.decompress(self._input, len(buffer))
            if not self._input and not data:
                raise EOFError("it ends within a member")
            self._input = self._member.unconsumed_tail
            if self._member.eof:
                self._input, self._member = self._member.unused_data, None
            if data:
                buffer[: len(data)] = data
                return len(data)


class GzipNpzReader:
    """Arrays of the older container. Rows are cheap in the order of the file only."""

    def __init__(self, file: BinaryIO, max_bytes: int = DEFAULT_MAX_BYTES) -> None:
        self.metadata: dict[str, str] = {}
        self._file = file
        self._entries: dict[str, tuple[NpyHeader, int]] = {}  # header, position of the data in the inflated stream
        self._rewind()
        self._index(max_bytes)

    def _rewind(self) -> None:
        with reading("the gzip stream"):
            self._file.seek(0)
            self._stream: BinaryIO = io.BufferedReader(Inflated(self._file), PIECE_BYTES)
        self._position = 0

    def _index(self, max_bytes: int) -> None:
        total = 0
        while (name := self._entry_name()) is not None:
            if name in self._entries:
                raise MalformedData(
                    f"tensor {name:.80} stands twice in the file", hint="Write the file again, each tensor once."
                )
            host.check_interrupts()
            header = read_npy_header(self._stream, name)
            if header.fortran_order and len(header.shape) > 1:
                raise FeatureNotSupported(
                    f"tensor {name} is in Fortran order, which the older container does not allow",
                    hint="Write a standard file with numpy.savez.",
                )
            total += header.nbytes
            if total > max_bytes:
                raise too_large(total, max_bytes)
            if len(self._entries) == MAX_TENSORS:
                raise MalformedData(
                    f"the file has more than {MAX_TENSORS} tensors", hint="Is this the checkpoint of a GPT-2?"
                )
            self._position += 2 + len(name.encode()) + header.size
            self._entries[name] = header, self._position
            skip(self._stream, header.nbytes, f"tensor {name}")
            self._position += header.nbytes

    def _entry_name(self) -> str | None:
        """The next entry's name, or None at the end of the stream, where gzip has compared its checksum."""
        with reading("the gzip stream"):
            first = self._stream.read(1)
        if not first:
            return None
        length = first[0] + 256 * read_exactly(self._stream, 1, "the gzip stream")[0]
        if length > MAX_NAME_BYTES:
            raise MalformedData(
                f"the file has a tensor name of {length} bytes, over the limit of {MAX_NAME_BYTES}",
                hint="Is this the checkpoint of a GPT-2?",
            )
        raw = read_exactly(self._stream, length, "a tensor name")
        with reading("a tensor name"):
            return raw.decode()

    def names(self) -> Sequence[str]:
        return list(self._entries)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._entries[name][0].shape

    def rows(self, name: str, start: int, stop: int) -> np.ndarray:
        header, position = self._entries[name]
        dtype = header.float_dtype(name)
        width = check_rows(name, header.shape, start, stop)
        wanted = position + start * width * dtype.itemsize
        if wanted < self._position:
            self._rewind()
        skip(self._stream, wanted - self._position, f"tensor {name}")
        values = read_array(self._stream, (stop - start) * width, dtype, f"tensor {name}")
        self._position = wanted + values.nbytes
        return to_float32(values).reshape(stop - start, *header.shape[1:])

    def close(self) -> None:
        self._stream.close()
        self._file.close()
