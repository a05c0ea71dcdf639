"""Reading and writing of safetensors, npz and the older gzip container; damage gives typed errors only."""

import contextlib
import errno
import gzip
import io
import json
import os
import struct
import time
import zipfile
from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pg_gpt2 import formats, host
from pg_gpt2.core.config import GPT2Config
from pg_gpt2.errors import (
    DiskFull,
    FeatureNotSupported,
    FileAccessError,
    InconsistentData,
    MalformedData,
    OutOfMemory,
    PgGpt2Error,
    TooManyOpenFiles,
    UndefinedFile,
)
from pg_gpt2.formats import checkpoint as names
from pg_gpt2.formats import source
from pg_gpt2.formats.hub_config import config_of, fields_of
from pg_gpt2.formats.safetensors import bfloat16_to_float32

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


@every_format
@pytest.mark.parametrize("block_rows", [3, 1000])
def test_what_was_written_is_read(write, open_, block_rows):
    assert_same(import_all(open_(io.BytesIO(write(weights()))), block_rows=block_rows), weights())


@every_format
def test_rows_in_any_order(write, open_):
    tensors = weights()
    with open_(io.BytesIO(write(tensors))) as checkpoint:
        for name, start, stop in [("wpe", 3, 8), ("wte", 2, 5), ("wte", 7, 9), ("wpe", 0, 2), ("wte", 0, 11)]:
            np.testing.assert_array_equal(checkpoint.rows(name, start, stop), tensors[name][start:stop])


@pytest.mark.parametrize("write", [deflated_bytes, gzip_bytes])
@pytest.mark.parametrize("dtype", ["<f2", ">f2", ">f4", "<f8", ">f8"])
def test_float_widths_and_byte_orders(write, dtype):
    tensors = {name: values.astype(dtype) for name, values in weights().items()}
    expected = {name: values.astype("<f4") for name, values in tensors.items()}
    assert_same(import_all(formats.open_npz(io.BytesIO(write(tensors)))), expected)


def test_hub_names_and_masks():
    tensors = {f"_orig_mod.{names.hub_name(name)}": values for name, values in weights().items()}
    tensors["_orig_mod.transformer.h.0.attn.bias"] = np.ones((1, 1, 8, 8), "<f4")
    tensors["_orig_mod.transformer.h.1.attn.masked_bias"] = np.ones((1,), "<f4")
    tensors["lm_head.weight"] = tensors["_orig_mod.transformer.wte.weight"]
    assert_same(import_all(formats.open_safetensors(io.BytesIO(safetensors_bytes(tensors)))), weights())


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("transformer.wte.weight", "wte"),
        ("wpe.weight", "wpe"),
        ("wte", "wte"),
        ("_orig_mod.transformer.h.3.ln_1.weight", "h.3.ln_1.weight"),
        ("transformer._orig_mod.h.3._orig_mod.mlp.c_fc.bias", "h.3.mlp.c_fc.bias"),
        ("transformer.h.0.attn.bias", None),
        ("h.11.attn.masked_bias", None),
        ("h.0.attn.c_attn.bias", "h.0.attn.c_attn.bias"),
        ("lm_head.weight", "lm_head.weight"),
    ],
)
def test_canonical_name(theirs, ours):
    assert names.canonical_name(theirs) == ours


def test_hub_name_is_undone_by_canonical_name():
    for name in CONFIG.param_shapes():
        assert names.canonical_name(names.hub_name(name)) == name


@pytest.mark.parametrize("write", [safetensors_bytes, npz_bytes])
def test_metadata_carries_the_config(write):
    file = io.BytesIO(write(weights(), names.hub_metadata(CONFIG)))
    open_ = formats.open_safetensors if write is safetensors_bytes else formats.open_npz
    with open_(file) as checkpoint:
        assert checkpoint.config() == CONFIG


def test_config_needs_n_head():
    with formats.open_npz(io.BytesIO(npz_bytes(weights()))) as checkpoint:
        assert checkpoint.config() is None
    with formats.open_npz(io.BytesIO(npz_bytes(weights(), {"n_head": "4", "eos_token_id": "10"}))) as checkpoint:
        assert checkpoint.config() == GPT2Config(2, 4, 4, 8, 11, 10)
    with (
        formats.open_npz(io.BytesIO(npz_bytes(weights(), {"n_head": "3"}))) as checkpoint,
        pytest.raises(InconsistentData, match="not divisible"),
    ):
        checkpoint.config()


@pytest.mark.parametrize("field", [field.name for field in fields(GPT2Config)])
def test_whoever_says_another_value_of_a_field_is_contradicted(field):
    known = replace(CONFIG, eos_token_id=3)
    assert names.agreed("m", known, {}, "it") == known
    assert names.agreed("m", known, {field: getattr(known, field)}, "it") == known
    with pytest.raises(InconsistentData, match=f"it says {field} = 2, and model"):
        names.agreed("m", replace(known, n_layer=1, n_head=1), {field: 2}, "it")


def test_an_end_of_text_token_is_taken_where_none_is_known():
    known = replace(CONFIG, eos_token_id=None)
    assert names.agreed("m", known, {"eos_token_id": 7}, "it").eos_token_id == 7
    assert names.agreed("m", known, {"eos_token_id": None}, "it").eos_token_id is None
    with pytest.raises(InconsistentData, match="11 token ids"):
        names.agreed("m", known, {"eos_token_id": 11}, "it")


HUB = fields_of(CONFIG)


def without(*keys):
    return {key: value for key, value in HUB.items() if key not in keys}


def test_config_json_says_the_configuration():
    assert config_of(HUB) == CONFIG
    assert formats.read_config(json.dumps(HUB).encode()) == CONFIG
    general = {"num_hidden_layers": 2, "num_attention_heads": HUB["n_head"], "hidden_size": 4}
    other = without("n_layer", "n_head", "n_embd", "n_positions") | general | {"max_position_embeddings": 8}
    assert config_of(other) == CONFIG
    assert config_of(HUB | other) == CONFIG
    for eos in (50256, -1, True, [1], None, "x"):
        assert config_of(HUB | {"eos_token_id": eos}).eos_token_id is None


@pytest.mark.parametrize(
    "more",
    [
        *({"activation_function": name} for name in ("gelu", "relu", None, 7, ["gelu_new"])),
        *({"layer_norm_epsilon": eps} for eps in (1e-6, 0, None, "1e-5")),
        *({"n_inner": n} for n in (17, 10**30, "16", [])),
        *({"model_type": name} for name in ("bert", "gptj", None)),
        *({name: True} for name in ("scale_attn_by_inverse_layer_idx", "add_cross_attention")),
        *({name: False} for name in ("scale_attn_weights", "tie_word_embeddings")),
        *({name: n} for name in ("n_layer", "vocab_size", "n_embd") for n in (0, -1, None, 1.5, True, "2", 1 << 31)),
        *({"n_embd": 6, "n_head": 4}, {"hidden_size": 8}, {"num_attention_heads": 1}),
    ],
)
def test_another_architecture_is_refused_by_the_name_of_what_differs(more):
    with pytest.raises((InconsistentData, MalformedData), match=rf"it has .*({next(iter(more))}|d_model 6)") as caught:
        config_of(HUB | more, "it")
    assert caught.value.hint


@pytest.mark.parametrize(
    "data", [b"", b"[]", b"{", b"\xff", b"[" * 100_000, b'{"n_head": 1' + b"0" * 5000 + b"}", b'{"a":1,"a":1}']
)
def test_a_malformed_config_json_is_refused(data):
    with pytest.raises(MalformedData):
        formats.read_config(data)


def test_npz_opens_in_numpy():
    with np.load(io.BytesIO(npz_bytes(weights(), {"n_head": "2"})), allow_pickle=False) as found:
        assert_same(dict(found), weights())


def test_export_is_deterministic():
    assert npz_bytes(weights()) == npz_bytes(weights())


def test_fortran_order_is_converted_in_npz_and_refused_in_gzip():
    tensors = {name: np.asfortranarray(values) for name, values in weights().items()}
    assert_same(import_all(formats.open_npz(io.BytesIO(deflated_bytes(tensors))), block_rows=3), weights())
    with pytest.raises(FeatureNotSupported, match="wte is in Fortran order"):
        formats.open_npz(io.BytesIO(gzip_bytes(tensors)))


def test_bfloat16_is_exact():
    bits = np.array([0x0000, 0x3F80, 0xC049, 0x7F7F, 0x0001], np.uint16)
    np.testing.assert_array_equal(
        bfloat16_to_float32(bits), np.array([0, 1, -3.140625, 3.3895314e38, 9.1835e-41], np.float32)
    )


def bf16_file(shape=(2, 3)):
    count = int(np.prod(shape))
    header = {"w": {"dtype": "BF16", "shape": list(shape), "data_offsets": [0, 2 * count]}}
    return raw_safetensors(header, (0x3F80 + np.arange(count)).astype("<u2").tobytes())


def test_bfloat16_rows():
    with formats.open_safetensors(io.BytesIO(bf16_file())) as checkpoint:
        np.testing.assert_array_equal(checkpoint.rows("w", 1, 2), [[1 + 3 / 128, 1 + 4 / 128, 1 + 5 / 128]])


# What must be refused


def changed(change):
    tensors = weights()
    change(tensors)
    return tensors


WRONG = {
    "tensor h.1.ln_2.bias is missing": lambda t: t.pop("h.1.ln_2.bias"),
    "tensor h.2.ln_1.bias in the file is not part": lambda t: t.update({"h.2.ln_1.bias": np.zeros(4, "<f4")}),
    r"tensor wpe has shape \[8, 5\]": lambda t: t.update(wpe=np.zeros((8, 5), "<f4")),
    r"tensor ln_f.bias has a value that is not finite, at \[2\]": lambda t: t["ln_f.bias"].put(2, np.nan),
    r"tensor wte has a value that is not finite, at \[7, 1\]": lambda t: t["wte"].put(29, np.inf),
    "wte and transformer.wte.weight in the file are both tensor wte": lambda t: t.update(
        {"transformer.wte.weight": t["wte"]}
    ),
    r"lm_head.weight has shape \[2, 4\]": lambda t: t.update({"lm_head.weight": np.zeros((2, 4), "<f4")}),
    "lm_head.weight differs from wte": lambda t: t.update({"lm_head.weight": t["wte"] + 1}),
}


@every_format
@pytest.mark.parametrize(("message", "change"), WRONG.items(), ids=WRONG)
def test_wrong_checkpoint_names_the_tensor(write, open_, message, change):
    with pytest.raises(InconsistentData, match=message):
        import_all(open_(io.BytesIO(write(changed(change)))), block_rows=3)


def offsets(start, stop, dtype="F32", shape=(1,)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, stop]}


BAD_SAFETENSORS = {
    "empty": b"",
    "short": b"1234567",
    "length beyond the file": (1000).to_bytes(8, "little") + b"{}",
    "huge length": b"\xff" * 8 + b"{}",
    "not JSON": raw_safetensors(b"hello"),
    "not UTF-8": raw_safetensors(b'{"\xff": 1}'),
    "not an object": raw_safetensors([1]),
    "deep": raw_safetensors(b"[" * 100_000),
    "NaN": raw_safetensors(b'{"a": NaN}'),
    "duplicate": raw_safetensors(b'{"a": {}, "a": {}}'),
    "metadata": raw_safetensors({"__metadata__": {"a": 1}}),
    "no dtype": raw_safetensors({"a": {"shape": [1], "data_offsets": [0, 4]}}, bytes(4)),
    "unknown dtype": raw_safetensors({"a": offsets(0, 4, "F31")}, bytes(4)),
    "dtype is no string": raw_safetensors({"a": offsets(0, 4, ["F32"])}, bytes(4)),
    "negative dims": raw_safetensors({"a": offsets(0, 4, shape=(-1, -1))}, bytes(4)),
    "overflowing shape": raw_safetensors({"a": offsets(0, 4, shape=(1 << 62, 4))}, bytes(4)),
    "float dims": raw_safetensors({"a": offsets(0, 4, shape=(1.0,))}, bytes(4)),
    "wrong length": raw_safetensors({"a": offsets(0, 4, shape=(2,))}, bytes(4)),
    "gap": raw_safetensors({"a": offsets(0, 4), "b": offsets(8, 12)}, bytes(12)),
    "overlap": raw_safetensors({"a": offsets(0, 4), "b": offsets(0, 4)}, bytes(4)),
    "backwards": raw_safetensors({"a": offsets(4, 0)}, bytes(4)),
    "trailing bytes": raw_safetensors({"a": offsets(0, 4)}, bytes(5)),
    "truncated": raw_safetensors({"a": offsets(0, 4)}, bytes(3)),
}


@pytest.mark.parametrize("data", BAD_SAFETENSORS.values(), ids=BAD_SAFETENSORS)
def test_bad_safetensors(data):
    with pytest.raises(MalformedData):
        formats.open_safetensors(io.BytesIO(data))


@pytest.mark.parametrize("dtype", ["F64", "I64"])
def test_other_dtype_of_safetensors(dtype):
    data = raw_safetensors({"wte": offsets(0, 8, dtype)}, bytes(8))
    with (
        formats.open_safetensors(io.BytesIO(data)) as checkpoint,
        pytest.raises(FeatureNotSupported, match=f"tensor wte has dtype {dtype}"),
    ):
        checkpoint.rows("wte", 0, 1)


def test_masks_of_any_dtype_are_skipped():
    tensors = weights() | {"h.0.attn.bias": np.ones((1, 1, 8, 8), bool)}
    for write in (deflated_bytes, gzip_bytes):
        assert_same(import_all(formats.open_npz(io.BytesIO(write(tensors)))), weights())


class Trap:
    """Runs when it is unpickled."""

    def __reduce__(self):
        return pytest.fail, ("something was unpickled",)


@pytest.mark.parametrize("write", [deflated_bytes, gzip_bytes])
def test_pickled_arrays_are_refused(write):
    pickled = np.empty(1, object)
    pickled[0] = Trap()
    with pytest.raises(MalformedData, match="tensor evil is pickled"):
        formats.open_npz(io.BytesIO(write({"evil": pickled})))


@pytest.mark.parametrize("write", [deflated_bytes, gzip_bytes])
def test_integer_arrays_are_refused(write):
    tensors = weights() | {"wpe": np.zeros((8, 4), np.int64)}
    with pytest.raises(FeatureNotSupported, match="tensor wpe has dtype <i8"):
        import_all(formats.open_npz(io.BytesIO(write(tensors))))


@pytest.mark.parametrize("write", [deflated_bytes, gzip_bytes])
def test_bombs_are_refused_before_inflating(write):
    bomb = write({"wte": np.zeros((1000, 1000), "<f4")})
    assert len(bomb) < 50_000
    with pytest.raises(MalformedData, match="this model can use at most"):
        formats.open_npz(io.BytesIO(bomb), CONFIG)


def test_a_zip_file_of_millions_of_members_is_refused_by_the_size_of_its_directory():
    """zipfile makes an object of every member before anybody can count them."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("wte.npy", npy(np.zeros((2, 2), "<f4")))
    data = file.getvalue()
    start, end = data.index(b"PK\x01\x02"), data.index(b"PK\x05\x06")
    count = 30_000
    directory = data[start:end] * count
    tail = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, count & 0xFFFF, count & 0xFFFF, len(directory), start, 0)
    with pytest.raises(MalformedData, match=f"directory of {len(directory)} bytes"):
        formats.open_npz(io.BytesIO(data[:start] + directory + tail), CONFIG)


def test_a_gzip_stream_of_long_names_is_refused():
    """Its data would be few, and its names, which nothing counts, fill the memory."""
    entries = [struct.pack("<H", 60_000) + b"%060000d" % i + npy(np.zeros(1, "<f4")) for i in range(3)]
    with pytest.raises(MalformedData, match="name of 60000 bytes"):
        formats.open_npz(io.BytesIO(gzip.compress(b"".join(entries))), CONFIG)


def every(monkeypatch, seconds):
    """The longest time between two looks for a cancel, of which there must be one at all, is below `seconds`."""
    looks = [time.monotonic()]
    monkeypatch.setattr(host, "check_interrupts", lambda: looks.append(time.monotonic()))

    def check():
        looks.append(time.monotonic())
        assert max(np.diff(looks)) < seconds

    return check


def hollow_zip():
    """A member of few bytes, deflated into 20 MB of empty blocks."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("wte.npy", npy(np.zeros((2, 2), "<f4")))
    data, blocks = file.getvalue(), b"\0\0\0\xff\xff" * 4_000_000
    start, directory = data.index(b"wte.npy") + 7, data.index(b"PK\x01\x02")
    size = (directory - start + len(blocks)).to_bytes(4, "little")
    head = data[:18] + size + data[22:start]
    entry = data[directory : directory + 20] + size + data[directory + 24 :]
    end = entry.index(b"PK\x05\x06")
    place = (directory + len(blocks)).to_bytes(4, "little")
    return head + blocks + data[start:directory] + entry[: end + 16] + place + entry[end + 20 :]


HOLLOW = {
    "a gzip file of 100,000 empty members": lambda: gzip.compress(b"", mtime=0) * 100_000,
    "empty members before the first array": lambda: gzip.compress(b"", mtime=0) * 100_000 + gzip.compress(b"x"),
    "a gzip stream of empty blocks": lambda: gzip.compress(b"")[:10] + b"\0\0\0\xff\xff" * 4_000_000,
    "zeros after a gzip stream": lambda: gzip_bytes(weights()) + bytes(50_000_000),
    "a member of a zip file of empty blocks": hollow_zip,
    "as many members of a zip file as its directory may have": lambda: npz_bytes(
        {f"{i}": np.zeros(1, "<f4") for i in range(9_000)}
    ),
    "as long a header as safetensors may have": lambda: raw_safetensors(
        {f"{i}": offsets(0, 0, shape=(0,)) for i in range(33_000)}
    ),
}


@pytest.mark.parametrize("make", HOLLOW.values(), ids=HOLLOW)
def test_what_is_long_and_holds_nothing_can_be_interrupted(make, monkeypatch):
    data = make()
    check = every(monkeypatch, 1.0)  # half a second, and a busy machine
    open_ = formats.open_safetensors if data[8:9] == b"{" else formats.open_npz
    with contextlib.suppress(MalformedData):
        open_(io.BytesIO(data)).close()
    check()


def test_several_members_of_gzip_are_one_stream():
    whole = gzip.decompress(gzip_bytes(weights()))
    cut = len(whole) // 3
    data = gzip.compress(whole[:cut]) + gzip.compress(b"") + gzip.compress(whole[cut:]) + bytes(512)
    assert_same(import_all(formats.open_npz(io.BytesIO(data)), block_rows=3), weights())
    for damaged in (data[:-600], data[: len(data) // 2], data + b"more"):
        with pytest.raises(MalformedData):
            import_all(formats.open_npz(io.BytesIO(damaged)))


class Disk(io.FileIO):
    """One that gives out after so many uses."""

    uses, number = 0, 0

    def _use(self):
        self.uses -= 1
        if self.uses < 0:
            raise OSError(self.number, os.strerror(self.number))

    def readinto(self, buffer):
        self._use()
        return super().readinto(buffer)

    def seek(self, *args):
        self._use()
        return super().seek(*args)


class FailingFile(source.ServerFile, Disk):
    pass


@pytest.mark.parametrize(
    ("number", "error"),
    [
        (errno.EIO, FileAccessError), (errno.ENOMEM, OutOfMemory), (errno.EMFILE, TooManyOpenFiles),
        (errno.ENOENT, UndefinedFile), (errno.ENOSPC, DiskFull), (errno.EACCES, FileAccessError),
    ],
)  # fmt: skip
@every_format
def test_what_the_disk_refuses_has_a_sqlstate_and_a_hint(tmp_path, number, error, write, open_):
    """At the first use of a file, and at any later one."""
    path = tmp_path / "file"
    path.write_bytes(write(weights()))
    raised = 0
    for uses in range(40):
        raw = FailingFile(os.open(path, os.O_RDONLY), str(path))
        raw.uses, raw.number = uses, number
        try:
            import_all(open_(io.BufferedReader(raw, 512)))
        except PgGpt2Error as caught:
            assert (type(caught), bool(caught.hint), str(path) in str(caught)) == (error, True, True)  # noqa: PT017
            raised += 1
    assert raised > 2


def npy_with(header):
    text = header.encode()
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


BAD_NPY = {
    "magic": b"NUMPY" + bytes(100),
    "version": b"\x93NUMPY\x09\x00" + bytes(100),
    "long header": b"\x93NUMPY\x02\x00" + b"\xff\xff\xff\x7f",
    "syntax": npy_with("{'descr': "),
    "code": npy_with("__import__('os').getpid()"),
    "deep": npy_with("(" * 5000),
    "not a dict": npy_with("(1, 2)"),
    "keys": npy_with("{'descr': '<f4'}"),
    "unhashable key": npy_with("{[]: 1}"),
    "negative shape": npy_with("{'descr': '<f4', 'fortran_order': False, 'shape': (-1, -4)}"),
    "shape of floats": npy_with("{'descr': '<f4', 'fortran_order': False, 'shape': (1.5,)}"),
    "huge shape": npy_with(f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({1 << 62}, {1 << 62})}}"),
    "order": npy_with("{'descr': '<f4', 'fortran_order': 1, 'shape': (1,)}"),
    "descr": npy_with("{'descr': '<q99', 'fortran_order': False, 'shape': (1,)}"),
    "shape of a number that cannot be shown": npy_with(
        f"{{'descr': '<f4', 'fortran_order': False, 'shape': (0x{'f' * 4700},)}}"
    ),
    "descr that cannot be shown": npy_with(f"{{'descr': 0x{'f' * 4700}, 'fortran_order': False, 'shape': (1,)}}"),
    "order that cannot be shown": npy_with(f"{{'descr': '<f4', 'fortran_order': 0x{'f' * 4700}, 'shape': (1,)}}"),
    "structured": npy_with("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1,)}"),
    "truncated": npy(np.zeros(3, "<f4"))[:-1],
    "empty": b"",
}


@pytest.mark.parametrize("entry", BAD_NPY.values(), ids=BAD_NPY)
@pytest.mark.parametrize("container", ["zip", "gzip"])
def test_bad_npy(entry, container):
    file = io.BytesIO()
    if container == "zip":
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("wte.npy", entry)
        data = file.getvalue()
    else:
        data = gzip.compress(b"\x03\x00wte" + entry)
    with pytest.raises(MalformedData):
        formats.open_npz(io.BytesIO(data))


def test_other_files_are_not_npz():
    for data in (b"", b"hello", safetensors_bytes(weights()), npy(np.zeros(3))):
        with pytest.raises(MalformedData, match="neither"):
            formats.open_npz(io.BytesIO(data))


@pytest.mark.parametrize("rows", [lambda t: t[:-1], lambda t: [*t, t[-1]], lambda t: []])
def test_blocks_that_do_not_add_up(rows):
    tensors = weights()
    for write in (formats.write_safetensors, lambda *args: formats.write_npz(io.BytesIO(), *args) or []):
        with pytest.raises(InconsistentData, match="blocks of tensor wte do not add up"):
            list(write(shapes_of(tensors), lambda name: rows(in_blocks(tensors)(name))))


FILES = {key: (write(weights()), open_) for key, (write, open_) in WRITERS.items()}


@pytest.mark.parametrize("key", FILES)
@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_damage_never_gives_an_untyped_error(key, data):
    """Flipped and missing bytes are refused, or change values only; zip and gzip notice by their checksums."""
    original, open_ = FILES[key]
    damaged = bytearray(original)
    for _ in range(data.draw(st.integers(0, 3))):
        # the beginning and the end hold headers and directories
        near = data.draw(st.sampled_from([0, len(original) - 600, len(original) // 2]))
        damaged[min(near + data.draw(st.integers(0, 600)), len(damaged) - 1)] = data.draw(st.integers(0, 255))
    del damaged[data.draw(st.sampled_from([len(damaged), len(damaged) - 1, len(damaged) // 2, len(damaged) - 30])) :]
    try:
        found = import_all(open_(io.BytesIO(bytes(damaged))), block_rows=3)
    except PgGpt2Error:
        pass
    else:
        if key != "safetensors":
            assert_same(found, weights())


@given(st.binary(max_size=200), st.sampled_from([b"", b"PK\x03\x04", b"\x1f\x8b\x08", b"PK\x05\x06" + bytes(18)]))
@settings(max_examples=300, deadline=None)
def test_garbage_is_refused(data, start):
    for open_ in (formats.open_safetensors, formats.open_npz):
        with pytest.raises(PgGpt2Error):
            import_all(open_(io.BytesIO(start + data)))
