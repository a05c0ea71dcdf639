"""The file of a model's weights: what is written is what is mapped, whatever the sizes."""

import numpy as np
import pytest
from pg_gpt2.server.storage import weight_file
from pg_gpt2.server.storage.weight_file import HUGE_PAGE, WeightFile


@pytest.mark.parametrize("last", [1, 17, HUGE_PAGE // 4 - 1, HUGE_PAGE // 4, HUGE_PAGE // 2])
def test_mapped_weights_are_the_written_ones(tmp_path, last):
    shapes = {"wte": (HUGE_PAGE // 256, 100), "small": (3,), "last": (last,)}
    source = np.random.default_rng(last)
    params = {name: source.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    file = WeightFile(str(tmp_path), "base/1/2", "m", "v1", shapes)
    assert file.attach() is None
    mapped = file.build(params.items())
    assert mapped is not None
    for name, array in params.items():
        np.testing.assert_array_equal(mapped[name], array)
        assert not mapped[name].flags.writeable


def test_a_new_version_removes_the_old_file_of_its_model_only(tmp_path):
    shapes = {"w": (4,)}
    params = {"w": np.ones(4, np.float32)}
    files = [
        WeightFile(str(tmp_path), "base/1/2", *names, shapes) for names in (("m", "v1"), ("other", "v1"), ("m", "v2"))
    ]
    for file in files:
        assert file.build(params.items())
    assert [file.attach() is not None for file in files] == [False, True, True]
    assert weight_file.remove(str(tmp_path), weight_file.family("base/1/2")) == 2


def test_without_room_there_is_no_file(tmp_path):
    (tmp_path / "file").touch()
    assert (
        WeightFile(str(tmp_path / "file"), "base/1/2", "m", "v1", {"w": (4,)}).build(
            {"w": np.ones(4, np.float32)}.items()
        )
        is None
    )


def test_a_file_of_another_layout_is_not_taken(tmp_path):
    """As after an update of the extension, which leaves the rows and so their version: its size may be the same."""
    rows, panels = (WeightFile(str(tmp_path), "base/1/2", "m", "v1", {"wte": shape}) for shape in ((65, 8), (2, 8, 64)))
    assert rows.build({"wte": np.ones((65, 8), np.float32)}.items())
    assert panels.attach() is None
    assert panels.build({"wte": np.ones((2, 8, 64), np.float32)}.items())
    assert rows.attach() is None
