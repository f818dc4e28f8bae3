"""NVIDIA GPUs through NVML, the library of the driver, by ctypes: nothing to install, little memory.

A driver that has lost a GPU may hang in a call, so the calls are made in a thread of their own, which is not waited for
longer than a scrape can afford. Source: https://docs.nvidia.com/deploy/nvml-api/
"""

from __future__ import annotations

import _thread
import ctypes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from llmhost.metrics.text import Page

LIBRARY = "libnvidia-ml.so.1"
TEMPERATURE_GPU = 0


class _Memory(ctypes.Structure):
    """nvmlMemory_t."""

    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


class _Memory2(ctypes.Structure):
    """nvmlMemory_v2_t: here ``used`` does not count what the driver keeps for itself, as in nvidia-smi."""

    _fields_ = (
        ("version", ctypes.c_uint),
        ("total", ctypes.c_ulonglong),
        ("reserved", ctypes.c_ulonglong),
        ("free", ctypes.c_ulonglong),
        ("used", ctypes.c_ulonglong),
    )


class _Utilization(ctypes.Structure):
    """nvmlUtilization_t."""

    _fields_ = (("gpu", ctypes.c_uint), ("memory", ctypes.c_uint))


class Nvml:
    """The GPUs of this machine; none without a driver. ``load`` opens the library, for tests."""

    def __init__(self, load: Callable[[str], Any] = ctypes.CDLL) -> None:
        self._load = load
        self._library: Any = None
        self._asking = _thread.allocate_lock()
        self._done = _thread.allocate_lock()
        self._found: list[tuple[dict[str, str], dict[str, float]]] | None = []

    def add_gpus(self, page: Page, seconds: float) -> None:
        """The figures of every GPU; takes at most so many seconds, and says so when the driver took longer."""
        if self._library is None and not self._open():
            return
        found = self._read(seconds)
        page.add("llmhost_gpu_driver_up", "gauge", "Whether the NVIDIA driver answered in time.", found is not None)
        for labels, values in found or ():
            for name, told, kind, scale in _METRICS:
                if name in values:
                    page.add(f"llmhost_gpu_{name}", kind, told, values[name] * scale, labels)

    def _open(self) -> bool:
        try:
            library = self._load(LIBRARY)
            if library.nvmlInit_v2() != 0:
                return False
        except (OSError, AttributeError):
            return False
        self._library = library
        return True

    def _read(self, seconds: float) -> list[tuple[dict[str, str], dict[str, float]]] | None:
        """None while the driver hangs, in this call or still in one before."""
        if not self._asking.acquire(blocking=False):
            return None
        self._done.acquire(blocking=False)
        _thread.start_new_thread(self._ask, ())
        return self._found if self._done.acquire(timeout=seconds) else None

    def _ask(self) -> None:
        try:
            self._found = self._gpus()
        except (OSError, AttributeError, ValueError):
            self._found = None
        finally:
            self._asking.release()
            if self._done.locked():
                self._done.release()

    def _gpus(self) -> list[tuple[dict[str, str], dict[str, float]]] | None:
        count = ctypes.c_uint()
        if self._library.nvmlDeviceGetCount_v2(ctypes.byref(count)) != 0:
            return None
        return [self._gpu(index) for index in range(count.value)]

    def _gpu(self, index: int) -> tuple[dict[str, str], dict[str, float]]:
        """Labels and figures of one GPU; one that has fallen off the bus has only ``up``, which is 0."""
        call, device = self._library, ctypes.c_void_p()
        labels = {"gpu": str(index)}
        if call.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(index), ctypes.byref(device)) != 0:
            return labels, {"up": 0}
        for label, function in (("uuid", call.nvmlDeviceGetUUID), ("name", call.nvmlDeviceGetName)):
            text = ctypes.create_string_buffer(96)
            if function(device, text, ctypes.c_uint(len(text))) == 0:
                labels[label] = text.value.decode("utf-8", "replace")
        return labels, {"up": 1, **self._figures(device)}

    def _figures(self, device: ctypes.c_void_p) -> dict[str, float]:
        call, values = self._library, dict[str, float]()
        memory, use = self._memory(device), _Utilization()
        if memory is not None:
            values.update(memory_total_bytes=memory.total, memory_used_bytes=memory.used)
        if call.nvmlDeviceGetUtilizationRates(device, ctypes.byref(use)) == 0:
            values["utilization_ratio"] = use.gpu
        number = ctypes.c_uint()
        if call.nvmlDeviceGetTemperature(device, ctypes.c_uint(TEMPERATURE_GPU), ctypes.byref(number)) == 0:
            values["temperature_celsius"] = number.value
        if call.nvmlDeviceGetPowerUsage(device, ctypes.byref(number)) == 0:
            values["power_watts"] = number.value
        energy = ctypes.c_ulonglong()
        if call.nvmlDeviceGetTotalEnergyConsumption(device, ctypes.byref(energy)) == 0:
            values["energy_joules_total"] = energy.value
        return values

    def _memory(self, device: ctypes.c_void_p) -> _Memory | _Memory2 | None:
        # Drivers before 510 know the first version only.
        second = getattr(self._library, "nvmlDeviceGetMemoryInfo_v2", None)
        newer = _Memory2(version=ctypes.sizeof(_Memory2) | 2 << 24)
        if second is not None and second(device, ctypes.byref(newer)) == 0:
            return newer
        older = _Memory()
        return older if self._library.nvmlDeviceGetMemoryInfo(device, ctypes.byref(older)) == 0 else None


_METRICS = (
    ("up", "Whether the GPU can be reached.", "gauge", 1),
    ("memory_total_bytes", "Memory of the GPU.", "gauge", 1),
    ("memory_used_bytes", "Memory of the GPU that is taken.", "gauge", 1),
    ("utilization_ratio", "Share of the last sampling period in which a kernel ran.", "gauge", 0.01),
    ("temperature_celsius", "Temperature of the GPU.", "gauge", 1),
    ("power_watts", "Power that the board draws.", "gauge", 0.001),
    ("energy_joules_total", "Energy since the driver was loaded.", "counter", 0.001),
)
