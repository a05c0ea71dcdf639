"""What the readers share: the protocol, exact reads, float conversion, JSON, and typed errors for damaged files.

Damage must never show as a bare `zlib.error` or an allocation as large as a damaged header says, so every call into a
decompressor stands inside `reading()` and every read is of a size that the caller has checked.
"""

import errno
import io
import json
import os
import struct
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import prod
from typing import Any, BinaryIO, Protocol

import numpy as np

from .. import host
from ..errors import InconsistentData, InvalidParameter, MalformedData, OutOfMemory, of_system

DEFAULT_MAX_BYTES = 16 << 30  # gpt2-xl is 6.2 GB in float32; whoever knows the config passes less
MAX_TENSORS = 10_000  # gpt2-xl has 580, and a header with ten times as many takes half a second
SLICE_BYTES = 4 << 20  # read or skipped between two looks for a cancel
LFS_POINTER = b"version https://git-lfs.github.com/spec/"
FREE_BYTES = 16 << 20  # an array above this asks for its memory


class TensorReader(Protocol):
    """Named tensors of a file. `names()` is the file's order, in which reading is sequential."""

    metadata: dict[str, str]

    def names(self) -> Sequence[str]:
        """Names as the file spells them, in file order."""

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of one tensor."""

    def rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """Rows start..stop of one tensor, float32 [stop - start, ...]."""

    def close(self) -> None:
        """Close the file."""


@contextmanager
def reading(what: str) -> Iterator[None]:
    """Turn whatever a standard library reader raises on damaged input into an error that names `what`."""
    try:
        yield
    except (zipfile.BadZipFile, zlib.error, EOFError, struct.error) as error:
        raise MalformedData(f"{what} is damaged: {error}", hint="Copy or export the file again.") from error
    except (ValueError, OverflowError, NotImplementedError, RuntimeError) as error:
        raise MalformedData(f"{what} cannot be read: {error}", hint="Copy or export the file again.") from error
    except MemoryError as error:
        raise OutOfMemory(f"{what} does not fit into memory", hint="Free memory, or use a smaller model.") from error
    except OSError as error:  # a seek to where a damaged directory points; others are of ServerFile
        raise MalformedData(f"{what} is damaged: {error}", hint="Copy or export the file again.") from error


class ServerFile(io.FileIO):
    """A file of the server, open for reading. What the operating system refuses is an error of ours from the first: zipfile takes
    any OSError for damage."""

    def __init__(self, handle: int, path: str) -> None:
        super().__init__(handle)
        self._path = path

    @contextmanager
    def _asking(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno == errno.EINVAL:
                raise
            raise of_system(error, f'"{self._path}"') from error

    def readinto(self, buffer: Any) -> int:
        with self._asking():
            return super().readinto(buffer)

    def readall(self) -> bytes:
        with self._asking():
            return super().readall()

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        with self._asking():
            return super().seek(offset, whence)


def read_exactly(file: BinaryIO, count: int, what: str) -> bytes:
    """`count` bytes, which the caller has found reasonable, or an error that says the file is truncated."""
    parts = []
    missing = count
    while missing:
        with reading(what):
            part = file.read(missing)
        if not part:
            raise truncated(what, missing)
        parts.append(part)
        missing -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def read_array(file: BinaryIO, count: int, dtype: np.dtype, what: str) -> np.ndarray:
    """A writable vector of `count` numbers, read without a second copy where the file allows; can be interrupted."""
    if count * dtype.itemsize > FREE_BYTES:
        host.require_memory(count * (dtype.itemsize + 4), f"reading {what}")  # the values, and as float32
    with reading(what):
        values = np.empty(count, dtype)
    left = values.view(np.uint8).data
    while left:
        with reading(what):
            got = file.readinto(left[:SLICE_BYTES])  # type: ignore[attr-defined]
        if not got:
            raise truncated(what, len(left))
        left = left[got:]
        host.check_interrupts()
    return values


def skip(file: BinaryIO, count: int, what: str) -> None:
    """Read past `count` bytes of a stream that cannot seek cheaply; can be interrupted."""
    while count:
        count -= len(read_exactly(file, min(count, SLICE_BYTES), what))
        host.check_interrupts()


def truncated(what: str, missing: int) -> MalformedData:
    """The error for a file that ends early."""
    return MalformedData(f"{what} is truncated: {missing} bytes are missing", hint="Copy or export the file again.")


def to_float32(values: np.ndarray) -> np.ndarray:
    """Float numbers of any width and byte order as native float32; what is too large becomes infinite."""
    with np.errstate(over="ignore"):
        return values.astype(np.float32, copy=False)


def check_rows(name: str, shape: Sequence[int], start: int, stop: int) -> int:
    """Scalars in one row of `shape`; 22023 when start..stop are not rows of it, 22000 when it has no values."""
    if shape and not prod(shape):  # NumPy cannot even say some empty shapes
        raise InconsistentData(
            f"tensor {name} of shape {list(shape)} is empty", hint="Is this the checkpoint of a GPT-2?"
        )
    if not shape or not 0 <= start <= stop <= shape[0]:
        raise InvalidParameter(
            f"tensor {name} of shape {list(shape)} has no rows {start} to {stop}",
            hint="Ask for rows that the tensor has.",
        )
    return prod(shape[1:])


def refuse_pointer(start: bytes, source: str) -> None:
    """Refuse (22P02) what a repository without its large files has in their place: a few lines that name them."""
    if start.startswith(LFS_POINTER):
        raise MalformedData(
            f"{source} is a git-LFS pointer: it names a large file, and does not hold it",
            hint="Run `git lfs pull` in its repository, or download the file itself.",
        )


def shown(value: object) -> str:
    """A value of a file, for an error: not too much of it, and Python refuses to write integers of thousands of digits."""
    try:
        return f"{value!r:.80}"
    except (ValueError, RecursionError):
        return "a number or a list too large to show"


def decode_text(data: bytes, source: str) -> str:
    """UTF-8, with or without its mark at the beginning."""
    refuse_pointer(data, source)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise MalformedData(
            f"{source} is not UTF-8: byte {data[error.start]:#04x} at offset {error.start}",
            hint="Give the file as it was published, not compressed and not re-encoded.",
        ) from None


def load_json(data: bytes, source: str) -> Any:
    """The JSON value; an object with a key twice is refused, because one of the two would be lost."""

    def unique(items: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(items)
        if len(value) < len(items):
            seen: set[str] = set()
            twice = next(key for key, _ in items if key in seen or seen.add(key))  # type: ignore[func-returns-value]
            raise MalformedData(f"{source} has the key {shown(twice)} twice", hint="Give the file as it was published.")
        host.check_interrupts()
        return value

    try:
        return json.loads(decode_text(data, source), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:  # a ValueError is also a number of thousands of digits
        raise MalformedData(
            f"{source} is not JSON: {error}", hint="Is the file complete, and is it the file you mean?"
        ) from None
