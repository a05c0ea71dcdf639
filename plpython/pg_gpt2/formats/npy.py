"""The header of one `.npy` array: dtype, order and shape, parsed without NumPy's loader and never unpickled.

Follows NEP 1 (versions 1 and 2; 3 differs in the header's encoding only). What cannot be imported, such as integers, is
still understood far enough to step over it; arrays of Python objects are refused at sight, for they are pickles.
"""

import ast
import re
from dataclasses import dataclass
from math import prod
from typing import BinaryIO

import numpy as np

from ..errors import FeatureNotSupported, MalformedData
from .source import read_exactly, reading, shown

MAGIC = b"\x93NUMPY"
MAX_HEADER_BYTES = 10_000  # NumPy's own limit: what parses literals is not meant for long hostile ones
DESCR = re.compile(r"([<>|=]?)([?biufc])(\d{0,2})")


@dataclass(frozen=True)
class NpyHeader:
    """`size` is the header's own length in bytes, `nbytes` that of the data after it."""

    descr: str
    fortran_order: bool
    shape: tuple[int, ...]
    itemsize: int
    size: int

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * self.itemsize

    def float_dtype(self, name: str) -> np.dtype:
        """The dtype as stored; 0A000 unless it is a float of 16, 32 or 64 bits."""
        if "f" not in self.descr or self.itemsize not in (2, 4, 8):
            raise FeatureNotSupported(
                f"tensor {name} has dtype {self.descr}; float16, float32 and float64 can be imported",
                hint="Write it with numpy.savez after .astype(numpy.float32).",
            )
        return np.dtype(self.descr)


def read_npy_header(file: BinaryIO, name: str) -> NpyHeader:
    """Parse the header at the file's position and stop behind it. `name` is for the errors."""
    what = f"tensor {name}"
    start = read_exactly(file, 8, what)
    if start[:6] != MAGIC:
        raise MalformedData(f"{what} is not a .npy array", hint="Write the file with numpy.savez.")
    major = start[6]
    if major not in (1, 2, 3):
        raise MalformedData(
            f"{what} has .npy version {major}.{start[7]}; 1, 2 and 3 are known",
            hint="Write the file again with numpy.savez.",
        )
    width = 2 if major == 1 else 4
    length = int.from_bytes(read_exactly(file, width, what), "little")
    if length > MAX_HEADER_BYTES:
        raise MalformedData(
            f"{what} has a .npy header of {length} bytes, over the limit of {MAX_HEADER_BYTES}",
            hint="Write the file again with numpy.savez.",
        )
    text = read_exactly(file, length, what)
    with reading(what):
        try:
            fields = ast.literal_eval(text.decode("utf-8" if major == 3 else "latin1").strip())
        except (SyntaxError, TypeError, MemoryError) as error:  # MemoryError is how the parser says: too deep
            raise MalformedData(
                f"{what} has an unreadable .npy header", hint="Copy or export the file again."
            ) from error
    if not isinstance(fields, dict) or set(fields) != {"descr", "fortran_order", "shape"}:
        raise MalformedData(
            f"{what} has a .npy header without exactly descr, fortran_order and shape",
            hint="Write the file again with numpy.savez.",
        )
    shape, fortran_order = fields["shape"], fields["fortran_order"]
    if (
        not isinstance(shape, tuple)
        or len(shape) > 32
        or not all(type(dim) is int and 0 <= dim < 1 << 63 for dim in shape)
    ):
        raise MalformedData(
            f"{what} has shape {shown(shape)}, not a tuple of sizes", hint="Write the file again with numpy.savez."
        )
    if not isinstance(fortran_order, bool):
        raise MalformedData(
            f"{what} has fortran_order {shown(fortran_order)}, not a truth value",
            hint="Write the file again with numpy.savez.",
        )
    itemsize = _itemsize(fields["descr"], what)
    return NpyHeader(fields["descr"], fortran_order, shape, itemsize, 8 + width + length)


def _itemsize(descr: object, what: str) -> int:
    if "O" in shown(descr):
        raise MalformedData(
            f"{what} is pickled (dtype {shown(descr)}); a pickle runs code when read and is never read here",
            hint="Write plain float32 arrays: numpy.savez(path, **{name: array.astype('float32')}).",
        )
    match = DESCR.fullmatch(descr) if isinstance(descr, str) else None
    if match is None:
        raise MalformedData(
            f"{what} has dtype {shown(descr)}, which is not a plain number", hint="Convert the array to float32."
        )
    size = int(match[3] or 1)
    if not 1 <= size <= 32:
        raise MalformedData(
            f"{what} has dtype {shown(descr)}, which does not exist", hint="Convert the array to float32."
        )
    return size
