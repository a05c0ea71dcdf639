"""Damaged and hostile files give typed errors only, soon, and are interruptible."""

import contextlib
import errno
import gzip
import io
import os
import struct
import time
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pg_gpt2 import formats, host
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
from pg_gpt2.formats import source

from tests.engine.checkpoint_files import (
    CONFIG,
    WRITERS,
    assert_same,
    deflated_bytes,
    every_format,
    gzip_bytes,
    import_all,
    in_blocks,
    npy,
    npz_bytes,
    raw_safetensors,
    safetensors_bytes,
    shapes_of,
    weights,
)


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
