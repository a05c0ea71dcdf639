"""Checkpoint files: safetensors, NumPy's `.npz` and the older gzip container, read and written in row blocks.

Every reader presents one protocol, `TensorReader`, so that a 500 MB file never has to be in memory at once, and no
reader unpickles. `checkpoint.Checkpoint` lays our names and the checks of a GPT-2 over any of them.
"""

from typing import BinaryIO

from ..core.config import GPT2Config
from ..errors import MalformedData
from .checkpoint import Checkpoint, agreed, hub_metadata, hub_name, max_file_bytes
from .gzip_npz import GzipNpzReader
from .hub_config import MAX_CONFIG_BYTES, read_config
from .npz import NpzReader, write_npz
from .safetensors import SafetensorsReader, write_safetensors
from .source import DEFAULT_MAX_BYTES, LFS_POINTER, TensorReader, reading, refuse_pointer

__all__ = [
    "MAX_CONFIG_BYTES",
    "Checkpoint",
    "GzipNpzReader",
    "NpzReader",
    "SafetensorsReader",
    "TensorReader",
    "agreed",
    "hub_metadata",
    "hub_name",
    "open_npz",
    "open_safetensors",
    "read_config",
    "write_npz",
    "write_safetensors",
]


def open_safetensors(file: BinaryIO) -> Checkpoint:
    """The GPT-2 in an open safetensors file; closing the result closes `file`."""
    return Checkpoint(SafetensorsReader(file))


def open_npz(file: BinaryIO, config: GPT2Config | None = None) -> Checkpoint:
    """The GPT-2 in an open `.npz`, standard or the older gzip stream; closing the result closes `file`.

    A file that would inflate to more than `config` can use is refused unread: pass it when it is known.
    """
    max_bytes = DEFAULT_MAX_BYTES if config is None else max_file_bytes(config)
    with reading("the file"):
        magic = file.read(len(LFS_POINTER))
        file.seek(0)
    refuse_pointer(magic, "the file")
    if magic[:2] == b"\x1f\x8b":
        return Checkpoint(GzipNpzReader(file, max_bytes))
    if magic[:2] == b"PK":
        return Checkpoint(NpzReader(file, max_bytes))
    raise MalformedData(
        "this is neither a .npz (zip) file nor the older gzip container",
        hint="Write one with numpy.savez or loaders/convert_gpt2_checkpoint.py; safetensors have their own import.",
    )
