"""How many threads there may be, and that they end."""

import threading

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


@pytest.mark.parametrize(
    ("limits", "quota"),
    [
        ({"": "800000 100000\n", "a": "max 100000\n", "a/b": "400000 100000\n"}, 4.0),
        ({"": None, "a": "150000 100000\n", "a/b": "400000 100000\n"}, 1.5),
        ({"": None, "a": "150000 100000\n", "a/b": "max 100000\n"}, 1.5),
        ({"": None, "a": "max 100000\n", "a/b": None}, None),
    ],
)
def test_the_least_quota_of_the_groups_around_ours_binds(tmp_path, limits, quota):
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / "proc" / "self" / "cgroup").write_text("0::/a/b\n")
    for group, limit in limits.items():
        folder = tmp_path / "sys/fs/cgroup" / group
        folder.mkdir(parents=True, exist_ok=True)
        if limit:
            (folder / "cpu.max").write_text(limit)
    assert threads.cpu_quota(str(tmp_path)) == quota


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("tasks", [0, 1, 2, 50])
def test_a_pool_runs_each_task_once_and_none_is_fine(count, tasks):
    pool, done = threads.Pool(count), []
    caller = threading.Thread(target=pool.run, args=([lambda i=i: done.append(i) for i in range(tasks)],), daemon=True)
    caller.start()
    caller.join(10)
    assert not caller.is_alive()
    pool.close()
    assert sorted(done) == list(range(tasks))
