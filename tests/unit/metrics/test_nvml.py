"""NVML, with a library in the place of the driver's: its answers are written through the pointers that it is given."""

from __future__ import annotations

import ctypes
import threading
from typing import Any

from llmhost.metrics.nvml import Nvml
from llmhost.metrics.text import Page, samples


class Driver:
    """Two GPUs; the second has fallen off the bus, and the first knows nothing of energy."""

    def __init__(self) -> None:
        self.init_status = 0
        self.old = False
        self.may_answer = threading.Event()
        self.may_answer.set()
        self.calls = 0

    def nvmlInit_v2(self) -> int:
        return self.init_status

    def nvmlDeviceGetCount_v2(self, count: Any) -> int:
        self.calls += 1
        assert self.may_answer.wait(30)
        count._obj.value = 2
        return 0

    def nvmlDeviceGetHandleByIndex_v2(self, index: ctypes.c_uint, device: Any) -> int:
        device._obj.value = 4711
        return 0 if index.value == 0 else 15  # NVML_ERROR_GPU_IS_LOST

    def nvmlDeviceGetUUID(self, device: ctypes.c_void_p, text: Any, size: ctypes.c_uint) -> int:
        assert device.value == 4711
        text.value = b"GPU-1"
        return 0

    def nvmlDeviceGetName(self, device: ctypes.c_void_p, text: Any, size: ctypes.c_uint) -> int:
        text.value = b"NVIDIA X"
        return 0

    def nvmlDeviceGetMemoryInfo(self, device: ctypes.c_void_p, memory: Any) -> int:
        memory._obj.total, memory._obj.free, memory._obj.used = 100, 40, 60
        return 0

    def nvmlDeviceGetMemoryInfo_v2(self, device: ctypes.c_void_p, memory: Any) -> int:
        if memory._obj.version != (40 | 2 << 24) or self.old:
            return 25  # NVML_ERROR_ARGUMENT_VERSION_MISMATCH
        memory._obj.total, memory._obj.reserved, memory._obj.free, memory._obj.used = 100, 10, 40, 50
        return 0

    def nvmlDeviceGetUtilizationRates(self, device: ctypes.c_void_p, use: Any) -> int:
        use._obj.gpu = 87
        return 0

    def nvmlDeviceGetTemperature(self, device: ctypes.c_void_p, sensor: ctypes.c_uint, value: Any) -> int:
        value._obj.value = 55
        return 0

    def nvmlDeviceGetPowerUsage(self, device: ctypes.c_void_p, value: Any) -> int:
        value._obj.value = 350500
        return 0

    def nvmlDeviceGetTotalEnergyConsumption(self, device: ctypes.c_void_p, value: Any) -> int:
        return 3  # NVML_ERROR_NOT_SUPPORTED


def figures(gpus: Nvml, seconds: float = 10) -> dict[tuple[str, str], float]:
    page = Page()
    gpus.add_gpus(page, seconds)
    return {
        (name.removeprefix("llmhost_gpu_"), labels.get("gpu", "")): value
        for name, labels, value in samples(page.render())
    }


def test_the_figures_of_every_gpu() -> None:
    driver = Driver()
    gpus = Nvml(lambda _: driver)
    expected = {
        ("driver_up", ""): 1.0,
        ("up", "0"): 1.0,
        ("up", "1"): 0.0,
        ("memory_total_bytes", "0"): 100.0,
        ("memory_used_bytes", "0"): 50.0,
        ("utilization_ratio", "0"): 0.87,
        ("temperature_celsius", "0"): 55.0,
        ("power_watts", "0"): 350.5,
    }
    assert figures(gpus) == expected
    assert figures(gpus) == expected
    assert driver.calls == 2


def test_a_driver_without_the_second_version_of_memory_is_asked_for_the_first() -> None:
    driver = Driver()
    driver.old = True
    assert figures(Nvml(lambda _: driver))[("memory_used_bytes", "0")] == 60.0


def test_labels_name_the_gpu() -> None:
    page = Page()
    Nvml(lambda _: Driver()).add_gpus(page, 10)
    assert 'llmhost_gpu_up{gpu="0",uuid="GPU-1",name="NVIDIA X"} 1' in page.render().splitlines()


def test_without_a_driver_there_is_nothing() -> None:
    def missing(name: str) -> Any:
        raise OSError(f"{name}: cannot open shared object file")

    driver = Driver()
    driver.init_status = 9  # NVML_ERROR_DRIVER_NOT_LOADED
    assert figures(Nvml(missing)) == {}
    assert figures(Nvml(lambda _: driver)) == {}


def test_a_driver_that_hangs_is_reported_and_not_waited_for_twice() -> None:
    driver = Driver()
    driver.may_answer.clear()
    gpus = Nvml(lambda _: driver)
    assert figures(gpus, 0.01) == {("driver_up", ""): 0.0}
    assert figures(gpus, 30) == {("driver_up", ""): 0.0}
    assert driver.calls == 1
    driver.may_answer.set()
    while gpus._asking.locked():
        threading.Event().wait(0.01)
    assert figures(gpus)[("driver_up", "")] == 1.0
