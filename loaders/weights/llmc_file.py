"""The .bin of llm.c: 256 integers, then all tensors in a fixed order, each of them for all layers one after another.

Written by write_model of its train_gpt2.py, and gpt2_write_to_checkpoint of its train_gpt2.cu. Linear weights are (out, in), and
rows of zeros pad the vocabulary, which are left out here.
"""

from math import prod
from pathlib import Path

import numpy as np
from pg_gpt2.core.config import block_shapes
from pg_gpt2.limits import MOST_LAYERS

from loaders.common import LoaderError
from loaders.weights.tensors import DTYPES, Stored, Tensor, Weights

MAGIC = (20240326).to_bytes(4, "little")
HEADER = 256 * 4  # bytes
VERSIONS = {3: "F32", 5: "BF16"}


def read(path: Path) -> Weights:
    """What the header says, and where its tensors lie; LoaderError when the file is of another version or size."""
    header = np.fromfile(path, "<i4", 8)
    size = path.stat().st_size
    if size < HEADER or header[1] not in VERSIONS:
        raise LoaderError(f"{path} is no checkpoint of llm.c of version 3 (float32) or 5 (bfloat16)")
    n_positions, vocab, n_layer, n_head, d, padded = map(int, header[2:])
    if min(n_positions, vocab, n_layer, n_head, d) < 1 or padded < vocab:
        raise LoaderError(f"{path}: a model of llm.c cannot have the sizes {header[2:].tolist()}")
    if n_layer > MOST_LAYERS:
        raise LoaderError(f"{path}: n_layer {n_layer} is more than {MOST_LAYERS}")
    dtype = VERSIONS[int(header[1])]
    tensors: list[tuple[str, Tensor]] = []
    offset = HEADER
    for name, shape, stored in _layout(n_positions, vocab, n_layer, d, padded):
        tensors.append((name, Stored(path, dtype, shape, offset)))
        offset += prod(stored) * np.dtype(DTYPES[dtype]).itemsize
    if size != offset:
        raise LoaderError(f"{path} has {size} bytes, and its header is that of one of {offset}")
    sizes = {"n_layer": n_layer, "n_head": n_head, "n_embd": d, "n_positions": n_positions, "vocab_size": vocab}
    return Weights(tensors, sizes, str(path))


def _layout(n_positions: int, vocab: int, n_layer: int, d: int, padded: int) -> list[tuple[str, tuple, tuple]]:
    """(name, shape, shape with the padding), in the order of the file."""
    found: list[tuple[str, tuple, tuple]] = [
        ("wte", (vocab, d), (padded, d)),
        ("wpe", (n_positions, d), (n_positions, d)),
    ]
    for name, shape in block_shapes(d).items():
        found += [(f"h.{i}.{name}", shape[::-1], shape) for i in range(n_layer)]
    return found + [(f"ln_f.{name}", (d,), (d,)) for name in ("weight", "bias")]
