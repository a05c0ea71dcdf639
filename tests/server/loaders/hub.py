"""A small model in the forms that the hub has, and what the database makes of it."""

import json
import sys

import numpy as np

from loaders import load_model
from loaders.common import Database
from loaders.hub_model import Config

CONFIG = Config(n_layer=2, n_head=2, d_model=16, n_positions=32, vocab=300, eos_token_id=299)
TEXTS = [
    "The tables are the truth,\r\nmemory is a cache.\n",
    "# # naïve 日本 <|endoftext|> x\n",
    "arithmetic is BLAS " * 30,
]


def weights(seed=0):
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in CONFIG.shapes().items()}


def hub_names(tensors):
    return {f"transformer.{n}.weight" if n in ("wte", "wpe") else f"transformer.{n}": v for n, v in tensors.items()}


def bfloat16_file(path, tensors):
    """A safetensors file of bfloat16, which NumPy and so the library's NumPy side cannot write."""
    header, data = {}, b""
    for name, values in tensors.items():
        upper = (np.ascontiguousarray(values).view(np.uint32) >> 16).astype("<u2").tobytes()
        header[name] = {"dtype": "BF16", "shape": values.shape, "data_offsets": [len(data), len(data) + len(upper)]}
        data += upper
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def truncated_to_bfloat16(values):
    return (values.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)


def stored(conn, model):
    """Weights of the database by name, put together from their blocks."""
    rows = conn.execute(
        "SELECT name, token_id, shape, data FROM llm_param WHERE model = %s ORDER BY name, token_id", [model]
    )
    found: dict[str, list[np.ndarray]] = {}
    for name, first, shape, data in rows:
        assert first == sum(len(block) for block in found.get(name, []))
        found.setdefault(name, []).append(np.frombuffer(data, "<f4").reshape(shape))
    return {name: np.concatenate(blocks) for name, blocks in found.items()}


def assert_same(found, expected):
    assert set(found) == set(expected)
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)


def load(conn, path, model, **options):
    with conn.transaction():
        load_model.load_model(Database(conn), path, model, **options)


def run(program, monkeypatch, *args):
    """Run a program's main as the command line would."""
    monkeypatch.setattr(sys, "argv", [program.__name__, *map(str, args)])
    program.main()
