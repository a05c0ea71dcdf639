"""Small GPT-2 weights as files of the formats that the server reads and writes, and as rows."""

import gzip
import io
import struct

import numpy as np
import pytest
import safetensors.numpy

SHAPE = {"n_layer": 2, "n_head": 2, "n_embd": 16, "n_positions": 32, "vocab_size": 50}


def shapes():
    d, layers = SHAPE["n_embd"], SHAPE["n_layer"]
    block = {
        "ln_1.weight": (d,),
        "ln_1.bias": (d,),
        "attn.c_attn.weight": (d, 3 * d),
        "attn.c_attn.bias": (3 * d,),
        "attn.c_proj.weight": (d, d),
        "attn.c_proj.bias": (d,),
        "ln_2.weight": (d,),
        "ln_2.bias": (d,),
        "mlp.c_fc.weight": (d, 4 * d),
        "mlp.c_fc.bias": (4 * d,),
        "mlp.c_proj.weight": (4 * d, d),
        "mlp.c_proj.bias": (d,),
    }
    found = {"wte.weight": (SHAPE["vocab_size"], d), "wpe.weight": (SHAPE["n_positions"], d)}
    for layer in range(layers):
        found |= {f"h.{layer}.{name}": shape for name, shape in block.items()}
    return found | {"ln_f.weight": (d,), "ln_f.bias": (d,)}


def weights(seed=0):
    """Random tensors by the names of the hub, without a prefix."""
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape).astype("<f4") for name, shape in shapes().items()}


def stored(conn, model):
    rows = conn.execute(
        "SELECT name, token_id, shape, data FROM llm_param WHERE model = %s ORDER BY name, token_id", [model]
    )
    found: dict[str, list] = {}
    for name, first, shape, data in rows:
        assert first == sum(len(block) for block in found.get(name, []))
        found.setdefault(name, []).append(np.frombuffer(data, "<f4").reshape(shape))
    return {name: np.concatenate(blocks) for name, blocks in found.items()}


def assert_stored(conn, model, tensors):
    found = stored(conn, model)
    expected = {
        name.replace("wte.weight", "wte").replace("wpe.weight", "wpe"): array for name, array in tensors.items()
    }
    assert set(found) == set(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array.astype("<f4"), err_msg=name)


def safe(tensors, metadata=None):
    return safetensors.numpy.save(tensors, metadata)


def npz(tensors, compress=False):
    file = io.BytesIO()
    (np.savez_compressed if compress else np.savez)(file, **tensors)
    return file.getvalue()


def npy(array):
    file = io.BytesIO()
    np.lib.format.write_array(file, array, allow_pickle=True)
    return file.getvalue()


def container(tensors):
    """The older .npz: one gzip stream of (name length, name, .npy)."""
    parts = [struct.pack("<H", len(name)) + name.encode() + npy(array) for name, array in tensors.items()]
    return gzip.compress(b"".join(parts))


def prefixed(tensors):
    return {f"transformer.{name}": array for name, array in tensors.items()}


@pytest.fixture(autouse=True, scope="module")
def registered(module_conn):
    module_conn.execute("INSERT INTO llm_model_config VALUES ('model', 2, 2, 16, 32, 50), ('back', 2, 2, 16, 32, 50)")


@pytest.fixture(name="sql")
def rolled_back(module_conn):
    """The module's session; models that a test made are gone after it."""
    with module_conn.transaction(force_rollback=True):
        yield module_conn
