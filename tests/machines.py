"""Machines that are not here, as facts."""

from __future__ import annotations

from dataclasses import replace

from llmhost.facts import Driver, Gpu, HostFacts, MachineFacts

GIB = 2**30
CPU_BOX = MachineFacts(
    llmhost="0",
    machine="x86_64",
    system="Debian GNU/Linux 12",
    kernel="6.1.0",
    glibc=(2, 36),
    host=HostFacts((0, 1), 24 * GIB, 20 * GIB),
    shm_total=8 * GIB,
    shm_free=8 * GIB,
    disk_free={},
)


def gpu_box(
    driver: str = "580.159.04", cuda: tuple[int, int] = (13, 0), capability: tuple[int, int] = (9, 0)
) -> MachineFacts:
    """A machine with one GPU and this driver."""
    gpu = Gpu(0, "NVIDIA H200", 140 * GIB, 139 * GIB, capability)
    return replace(CPU_BOX, gpus=(gpu,), driver=Driver(driver, cuda))
