"""How many GPUs the NVIDIA driver shows, asked of its own library (NVML), which comes with the driver."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterable

LIBRARY = "libnvidia-ml.so.1"
DEVICES = ("/dev/nvidiactl", "/dev/nvidia-uvm")
"""What CUDA opens, whatever GPU it uses."""


def gpu_count() -> int:
    """GPUs that NVML shows to this process; 0 without a driver, or while it is not ready."""
    try:
        library = ctypes.CDLL(LIBRARY)
    except OSError:
        return 0
    if library.nvmlInit_v2() != 0:
        return 0
    count = ctypes.c_uint()
    failed = library.nvmlDeviceGetCount_v2(ctypes.byref(count)) != 0
    library.nvmlShutdown()
    return 0 if failed else count.value


def forbidden_devices(devices: Iterable[str] = DEVICES) -> tuple[str, ...]:
    """Device files that are there, but that the kernel keeps from this process' control group.

    EPERM, that is; what file permissions keep from us is EACCES.
    """
    return tuple(path for path in devices if _open_error(path) == errno.EPERM)


def _open_error(path: str) -> int:
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC))
    except OSError as e:
        return e.errno or 0
    return 0
