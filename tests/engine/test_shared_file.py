"""A file of arrays that sessions share: what is written is what is mapped, whatever the sizes."""

import numpy as np
import pytest
from pg_gpt2.server.storage import shared_folder
from pg_gpt2.server.storage.shared_file import HUGE_PAGE, SharedFile, kinds_of

STEM = shared_folder.stem("base/1/2", "m")


def written(file, arrays):
    return file.build(kinds_of(arrays), arrays.items())


@pytest.mark.parametrize("last", [0, 1, 17, HUGE_PAGE // 4 - 1, HUGE_PAGE // 4, HUGE_PAGE // 2])
@pytest.mark.parametrize("dtype", [np.float32, np.int64, np.uint8])
def test_mapped_arrays_are_the_written_ones(tmp_path, last, dtype):
    source = np.random.default_rng(last)
    shapes = {"wte": (HUGE_PAGE // 256, 100), "small": (3,), "last": (last,)}
    arrays = {name: source.integers(0, 200, shape).astype(dtype) for name, shape in shapes.items()}
    file = SharedFile(str(tmp_path), STEM, "v1")
    assert file.attach() is None
    mapped = written(file, arrays)
    assert mapped is not None
    assert list(mapped) == list(arrays)
    for name, array in arrays.items():
        assert (mapped[name].dtype, mapped[name].shape) == (array.dtype, array.shape)
        np.testing.assert_array_equal(mapped[name], array)
        assert not mapped[name].flags.writeable
    assert file.damage() is None


def test_a_new_version_removes_the_old_files_of_its_stem_only(tmp_path):
    other = shared_folder.stem("base/1/2", "other")
    files = [
        SharedFile(str(tmp_path), *names)
        for names in ((STEM, "v1"), (other, "v1"), (STEM, "v2"), (STEM, "v2", ".part"), (STEM, "v2", ".other"))
    ]
    for file in files:
        assert written(file, {"w": np.ones(4, np.float32)})
    assert [file.attach() is not None for file in files] == [False, True, True, True, True]
    assert shared_folder.remove(str(tmp_path), shared_folder.family("base/1/2")) == 4


def test_files_of_models_that_are_gone_are_removed_and_those_of_vocabularies_stay(tmp_path):
    stems = [
        *(shared_folder.stem("base/1/2", model) for model in ("m", "gone")),
        shared_folder.vocabularies("base/1/2"),
    ]
    files = [SharedFile(str(tmp_path), stem, "v1") for stem in stems]
    for file in files:
        assert written(file, {"w": np.ones(4, np.float32)})
    shared_folder.remove_others(str(tmp_path), "base/1/2", ["m"])
    assert [file.is_there() for file in files] == [True, False, True]


def test_without_room_there_is_no_file(tmp_path):
    (tmp_path / "file").touch()
    assert written(SharedFile(str(tmp_path / "file"), STEM, "v1"), {"w": np.ones(4, np.float32)}) is None


@pytest.mark.parametrize("size", [0, 1, 31, 32, 33, 4096, HUGE_PAGE, HUGE_PAGE + 1])
@pytest.mark.parametrize("content", ["its own", "zeros", "noise"])
def test_a_file_of_anything_else_is_not_taken(tmp_path, size, content):
    file = SharedFile(str(tmp_path), STEM, "v1")
    assert written(file, {"w": np.ones(HUGE_PAGE // 4 + 5, np.float32)})
    (path,) = tmp_path.iterdir()
    noise = np.random.default_rng(size).bytes(size)
    path.write_bytes({"its own": path.read_bytes()[:size], "zeros": b"\0" * size, "noise": noise}[content])
    assert file.attach() is None
    assert file.damage()
