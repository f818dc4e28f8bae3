"""NVIDIA GPUs and their driver, asked of the driver's own library (NVML) through nvidia-ml-py.

A driver that has lost a GPU may hang in a call, so all of them are made in a thread of their own, which is not waited
for longer than its deadline. Source: https://docs.nvidia.com/deploy/nvml-api/
"""

from __future__ import annotations

import ctypes
import importlib
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmhost.facts import Driver, Gpu, GpuProcess

LIBRARY = "libnvidia-ml.so.1"
SECONDS = 5.0
"""Seconds for the driver to answer; the first call after a boot, without persistence mode, takes two or three."""
VENDOR = "0x10de"
"""Of NVIDIA, on the PCI bus."""
DISPLAY_CLASSES = ("0x0300", "0x0302")
"""VGA and 3D controllers."""
OLDEST = 450
"""Drivers before it lack calls that are made here (CUDA 11, 2020), and no vLLM of today runs on them."""


NO_DRIVER = Driver()


@dataclass(frozen=True)
class Accelerators:
    """What the driver of one vendor shows."""

    gpus: tuple[Gpu, ...] = ()
    driver: Driver = NO_DRIVER
    processes: tuple[GpuProcess, ...] = ()


def read_nvidia(root: Path = Path("/"), nvml: Any = None, seconds: float = SECONDS) -> Accelerators:
    """The GPUs, the driver, and who holds memory; `Driver.problem` says why they cannot be used.

    ``root`` is where ``proc`` and ``sys`` are looked up, ``nvml`` stands in for pynvml in tests.
    """
    if nvml is None:
        problem = _library_problem(root)
        if problem is not None:
            return Accelerators(driver=Driver(_kernel_version(root), problem=problem))
        nvml = importlib.import_module("pynvml")  # 0.1 s, only where there is a driver to ask
    answers: list[Accelerators] = []
    thread = threading.Thread(target=lambda: answers.append(_read(nvml, root)), daemon=True, name="nvml")
    thread.start()
    thread.join(seconds)
    if answers:
        return answers[0]
    return Accelerators(
        driver=Driver(
            _kernel_version(root),
            problem=f"the driver does not answer within {seconds:g} s: see `dmesg | grep -i -e nvrm -e xid`; a GPU that"
            " has fallen off the bus wants a reboot",
        )
    )


def _library_problem(root: Path) -> str | None:
    """Why the library of the driver cannot be loaded, empty without a driver; None when it can."""
    try:
        ctypes.CDLL(LIBRARY)
    except OSError as e:
        return _missing(root) if "No such file" in str(e) else f"the library of the driver is broken: {e}"
    return None


def _read(nvml: Any, root: Path) -> Accelerators:
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as e:
        return Accelerators(driver=Driver(_kernel_version(root), problem=_problem(nvml, e, root)))
    except Exception as e:  # a library that cannot be loaded or is cut short
        return Accelerators(driver=Driver(_kernel_version(root), problem=f"the library of the driver is broken: {e}"))
    try:
        return _devices(nvml)
    except Exception as e:
        return Accelerators(driver=Driver(_kernel_version(root), problem=f"the driver answers with an error: {e}"))
    finally:
        _asked(nvml, nvml.nvmlShutdown, None)


def _devices(nvml: Any) -> Accelerators:
    version = str(_asked(nvml, nvml.nvmlSystemGetDriverVersion, ""))
    number = int(_asked(nvml, nvml.nvmlSystemGetCudaDriverVersion_v2, 0))
    gpus: list[Gpu] = []
    processes: list[GpuProcess] = []
    problems: list[str] = []
    for index in range(int(nvml.nvmlDeviceGetCount())):
        try:
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
            gpus.append(_gpu(nvml, index, handle))
        except nvml.NVMLError as e:
            problems.append(f"GPU {index}: {_lost(nvml, e)}")
            continue
        processes += _processes(nvml, index, handle)
    if not (gpus or problems):
        problems.append("the driver is loaded and shows no GPU: is one passed through to this machine or container?")
    if version and int(version.partition(".")[0]) < OLDEST:
        problems.append(f"the driver {version} is older than anything that vLLM runs on: install a newer one")
    driver = Driver(version, (number // 1000, number % 1000 // 10) if number else None, "; ".join(problems))
    return Accelerators(tuple(gpus), driver, tuple(processes))


def _gpu(nvml: Any, index: int, handle: Any) -> Gpu:
    memory = _memory(nvml, handle)
    capability = _asked(nvml, lambda: nvml.nvmlDeviceGetCudaComputeCapability(handle), None)
    mode = _asked(nvml, lambda: nvml.nvmlDeviceGetMigMode(handle), (0, 0))
    return Gpu(
        index=index,
        name=str(_asked(nvml, lambda: nvml.nvmlDeviceGetName(handle), "")),
        total=int(memory.total),
        free=int(memory.free),
        capability=None if capability is None else (int(capability[0]), int(capability[1])),
        uuid=str(_asked(nvml, lambda: nvml.nvmlDeviceGetUUID(handle), "")),
        mig=bool(mode[0]),
    )


def _memory(nvml: Any, handle: Any) -> Any:
    """Drivers from 510 on tell apart what they keep for themselves; older ones do not know the call."""
    try:
        return nvml.nvmlDeviceGetMemoryInfo(handle, version=nvml.nvmlMemory_v2)
    except (nvml.NVMLError_FunctionNotFound, nvml.NVMLError_NotSupported, nvml.NVMLError_ArgumentVersionMismatch):
        return nvml.nvmlDeviceGetMemoryInfo(handle)


def _processes(nvml: Any, index: int, handle: Any) -> list[GpuProcess]:
    """Those that compute; memory is not told where the driver cannot see who it belongs to."""
    found = _asked(nvml, lambda: nvml.nvmlDeviceGetComputeRunningProcesses(handle), ())
    return [GpuProcess(int(p.pid), index, int(p.usedGpuMemory or 0)) for p in found]


def _asked(nvml: Any, call: Callable[[], Any], otherwise: Any) -> Any:
    """The answer, or something else where this driver or this GPU does not know it."""
    try:
        return call()
    except nvml.NVMLError:
        return otherwise


def _lost(nvml: Any, error: Exception) -> str:
    if isinstance(error, nvml.NVMLError_GpuIsLost):
        return "it has fallen off the bus: reboot, and see `dmesg | grep -i xid` for the reason"
    if isinstance(error, nvml.NVMLError_NoPermission):
        return "this user or container may not use it: see who may open /dev/nvidia*"
    return str(error)


def _problem(nvml: Any, error: Exception, root: Path) -> str:
    """Why NVML cannot be used; empty where there is nothing to use."""
    kernel = _kernel_version(root)
    if isinstance(error, nvml.NVMLError_LibRmVersionMismatch):
        loaded = f" (the kernel runs {kernel})" if kernel else ""
        return (
            f"the driver was upgraded, but the former one is still loaded{loaded}: reboot, or stop everything that uses"
            " a GPU and run `sudo rmmod nvidia_uvm nvidia_drm nvidia_modeset nvidia && sudo modprobe nvidia`"
        )
    if isinstance(error, nvml.NVMLError_NoPermission):
        return "this user may not use the GPUs: see who may open /dev/nvidia* (often the group video or render)"
    if isinstance(error, nvml.NVMLError_LibraryNotFound):
        return _missing(root)
    if isinstance(error, nvml.NVMLError_DriverNotLoaded):
        return (
            "the NVIDIA driver is installed but not loaded: `sudo modprobe nvidia`, and see `dmesg | grep -i nvrm`;"
            " to a container the GPUs must be given (`docker run --gpus all`)"
        )
    return f"the NVIDIA driver does not start: {error}"


def _missing(root: Path) -> str:
    """There is no library of a driver."""
    if kernel := _kernel_version(root):
        return f"the kernel runs the driver {kernel}, but its library {LIBRARY} is not installed here"
    cards = _cards(root)
    return f"there is {cards[0]}, but no NVIDIA driver: install one" if cards else ""


def _kernel_version(root: Path) -> str:
    """Of the kernel module that is loaded: ``NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.159.04  …``."""
    try:
        words = (root / "proc/driver/nvidia/version").read_text(encoding="utf-8", errors="replace").split()
    except OSError:
        return ""
    return next((w for w in words if w.count(".") >= 1 and w.replace(".", "").isdigit()), "")


def _cards(root: Path) -> list[str]:
    """NVIDIA GPUs on the PCI bus, whether there is a driver or not."""
    return [
        f"an NVIDIA GPU on the PCI bus ({device.name})"
        for device in sorted((root / "sys/bus/pci/devices").glob("*"))
        if _text(device / "vendor") == VENDOR and _text(device / "class")[:6] in DISPLAY_CLASSES
    ]


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return ""
