"""Limits of control groups, read from fixture trees."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from llmhost.probe.host import free_bytes, read_host

GIB = 2**30


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


@pytest.fixture
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {9, 8, 0, 1, 2, 3, 4, 5})


@pytest.mark.usefixtures("eight_cores")
@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, (0, 1, 2, 3, 4, 5, 8, 9)),
        ({"proc/self/cgroup": "0::/a", "sys/fs/cgroup/a/cpu.max": "max 100000"}, (0, 1, 2, 3, 4, 5, 8, 9)),
        (
            {"proc/self/cgroup": "0::/a/b", "sys/fs/cgroup/a/cpu.max": "250000 100000", "sys/fs/cgroup/a/b/x": ""},
            (0, 1),
        ),
        # Inside a container the path of the host is not mounted: the limit is at the top.
        ({"proc/self/cgroup": "0::/kubepods/pod1", "sys/fs/cgroup/cpu.max": "300000 100000"}, (0, 1, 2)),
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "50000 100000"}, (0,)),
        (
            {
                "proc/self/cgroup": "4:cpu,cpuacct:/x\n0::/",
                "sys/fs/cgroup/cpu/x/cpu.cfs_quota_us": "400000",
                "sys/fs/cgroup/cpu/x/cpu.cfs_period_us": "100000",
            },
            (0, 1, 2, 3),
        ),
        (
            {
                "proc/self/cgroup": "4:cpu:/",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
            },
            (0, 1, 2, 3, 4, 5, 8, 9),
        ),
    ],
)
def test_cores(tmp_path: Path, files: dict[str, str], cores: tuple[int, ...]) -> None:
    assert read_host(write(tmp_path, files)).cores == cores


def test_memory_without_limit(tmp_path: Path) -> None:
    facts = read_host(write(tmp_path, {"proc/self/cgroup": "0::/", "sys/fs/cgroup/memory.max": "max"}))
    assert facts.memory_total == psutil.virtual_memory().total
    assert 0 < facts.memory_available <= facts.memory_total


@pytest.mark.parametrize(
    "files",
    [
        {
            "proc/self/cgroup": "0::/a/b",
            "sys/fs/cgroup/a/memory.max": str(GIB // 4),
            "sys/fs/cgroup/a/memory.current": str(GIB // 8),
            "sys/fs/cgroup/a/memory.stat": f"anon 1\ninactive_file {GIB // 16}",
            "sys/fs/cgroup/a/b/memory.max": "max",
        },
        {
            "proc/self/cgroup": "9:memory:/a/b\n0::/",
            "sys/fs/cgroup/memory/a/memory.limit_in_bytes": str(GIB // 4),
            "sys/fs/cgroup/memory/a/memory.usage_in_bytes": str(GIB // 8),
            "sys/fs/cgroup/memory/a/memory.stat": f"inactive_file 5\ntotal_inactive_file {GIB // 16}",
            "sys/fs/cgroup/memory/a/b/memory.limit_in_bytes": "9223372036854771712",
        },
    ],
    ids=["v2", "v1"],
)
def test_memory_limit(tmp_path: Path, files: dict[str, str]) -> None:
    """What the group uses counts against its limit, except page cache that the kernel gives back."""
    facts = read_host(write(tmp_path, files))
    assert (facts.memory_total, facts.memory_available) == (GIB // 4, GIB // 4 - GIB // 16)


def test_memory_used_up(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "0::/",
        "sys/fs/cgroup/memory.max": "1000000",
        "sys/fs/cgroup/memory.current": "1200000",
    }
    assert read_host(write(tmp_path, files)).memory_available == 0


def test_free_bytes_of_a_path_to_be_made(tmp_path: Path) -> None:
    assert free_bytes(tmp_path / "not" / "yet") > 0
