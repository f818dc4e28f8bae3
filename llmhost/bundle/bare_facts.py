"""Facts of a machine that has no llmhost yet: `python3 bare_facts.py > facts.json`.

`llmhost bundle probe` prints this file. It needs nothing but Python's standard library, looks at what a bundle depends
on, and writes what `llmhost facts --json` would; that one sees more (other interpreters, conda, compilers).
"""

from __future__ import annotations

import glob
import json
import os
import platform
import re
import shutil
import sys
import sysconfig
from importlib import metadata
from typing import Any

FORMAT = 1
MIB = 1 << 20
QUERY = "index,name,memory.total,memory.free,compute_cap,uuid,driver_version"


def main() -> None:
    """Print the facts as JSON."""
    print(json.dumps(facts(), indent=1))


def facts() -> dict[str, Any]:
    """All that can be seen with the standard library and nvidia-smi."""
    meminfo = dict(re.findall(r"^(\w+):\s+(\d+) kB", _read("/proc/meminfo"), re.MULTILINE))
    shm = os.statvfs("/dev/shm") if os.path.isdir("/dev/shm") else None
    system = re.search(r'^PRETTY_NAME="?([^"\n]*)', _read("/etc/os-release"), re.MULTILINE)
    gpus, driver = _gpus()
    home = os.path.expanduser("~")
    return {
        "format": FORMAT,
        "llmhost": "",
        "machine": platform.machine(),
        "system": system.group(1) if system else "",
        "kernel": platform.release(),
        "glibc": [int(n) for n in platform.libc_ver()[1].split(".") if n],
        "host": {
            "cores": sorted(os.sched_getaffinity(0)),
            "memory_total": int(meminfo.get("MemTotal", 0)) * 1024,
            "memory_available": int(meminfo.get("MemAvailable", 0)) * 1024,
        },
        "shm_total": shm.f_blocks * shm.f_frsize if shm else 0,
        "shm_free": shm.f_bavail * shm.f_frsize if shm else 0,
        "disk_free": {home: shutil.disk_usage(home).free},
        "gpus": gpus,
        "driver": driver,
        "toolkits": [t for root in sorted(glob.glob("/usr/local/cuda*")) for t in _toolkit(root)],
        "interpreters": [_interpreter()],
    }


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except OSError:
        return ""


def _output(command: str) -> str:
    with os.popen(command + " 2>/dev/null") as pipe:
        return pipe.read()


def _gpus() -> tuple[list[dict[str, Any]], dict[str, Any]]:
    found, version = [], ""
    for line in _output(f"nvidia-smi --query-gpu={QUERY} --format=csv,noheader,nounits").splitlines():
        parts = [part.strip() for part in line.split(",")]
        if len(parts) == 7 and parts[0].isdigit():
            index, name, total, free, capability, uuid, version = parts
            known = re.fullmatch(r"(\d+)\.(\d+)", capability)
            found.append({
                "index": int(index), "name": name, "total": int(total) * MIB, "free": int(free) * MIB, "uuid": uuid,
                "capability": [int(known.group(1)), int(known.group(2))] if known else None,
            })  # fmt: skip
    cuda = re.search(r"CUDA Version: (\d+)\.(\d+)", _output("nvidia-smi")) if found else None
    return found, {
        "version": version,
        "cuda": [int(cuda.group(1)), int(cuda.group(2))] if cuda else None,
        "problem": "",
    }


def _toolkit(root: str) -> list[dict[str, Any]]:
    """A CUDA toolkit in its usual place; links to it are left out."""
    if os.path.islink(root) or not os.path.isdir(root):
        return []
    nvcc = os.path.join(root, "bin", "nvcc")
    release = re.search(r"release (\d+)\.(\d+)", _output(f"'{nvcc}' --version"))
    return [{
        "root": root, "found_by": ["/usr/local/cuda*"], "nvcc": os.access(nvcc, os.X_OK),
        "version": [int(release.group(1)), int(release.group(2))] if release else None,
        "headers": _has(root, "cuda_runtime.h"), "cudart": _has(root, "libcudart.so"),
    }]  # fmt: skip


def _has(root: str, name: str) -> bool:
    places = ("include", "lib64", "lib", "targets/*/include", "targets/*/lib")
    return any(glob.glob(os.path.join(root, place, name)) for place in places)


def _interpreter() -> dict[str, Any]:
    header = os.path.join(sysconfig.get_paths()["include"], "Python.h")
    packages = {
        re.sub(r"[-_.]+", "-", name).lower(): found.version
        for found in metadata.distributions()
        if (name := found.metadata["Name"])
    }
    return {
        "path": sys.executable, "version": list(sys.version_info[:3]), "headers": os.path.exists(header),
        "packages": dict(sorted(packages.items())),
    }  # fmt: skip


if __name__ == "__main__":
    main()
