"""The machine in a few figures, for those who run no node_exporter beside llmhost."""

from __future__ import annotations

import os

from llmhost.supervise.guarding.processes import read

TYPE_CHECKING = False
if TYPE_CHECKING:
    from llmhost.metrics.text import Page

_MODES = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal")


def add_host(page: Page, home: str, root: str = "") -> None:
    """Processors, load, memory and the disk of the home; ``root`` is put before ``/proc``."""
    memory = _meminfo(root)
    if "MemTotal" in memory:
        page.add("llmhost_host_memory_total_bytes", "gauge", "Memory of the machine.", memory["MemTotal"])
    if "MemAvailable" in memory:
        told = "Memory that can be had without swapping (MemAvailable)."
        page.add("llmhost_host_memory_available_bytes", "gauge", told, memory["MemAvailable"])
    _add_processors(page, root)
    try:
        disk = os.statvfs(home)
    except OSError:
        return
    labels = {"path": home}
    size, free = disk.f_frsize * disk.f_blocks, disk.f_frsize * disk.f_bavail
    page.add("llmhost_host_disk_size_bytes", "gauge", "Size of the file system of the home.", size, labels)
    page.add("llmhost_host_disk_free_bytes", "gauge", "Free for an ordinary user on it.", free, labels)


def _meminfo(root: str) -> dict[str, int]:
    lines = (line.split() for line in read(f"{root}/proc/meminfo").decode("ascii", "replace").splitlines())
    return {words[0].rstrip(":"): int(words[1]) * 1024 for words in lines if len(words) > 1 and words[1].isdigit()}


def _add_processors(page: Page, root: str) -> None:
    lines = read(f"{root}/proc/stat").decode("ascii", "replace").splitlines()
    times = lines[0].split()[1:] if lines and lines[0].startswith("cpu ") else []
    tick = os.sysconf("SC_CLK_TCK")
    for mode, ticks in zip(_MODES, times, strict=False):
        told = "Processor time of the machine."
        page.add("llmhost_host_cpu_seconds_total", "counter", told, int(ticks) / tick, {"mode": mode})
    count = sum(line.startswith("cpu") for line in lines) - 1
    if count > 0:
        page.add("llmhost_host_cpus", "gauge", "Processors of the machine.", count)
    load = read(f"{root}/proc/loadavg").split()
    if load:
        page.add("llmhost_host_load1", "gauge", "Load average over a minute.", float(load[0]))
