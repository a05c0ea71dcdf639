"""What the readers share: the protocol, exact reads, float conversion, and typed errors for damaged files.

Damage must never show as a bare `zlib.error` or an allocation as large as a damaged header says, so every call into a
decompressor stands inside `reading()` and every read is of a size that the caller has checked.
"""

import errno
import struct
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from gzip import BadGzipFile
from math import prod
from typing import BinaryIO, Protocol

import numpy as np

from .. import host
from ..errors import FileAccessError, InconsistentData, InvalidParameter, MalformedData, OutOfMemory

DEFAULT_MAX_BYTES = 16 << 30  # gpt2-xl is 6.2 GB in float32; whoever knows the config passes less
MAX_TENSORS = 10_000  # gpt2-xl has 580, and a header with ten times as many takes half a second
SKIP_BYTES = 4 << 20


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
    except (BadGzipFile, zipfile.BadZipFile, zlib.error, EOFError, struct.error) as error:
        raise MalformedData(f"{what} is damaged: {error}", hint="Copy or export the file again.") from error
    except (ValueError, OverflowError, NotImplementedError, RuntimeError) as error:
        raise MalformedData(f"{what} cannot be read: {error}", hint="Copy or export the file again.") from error
    except MemoryError as error:
        raise OutOfMemory(f"{what} does not fit into memory", hint="Free memory, or use a smaller model.") from error
    except OSError as error:
        if error.errno in (None, errno.EINVAL):  # a seek to where a damaged directory points
            raise MalformedData(f"{what} is damaged: {error}", hint="Copy or export the file again.") from error
        raise FileAccessError(
            f"{what} cannot be read: {error.strerror}", hint="Check the disk and the file's permissions."
        ) from error


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
    """A writable vector of `count` numbers, read without a second copy where the file allows."""
    with reading(what):
        values = np.empty(count, dtype)
    left = values.view(np.uint8).data
    while left:
        with reading(what):
            got = file.readinto(left)  # type: ignore[attr-defined]
        if not got:
            raise truncated(what, len(left))
        left = left[got:]
    return values


def skip(file: BinaryIO, count: int, what: str) -> None:
    """Read past `count` bytes of a stream that cannot seek cheaply; can be interrupted."""
    while count:
        count -= len(read_exactly(file, min(count, SKIP_BYTES), what))
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
