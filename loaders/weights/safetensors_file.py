"""A safetensors file: one of save_pretrained, or a shard of it. What it is of is in the config.json beside it.

The safetensors library checks it; the tensors are then read through a memory map, because NumPy has no bfloat16 and the library
cannot give it to NumPy.
"""

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open

from loaders.common import LoaderError
from loaders.weights.tensors import Stored, Tensor, Weights


def read(path: Path) -> Weights:
    """The tensors of one file, by the names it has; LoaderError when the safetensors library finds it invalid."""
    try:
        with safe_open(path, framework="numpy"):
            pass
    except (SafetensorError, OSError) as error:
        raise LoaderError(f"{path}: {error}") from None
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    tensors: list[tuple[str, Tensor]] = [
        (name, Stored(path, entry["dtype"], tuple(entry["shape"]), 8 + length + entry["data_offsets"][0]))
        for name, entry in header.items()
    ]
    return Weights(tensors)
