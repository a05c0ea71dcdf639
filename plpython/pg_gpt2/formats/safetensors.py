"""The safetensors format: an 8-byte length, a JSON header, then the tensors' bytes without gaps.

Follows https://github.com/huggingface/safetensors (README, "Format"). Reads F32, F16 and BF16; writes F32.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import BinaryIO

import numpy as np

from .. import host
from ..errors import FeatureNotSupported, InconsistentData, MalformedData
from ..tensor import to_bytes
from .source import (
    LFS_POINTER,
    MAX_TENSORS,
    check_rows,
    read_array,
    read_exactly,
    reading,
    refuse_pointer,
    shown,
    to_float32,
)

# The format allows 100 MB. JSON takes up to 20 times its size as Python objects and is parsed in one call that cannot be
# interrupted, 2 MB in a quarter of a second; gpt2-xl needs 70 kB.
MAX_HEADER_BYTES = 2_000_000

DTYPE_BITS = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "I8", "U8", "BOOL"), 8),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    "F4": 4,
}
STORED: dict[str, np.dtype] = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2")}


@dataclass(frozen=True)
class Entry:
    """One tensor of the header; `start` counts from the beginning of the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


class SafetensorsReader:
    """Tensors of an open safetensors file, in the order of their bytes."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        with reading("the file"):
            size = file.seek(0, os.SEEK_END)
            file.seek(0)
            start = file.read(len(LFS_POINTER))
            file.seek(0)
        refuse_pointer(start, "the file")
        self.metadata, self._entries = parse_header(file, size)

    def names(self) -> Sequence[str]:
        return list(self._entries)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._entries[name].shape

    def rows(self, name: str, start: int, stop: int) -> np.ndarray:
        entry = self._entries[name]
        dtype = STORED.get(entry.dtype)
        if dtype is None:
            raise FeatureNotSupported(
                f"tensor {name} has dtype {entry.dtype}; F32, F16 and BF16 can be imported",
                hint="Convert the checkpoint, for example with model.float().save_pretrained(...).",
            )
        width = check_rows(name, entry.shape, start, stop)
        with reading(f"tensor {name}"):
            self._file.seek(entry.start + start * width * dtype.itemsize)
        values = read_array(self._file, (stop - start) * width, dtype, f"tensor {name}")
        values = bfloat16_to_float32(values) if entry.dtype == "BF16" else to_float32(values)
        return values.reshape(stop - start, *entry.shape[1:])

    def close(self) -> None:
        self._file.close()


def bfloat16_to_float32(bits: np.ndarray) -> np.ndarray:
    """A bfloat16 is the upper half of the float32 that it means. uint16 -> float32, same shape."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def parse_header(file: BinaryIO, size: int) -> tuple[dict[str, str], dict[str, Entry]]:
    """Metadata and entries in byte order, of a file of `size` bytes; 22P02 unless all of it is as the format says."""
    if size < 8:
        raise malformed(f"a file of {size} bytes is too short")
    length = int.from_bytes(read_exactly(file, 8, "the header"), "little")
    if length > size - 8:
        raise malformed(f"the header claims {length} bytes, the file has {size - 8} after its length")
    if length > MAX_HEADER_BYTES:
        raise malformed(f"a header of {length} bytes is over the limit of {MAX_HEADER_BYTES}")
    with reading("the safetensors header"):  # JSONDecodeError is a ValueError, RecursionError a RuntimeError
        header = json.loads(read_exactly(file, length, "the header"), object_pairs_hook=_object, parse_constant=_refuse)
    if not isinstance(header, dict):
        raise malformed("the header is not a JSON object")
    metadata = header.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise malformed("__metadata__ must map strings to strings")
    if len(header) > MAX_TENSORS:
        raise malformed(f"{len(header)} tensors are over the limit of {MAX_TENSORS}")
    entries = {name: _entry(name, described, 8 + length) for name, described in header.items()}
    # An empty tensor starts where its neighbour does, hence the second key.
    entries = dict(sorted(entries.items(), key=lambda item: (item[1].start, item[1].stop)))
    end = 8 + length
    for name, entry in entries.items():
        if entry.start != end:
            raise malformed(f"tensor {name} starts at byte {entry.start}, not at {end} where the one before it ends")
        end = entry.stop
    if end != size:
        raise malformed(f"the tensors end at byte {end}, the file at {size}")
    return metadata, entries


def _entry(name: str, described: object, base: int) -> Entry:
    if not isinstance(described, dict) or set(described) != {"dtype", "shape", "data_offsets"}:
        raise malformed(f"tensor {name} needs exactly dtype, shape and data_offsets")
    dtype, shape, offsets = described["dtype"], described["shape"], described["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise malformed(f"tensor {name} has unknown dtype {shown(dtype)}")
    if not _sizes(shape):
        raise malformed(f"tensor {name} has shape {shown(shape)}, not a list of sizes")
    if not _sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise malformed(f"tensor {name} has data_offsets {shown(offsets)}, not a start and an end")
    if prod(shape) * DTYPE_BITS[dtype] != (offsets[1] - offsets[0]) * 8:
        raise malformed(f"tensor {name} is {dtype} of shape {shape}, which {offsets[1] - offsets[0]} bytes do not hold")
    return Entry(dtype, tuple(shape), base + offsets[0], base + offsets[1])


def _sizes(values: object) -> bool:
    """Whether it is a list of a few non-negative integers below 2**63 (bool is an int to Python)."""
    return (
        isinstance(values, list)
        and len(values) <= 32
        and all(type(value) is int and 0 <= value < 1 << 63 for value in values)
    )


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found: dict[str, object] = {}
    for name, value in pairs:
        if name in found:
            raise malformed(f"{shown(name)} stands twice in the header")
        found[name] = value
    host.check_interrupts()
    return found


def _refuse(constant: str) -> object:
    raise malformed(f"{constant} is not JSON")


def malformed(reason: str) -> MalformedData:
    """The error for a file that is not safetensors."""
    return MalformedData(f"not a safetensors file: {reason}", hint="Copy the file again.")


def write_safetensors(
    shapes: Mapping[str, Sequence[int]],
    blocks: Callable[[str], Iterable[np.ndarray]],
    metadata: Mapping[str, str] | None = None,
) -> Iterator[bytes]:
    """Chunks of a float32 file: the header, then one chunk for each array that `blocks(name)` gives, in order.

    `metadata` joins {"format": "pt"}, without which transformers refuses the file.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt", **(metadata or {})}}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + 4 * prod(shape)
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for name, shape in shapes.items():
        yield from exact_blocks(name, shape, blocks(name))


def exact_blocks(name: str, shape: Sequence[int], blocks: Iterable[np.ndarray]) -> Iterator[bytes]:
    """Bytes of each block; 22000 unless together they are the tensor of that shape."""
    left = 4 * prod(shape)
    for block in blocks:
        data = to_bytes(block)
        left -= len(data)
        if left < 0:
            break
        yield data
    if left:
        raise InconsistentData(
            f"the stored blocks of tensor {name} do not add up to its shape {list(shape)}",
            hint="Import the model again, or restore the rows of llm_param.",
        )
