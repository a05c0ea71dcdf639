"""Weights as files of the server: exact round trips, and what is refused. test_file_configurations.py has how a file
says what it is of, loaders/test_load_model.py those of the client."""

import gzip
import io
import json
import os
import zipfile

import numpy as np
import psycopg
import pytest
import safetensors.numpy

from tests.server.weight_files import (  # noqa: F401
    assert_stored,
    container,
    npy,
    npz,
    prefixed,
    registered,
    rolled_back,
    safe,
    shapes,
    stored,
    weights,
)

errors = psycopg.errors

# ---- round trips


def test_safetensors_come_back_bit_for_bit_and_open_in_the_library(sql, put, target):
    tensors = weights()
    tensors["wte.weight"][0, 0] = -0.0
    tensors["wte.weight"][0, 1] = np.float32(1e-45)
    assert sql.execute(
        "SELECT pg_llm_import_safetensors(%s, 'model')", [put("a", safe(prefixed(tensors)))]
    ).fetchone() == (28,)
    assert_stored(sql, "model", tensors)
    (size,) = sql.execute("SELECT pg_llm_export_safetensors(%s, 'model')", [str(target)]).fetchone()
    assert size == target.stat().st_size
    written = safetensors.numpy.load_file(target)
    assert {name: array.tobytes() for name, array in written.items()} == {
        name: array.tobytes() for name, array in prefixed(tensors).items()
    }
    with safetensors.safe_open(target, "numpy") as file:
        assert file.metadata()["format"] == "pt", "which transformers asks for"
    sql.execute("SELECT pg_llm_import_safetensors(%s, 'back')", [str(target)])
    assert_stored(sql, "back", tensors)
    chunks = b"".join(row[0] for row in sql.execute("SELECT llm_export_safetensors('model')"))
    assert chunks == target.read_bytes()


@pytest.mark.parametrize(
    "pack", [npz, lambda t: npz(t, True), container], ids=["npz", "compressed npz", "older container"]
)
def test_npz_comes_back_bit_for_bit_and_opens_in_numpy(sql, put, target, pack):
    tensors = weights(1)
    sql.execute("SELECT pg_llm_import_npz(%s, 'model')", [put("a.npz", pack(tensors))])
    assert_stored(sql, "model", tensors)
    (size,) = sql.execute("SELECT pg_llm_export_npz(%s, 'model')", [str(target)]).fetchone()
    assert size == target.stat().st_size
    with np.load(target, allow_pickle=False) as written:
        for name, array in stored(sql, "model").items():
            np.testing.assert_array_equal(written[name], array)
    sql.execute("SELECT pg_llm_import_npz(%s, 'back')", [str(target)])
    assert_stored(sql, "back", tensors)


def test_a_file_of_ours_brings_its_configuration(sql, put, target):
    sql.execute("SELECT llm_init_model('a', 1, 4, 16, 8, 30)")
    for export, load in (("safetensors", "safetensors"), ("npz", "npz")):
        sql.execute(f"SELECT pg_llm_export_{export}(%s, 'a')", [str(target)])
        sql.execute(f"SELECT pg_llm_import_{load}(%s, %s)", [str(target), f"new {load}"])
        row = "SELECT n_layer, n_head, d_model, n_positions, vocab FROM llm_model_config WHERE model = %s"
        assert sql.execute(row, [f"new {load}"]).fetchone() == (1, 4, 16, 8, 30)
        assert stored(sql, f"new {load}").keys() == stored(sql, "a").keys()


def half(array):
    return array.astype("<f2")


def test_names_buffers_head_and_types_that_checkpoints_have(sql, put):
    tensors = weights(2)
    other = prefixed(tensors)
    other["transformer.h.0.attn.bias"] = np.ones((1, 1, 32, 32), np.uint8)
    other["transformer.h.0.attn.masked_bias"] = np.float32([-1e4])
    other["lm_head.weight"] = tensors["wte.weight"]
    sql.execute("SELECT pg_llm_import_safetensors(%s, 'model')", [put("a", safe(other))])
    assert_stored(sql, "model", tensors)
    compiled = {f"_orig_mod.transformer.{name}": half(array) for name, array in tensors.items()}
    sql.execute("SELECT pg_llm_import_safetensors(%s, 'model', true)", [put("b", safe(compiled))])
    assert_stored(sql, "model", {name: half(array) for name, array in tensors.items()})


def test_a_file_replaced_while_nothing_else_changes(sql, put):
    sql.execute("SELECT pg_llm_import_safetensors(%s, 'model')", [put("a", safe(weights(1)))])
    with pytest.raises(errors.DuplicateObject), sql.transaction():
        sql.execute("SELECT pg_llm_import_safetensors(%s, 'model')", [put("b", safe(weights(2)))])
    assert_stored(sql, "model", weights(1))
    sql.execute("SELECT pg_llm_import_safetensors(%s, 'model', replace => true)", [put("b", safe(weights(2)))])
    assert_stored(sql, "model", weights(2))


# ---- what is refused


def changed(name, value):
    tensors = weights()
    if value is None:
        del tensors[name]
    else:
        tensors[name] = value
    return tensors


def nan_in(name, value=np.nan):
    tensors = weights()
    tensors[name].reshape(-1)[-1] = value
    return tensors


WRONG = {
    "missing tensor": (changed("h.1.ln_2.bias", None), errors.DataException, "h.1.ln_2.bias"),
    "extra tensor": (changed("h.2.ln_2.bias", np.zeros(16, "<f4")), errors.DataException, "h.2.ln_2.bias"),
    "misshapen tensor": (changed("wpe.weight", np.zeros((31, 16), "<f4")), errors.DataException, "wpe"),
    "transposed tensor": (
        changed("h.0.attn.c_attn.weight", np.zeros((48, 16), "<f4")),
        errors.DataException,
        "h.0.attn.c_attn.weight",
    ),
    "another head": (changed("lm_head.weight", np.ones((50, 16), "<f4")), errors.DataException, "lm_head"),
    "NaN": (nan_in("h.1.mlp.c_fc.weight"), errors.DataException, "h.1.mlp.c_fc.weight"),
    "infinity": (nan_in("ln_f.bias", -np.inf), errors.DataException, "ln_f.bias"),
    "integers": (
        changed("ln_f.bias", np.zeros(16, np.int32)),
        errors.FeatureNotSupported,
        "ln_f.bias",
    ),
}


@pytest.mark.parametrize("kind", ["safetensors", "npz"])
@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("replace", [False, True], ids=["new", "replacing"])
def test_wrong_tensors_are_named_and_nothing_changes(sql, put, kind, wrong, replace):
    tensors, error, name = WRONG[wrong]
    if replace:
        sql.execute("SELECT llm_import_safetensors(%s, 'model')", [safe(weights(9))])
    path = put("wrong", (safe if kind == "safetensors" else npz)(tensors))
    with pytest.raises(error, match=name) as raised, sql.transaction():
        sql.execute(f"SELECT pg_llm_import_{kind}(%s, 'model', %s)", [path, replace])
    assert raised.value.diag.message_hint
    assert "Traceback" not in raised.value.diag.message_primary
    if replace:
        assert_stored(sql, "model", weights(9))
    else:
        assert stored(sql, "model") == {}


GOOD = safe(weights())


def header(change):
    """GOOD with its header changed."""
    length = int.from_bytes(GOOD[:8], "little")
    text = json.dumps(change(json.loads(GOOD[8 : 8 + length]))).encode()
    return len(text).to_bytes(8, "little") + text + GOOD[8 + length :]


def overlapping(parsed):
    parsed["ln_f.bias"]["data_offsets"] = parsed["ln_f.weight"]["data_offsets"]
    return parsed


def unknown_type(parsed):
    parsed["ln_f.bias"]["dtype"] = "F8_E5M2"
    return parsed


def listed(parsed):
    return list(parsed)


BROKEN_SAFETENSORS = {
    "empty": b"",
    "text": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
    "truncated header": GOOD[:100],
    "truncated data": GOOD[:-1],
    "trailing data": GOOD + b"\0",
    "header too long": (2**63).to_bytes(8, "little") + GOOD[8:],
    "header is no object": header(listed),
    "overlapping tensors": header(overlapping),
    "unknown type": header(unknown_type),
    "npz": npz(weights()),
}


@pytest.mark.parametrize("data", BROKEN_SAFETENSORS.values(), ids=BROKEN_SAFETENSORS)
def test_a_broken_safetensors_file_is_refused(sql, put, data):
    with pytest.raises((errors.InvalidTextRepresentation, errors.DataException)) as raised, sql.transaction():
        sql.execute("SELECT pg_llm_import_safetensors(%s, 'model')", [put("broken", data)])
    assert raised.value.diag.message_hint
    assert "unexpected" not in raised.value.diag.message_primary
    assert stored(sql, "model") == {}


class Command:
    """Runs when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, (Command.path,)

    path = ""


def test_nothing_is_unpickled(sql, put, server_files):
    Command.path = str(server_files / "unpickled")
    tensors = weights()
    tensors["ln_f.bias"] = np.array([Command()], dtype=object)
    for data in (npz(tensors), container(tensors)):
        refusals = (errors.InvalidTextRepresentation, errors.DataException)
        with pytest.raises(refusals, match=r"ln_f\.bias") as raised, sql.transaction():
            sql.execute("SELECT pg_llm_import_npz(%s, 'model')", [put("pickled.npz", data)])
        assert raised.value.diag.message_hint
    assert not (server_files / "unpickled").exists()


def archive(**members):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as made:
        for name, data in members.items():
            made.writestr(name, data)
    return file.getvalue()


BROKEN_NPZ = {
    "empty": b"",
    "text": b"not a file of weights",
    "truncated": npz(weights())[:-100],
    "truncated in the middle": npz(weights())[:5000],
    "no npy in it": archive(**{"wte.weight.npy": b"hello"}),
    "an empty archive": archive(),
    "a bomb": archive(**{"wte.weight.npy": npy(np.zeros((1 << 24,), "<f4"))}),
    "truncated gzip": container(weights())[:-50],
    "gzip of something": gzip.compress(b"something else"),
    "Fortran order": container(changed("wpe.weight", np.asfortranarray(weights()["wpe.weight"]))),
    "safetensors": GOOD,
}


@pytest.mark.parametrize("data", BROKEN_NPZ.values(), ids=BROKEN_NPZ)
def test_a_broken_npz_file_is_refused(sql, put, data):
    refusals = (errors.InvalidTextRepresentation, errors.DataException, errors.FeatureNotSupported)
    with pytest.raises(refusals) as raised, sql.transaction():
        sql.execute("SELECT pg_llm_import_npz(%s, 'model')", [put("broken.npz", data)])
    assert raised.value.diag.message_hint
    assert "unexpected" not in raised.value.diag.message_primary
    assert stored(sql, "model") == {}


def test_a_file_without_heads_needs_a_configuration(sql, put):
    with pytest.raises(errors.UndefinedObject) as raised, sql.transaction():
        sql.execute("SELECT pg_llm_import_safetensors(%s, 'unheard of')", [put("a", GOOD)])
    assert "llm_model_config" in raised.value.diag.message_hint


def test_an_export_that_fails_leaves_the_file_that_was_there(sql, put):
    path = put("kept", b"kept")
    directory = os.path.dirname(path)
    before = sorted(os.listdir(directory))
    sql.execute("SELECT llm_init_model('model'); DELETE FROM llm_param WHERE model = 'model' AND name = 'wte'")
    for function in ("pg_llm_export_safetensors", "pg_llm_export_npz"):
        with pytest.raises(errors.DataException, match="wte"), sql.transaction():
            sql.execute(f"SELECT {function}(%s, 'model')", [path])
    with open(path, "rb") as file:
        assert file.read() == b"kept"
    assert sorted(os.listdir(directory)) == before


@pytest.mark.parametrize(
    ("damage", "tensor"),
    [
        ("DELETE FROM llm_param WHERE model = 'model' AND name = 'h.1.mlp.c_fc.bias'", "h.1.mlp.c_fc.bias"),
        ("INSERT INTO llm_param (model, name, shape, data) VALUES ('model', 'x', '{1}', '\\x00000000')", "x"),
        (
            "UPDATE llm_param SET shape = '{64,16}' WHERE model = 'model' AND name = 'h.0.mlp.c_fc.weight'",
            "h.0.mlp.c_fc",
        ),
        ("UPDATE llm_param SET shape = '{1,16}' WHERE model = 'model' AND name = 'ln_f.bias'", "ln_f.bias"),
        ("UPDATE llm_model_config SET n_layer = 3 WHERE model = 'model'", "h.2.attn.c_attn.bias"),
    ],
    ids=["missing", "extra", "transposed", "vector as matrix", "a layer more"],
)
def test_rows_that_do_not_fit_are_named_before_the_first_chunk(sql, damage, tensor):
    sql.execute("SELECT llm_init_model('model')")
    sql.execute(damage)
    with pytest.raises(errors.DataException, match=tensor) as caught:
        sql.execute("SELECT llm_export_safetensors('model')")
    assert caught.value.diag.sqlstate == "22000"
    assert caught.value.diag.message_hint


def test_a_file_that_the_disk_refuses_to_read(sql):
    """Its own memory is a regular file to the server, and an input/output error."""
    for function in ("pg_llm_import_npz", "pg_llm_load_bpe_vocab", "pg_llm_load_bpe_merges"):
        with pytest.raises(errors.IoError, match="/proc/self/mem") as raised, sql.transaction():
            sql.execute(f"SELECT {function}('/proc/self/mem', 'model')")
        assert raised.value.diag.message_hint


@pytest.mark.parametrize("name", ["\ud800", "a\0b", "\x1b[31m"])
def test_a_name_that_is_no_text_is_told(sql, name):
    """A lone surrogate and U+0000 are JSON, and no text of PostgreSQL."""
    header = json.dumps({name: {"dtype": "F31", "shape": [], "data_offsets": [0, 0]}}).encode()
    with pytest.raises(errors.InvalidTextRepresentation, match="F31") as raised, sql.transaction():
        sql.execute("SELECT llm_import_safetensors(%s, 'model')", [len(header).to_bytes(8, "little") + header])
    assert raised.value.diag.message_hint
