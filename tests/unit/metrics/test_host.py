"""/proc of a machine that does not exist."""

from __future__ import annotations

import os
from pathlib import Path

from llmhost.metrics.host import add_host
from llmhost.metrics.text import Page, samples

STAT = "cpu  100 20 50 1000 5 0 1 0 0 0\ncpu0 50 10 25 500 2 0 1 0 0 0\ncpu1 50 10 25 500 3 0 0 0 0 0\nintr 1\n"


def figures(root: Path, home: Path) -> dict[str, float]:
    page = Page()
    add_host(page, str(home), str(root))
    return {name + labels.get("mode", ""): value for name, labels, value in samples(page.render())}


def test_a_machine(tmp_path: Path) -> None:
    proc = tmp_path / "proc"
    proc.mkdir()
    (proc / "meminfo").write_text("MemTotal:  2048 kB\nMemFree: 1 kB\nMemAvailable:  1024 kB\nHugePages_Total:  0\n")
    (proc / "stat").write_text(STAT)
    (proc / "loadavg").write_text("1.25 0.5 0.1 1/100 42\n")
    found = figures(tmp_path, tmp_path)
    assert found["llmhost_host_memory_total_bytes"] == 2**21
    assert found["llmhost_host_memory_available_bytes"] == 2**20
    assert found["llmhost_host_cpus"] == 2
    assert found["llmhost_host_load1"] == 1.25
    assert found["llmhost_host_cpu_seconds_totalidle"] == 1000 / os.sysconf("SC_CLK_TCK")
    assert 0 < found["llmhost_host_disk_free_bytes"] <= found["llmhost_host_disk_size_bytes"]


def test_what_cannot_be_read_is_left_out(tmp_path: Path) -> None:
    assert figures(tmp_path, tmp_path / "gone") == {}
