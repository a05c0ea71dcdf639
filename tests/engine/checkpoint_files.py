"""Checkpoint files of each format, for the tests of reading and writing them."""

import gzip
import io
import json
import struct

import numpy as np
import pytest
from pg_gpt2 import formats
from pg_gpt2.core.config import GPT2Config

CONFIG = GPT2Config(n_layer=2, n_head=2, d_model=4, n_positions=8, vocab=11, eos_token_id=10)


def weights(config=CONFIG, seed=0):
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape).astype("<f4") for name, shape in config.param_shapes().items()}


def shapes_of(tensors):
    return {name: values.shape for name, values in tensors.items()}


def in_blocks(tensors, rows=3):
    return lambda name: [tensors[name][i : i + rows] for i in range(0, len(tensors[name]), rows)]


def safetensors_bytes(tensors, metadata=None):
    return b"".join(formats.write_safetensors(shapes_of(tensors), in_blocks(tensors), metadata))


def npz_bytes(tensors, metadata=None):
    file = io.BytesIO()
    formats.write_npz(file, shapes_of(tensors), in_blocks(tensors), metadata)
    return file.getvalue()


def deflated_bytes(tensors):
    file = io.BytesIO()
    np.savez_compressed(file, **tensors)
    return file.getvalue()


def npy(values, version=(1, 0)):
    file = io.BytesIO()
    np.lib.format.write_array(file, values, version=version)
    return file.getvalue()


def gzip_bytes(tensors, version=(1, 0)):
    parts = [struct.pack("<H", len(name.encode())) + name.encode() + npy(v, version) for name, v in tensors.items()]
    return gzip.compress(b"".join(parts), 1)


def raw_safetensors(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def import_all(checkpoint, config=CONFIG, block_rows=1000):
    """All tensors of an open checkpoint, read as the server does."""
    found = {}
    with checkpoint:
        for name, shape, read in checkpoint.tensors(config):
            blocks = [read(start, min(start + block_rows, shape[0])) for start in range(0, shape[0], block_rows)]
            found[name] = np.concatenate(blocks)
            assert found[name].dtype == np.float32
    return found


def assert_same(found, expected):
    assert set(found) == set(expected)
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)


WRITERS = {
    "safetensors": (safetensors_bytes, formats.open_safetensors),
    "npz": (npz_bytes, formats.open_npz),
    "npz deflated": (deflated_bytes, formats.open_npz),
    "gzip": (gzip_bytes, formats.open_npz),
    "gzip v2": (lambda tensors: gzip_bytes(tensors, (2, 0)), formats.open_npz),
}
every_format = pytest.mark.parametrize(("write", "open_"), WRITERS.values(), ids=WRITERS)
