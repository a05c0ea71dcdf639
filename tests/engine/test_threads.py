"""How many threads there may be."""

import pytest
from pg_gpt2 import threads


@pytest.mark.parametrize(
    ("group", "limit", "quota"),
    [
        ("0::/\n", "150000 100000\n", 1.5),
        ("3:cpu:/old\n0::/system.slice/postgresql.service\n", "400000 100000\n", 4.0),
        ("0::/\n", "max 100000\n", None),
        ("0::/\n", None, None),
        ("3:cpu:/old\n", "150000 100000\n", None),
    ],
)
def test_cpu_quota_is_that_of_the_control_group(tmp_path, group, limit, quota):
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / "proc" / "self" / "cgroup").write_text(group)
    folder = tmp_path / "sys/fs/cgroup" / group.rsplit("::/", 1)[-1].strip()
    folder.mkdir(parents=True)
    if limit:
        (folder / "cpu.max").write_text(limit)
    assert threads.cpu_quota(str(tmp_path)) == quota


def test_cpu_quota_without_control_groups(tmp_path):
    assert threads.cpu_quota(str(tmp_path)) is None
