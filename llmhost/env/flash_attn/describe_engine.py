"""Run by an engine's interpreter: what a package compiled for it must fit, as one line of JSON.

Standard library and the engine's own torch only, nothing of llmhost.
"""

from __future__ import annotations

import importlib
import json
import platform
import sys
import sysconfig
from importlib import metadata
from pathlib import Path

torch = importlib.import_module("torch")
BUILD_PACKAGES = ("einops", "ninja", "packaging", "psutil", "setuptools", "wheel", "flash-attn")
KERNELS = {"FA2": "_vllm_fa2_C*.so", "FA3": "_vllm_fa3_C*.so", "FA4": "cute/__init__.py"}
"""What vLLM brings below ``vllm/vllm_flash_attn``."""
MATH_HEADERS = ("cusparse.h", "cublas_v2.h", "cusolverDn.h")
"""Included by torch's own headers (ATen/cuda/CUDAContextLight.h)."""


def main() -> None:
    """Print it as the last line; whatever an import says stands above."""
    site = Path(sysconfig.get_path("purelib"))
    print(f"\n{json.dumps(describe(site))}")


def describe(site: Path) -> dict[str, object]:
    """The fields of ``Target``, CUDA as text."""
    headers = {Path(sysconfig.get_path(name)) for name in ("include", "platinclude")}
    return {
        "python_version": platform.python_version(),
        "python_tag": f"cp{sys.version_info.major}{sys.version_info.minor}",
        "machine": platform.machine(),
        "headers": any((folder / "Python.h").is_file() for folder in headers),
        "torch": torch.__version__.partition("+")[0],
        "cuda": torch.version.cuda,
        "cxx11_abi": bool(torch.compiled_with_cxx11_abi()),
        "packages": dict(filter(None, map(installed, BUILD_PACKAGES))),
        "bundled": [name for name, glob in KERNELS.items() if any((site / "vllm/vllm_flash_attn").glob(glob))],
        "math_headers": next(map(str, headers_of_torch()), ""),
    }


def installed(name: str) -> tuple[str, str] | None:
    """Name and version of an installed package."""
    try:
        return name, metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def headers_of_torch() -> list[Path]:
    """Directories of the CUDA packages beside torch (``nvidia/cu13/include``) with every header that it includes."""
    beside = Path(str(torch.__file__)).parents[1] / "nvidia"
    return [folder for folder in sorted(beside.glob("*/include")) if all((folder / h).is_file() for h in MATH_HEADERS)]


if __name__ == "__main__":
    main()
