"""The limits of control groups, of both versions, are found and the least binds."""

import pytest
from pg_gpt2.server import cgroups

MB = 1 << 20
NONE = "9223372036854771712"  # version 1: no limit


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
    assert cgroups.cpu_quota(str(tmp_path)) == quota


def test_cpu_quota_without_control_groups(tmp_path):
    assert cgroups.cpu_quota(str(tmp_path)) is None


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
    assert cgroups.cpu_quota(str(tmp_path)) == quota


def write(root, files: dict[str, str]) -> str:
    """A machine of these files."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return str(root)


def test_cpu_quota_of_version_1(tmp_path):
    group = "sys/fs/cgroup/cpu/docker/a"
    files = {
        "proc/self/cgroup": "4:memory:/docker/a\n3:cpu,cpuacct:/docker/a\n",
        f"{group}/cpu.cfs_quota_us": "150000\n",
        f"{group}/cpu.cfs_period_us": "100000\n",
        "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
        "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
    }
    assert cgroups.cpu_quota(write(tmp_path, files)) == 1.5


def version_2(**groups: tuple[str, str, str]) -> dict[str, str]:
    """Files of the groups /, /a and /a/b: limit, what is used, and of that files."""
    files = {"proc/self/cgroup": "0::/a/b\n"}
    for name, (limit, used, cached) in groups.items():
        folder = "sys/fs/cgroup/" + {"root": "", "a": "a/", "b": "a/b/"}[name]
        stat = f"anon 5\ninactive_file {cached}\nactive_file {MB}\nshmem 7\n"
        files |= {f"{folder}memory.max": limit, f"{folder}memory.current": used, f"{folder}memory.stat": stat}
    return files


@pytest.mark.parametrize(
    ("files", "limit", "left"),
    [
        ({}, None, None),
        ({"proc/self/cgroup": "0::/\n"}, None, None),
        (version_2(a=("max\n", "5", "0"), b=("max\n", "5", "0")), None, None),
        (version_2(b=(f"{900 * MB}\n", f"{500 * MB}\n", f"{100 * MB}")), 900 * MB, 501 * MB),
        (version_2(a=(f"{800 * MB}\n", f"{799 * MB}\n", "0"), b=(f"{900 * MB}\n", "0\n", "0")), 800 * MB, 2 * MB),
        (version_2(a=(f"{800 * MB}\n", "0\n", "0"), b=(f"{900 * MB}\n", f"{899 * MB}\n", "0")), 800 * MB, 2 * MB),
        (version_2(b=(f"{900 * MB}\n", f"{950 * MB}\n", "0")), 900 * MB, 0),
        (
            version_2(b=("max\n", f"{100 * MB}\n", "0")) | {"sys/fs/cgroup/a/b/memory.high": f"{700 * MB}\n"},
            700 * MB,
            601 * MB,
        ),
        (
            version_2(root=(f"{900 * MB}\n", f"{100 * MB}\n", "0")),
            900 * MB,
            801 * MB,
        ),  # of a container, told its host's path
    ],
)
def test_memory_of_version_2(tmp_path, files, limit, left):
    root = write(tmp_path, files)
    assert (cgroups.memory_limit(root), cgroups.memory_left(root)) == (limit, left)


def version_1(path: str, limits: dict[str, str]) -> dict[str, str]:
    """Files of groups of which each uses 100 MB, 30 of them files."""
    files = {"proc/self/cgroup": f"9:name=systemd:/\n4:memory:{path}\n0::/\n"}
    for name, limit in limits.items():
        folder = f"sys/fs/cgroup/memory/{name}"
        stat = f"inactive_file 1\nactive_file 1\ntotal_inactive_file {20 * MB}\ntotal_active_file {10 * MB}\n"
        files |= {f"{folder}/memory.limit_in_bytes": f"{limit}\n", f"{folder}/memory.stat": stat}
        files[f"{folder}/memory.usage_in_bytes"] = f"{100 * MB}\n"
    return files


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        (version_1("/a/b", {"": NONE, "a": NONE, "a/b": NONE}), None),
        (version_1("/a/b", {"": NONE, "a": NONE, "a/b": str(900 * MB)}), 900 * MB),
        (version_1("/a/b", {"": NONE, "a": str(800 * MB), "a/b": str(900 * MB)}), 800 * MB),
        (version_1("/docker/1234", {"": str(900 * MB)}), 900 * MB),  # in a container, told its host's path
    ],
)
def test_memory_of_version_1(tmp_path, files, limit):
    root = write(tmp_path, files)
    left = None if limit is None else limit - 70 * MB
    assert (cgroups.memory_limit(root), cgroups.memory_left(root)) == (limit, left)


@pytest.mark.parametrize(
    ("shared", "left"),
    [(0, 501 * MB), (7, 501 * MB), (100 * MB + 7, 401 * MB), (900 * MB, 0)],
)
def test_what_processes_share_and_nobody_has_touched_yet_is_not_left(tmp_path, shared, left):
    """Of version 2, 7 bytes are touched."""
    root = write(tmp_path, version_2(b=(f"{900 * MB}\n", f"{500 * MB}\n", f"{100 * MB}")))
    assert cgroups.memory_left(root, shared) == left
