"""CUDA toolkits: where they may lie, and what each of them has."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from llmhost.errors import CommandError
from llmhost.facts import CudaToolkit
from llmhost.run import capture

VARIABLES = ("CUDA_HOME", "CUDA_PATH")
PLACES = ("usr/local/cuda", "usr/local/cuda-*", "opt/cuda", "opt/cuda-*", "opt/nvidia/hpc_sdk/Linux_*/*/cuda/*.*")
PARTS = ("nvidia/cu[0-9]*", "nvidia/cuda_nvcc")
"""Where the packages ``nvidia-cuda-nvcc`` (13 and newer) and ``nvidia-cuda-nvcc-cu12`` lie in site-packages."""
RELEASE = re.compile(r"release (\d+)\.(\d+)")
NUMBERS = re.compile(r"(\d+)\.(\d+)")
DEFINED = re.compile(r"^#\s*define\s+CUDA_VERSION\s+(\d+)", re.MULTILINE)
"""In cuda.h: 1000 times the major version and 10 times the minor one."""
TOP = re.compile(r"^#\$ TOP=(.+)$", re.MULTILINE)
NVCC_SECONDS = 10.0

Found = tuple[str, Path]
"""What pointed to a toolkit, in words, and its root."""


def find_toolkits(
    environ: Mapping[str, str] = os.environ,
    root: Path = Path("/"),
    site_packages: Sequence[Path] = (),
    conda_environments: Sequence[Path] = (),
) -> tuple[CudaToolkit, ...]:
    """Every toolkit on the machine, one entry for each whatever the number of links to it.

    Those that a variable names come first, whole or not: a CUDA_HOME that is set but wrong is a fact, too. Of the
    others, what has neither nvcc nor headers is left out.
    """
    found: dict[str, list[str]] = {}
    for words, place in _places(environ, root, site_packages, conda_environments):
        told = found.setdefault(os.path.realpath(place), [])
        if words not in told:
            told.append(words)
    with ThreadPoolExecutor(max_workers=8) as pool:
        toolkits = tuple(pool.map(lambda item: read_toolkit(Path(item[0]), tuple(item[1])), found.items()))
    return tuple(t for t in toolkits if _counts(t))


def _counts(toolkit: CudaToolkit) -> bool:
    nvcc = (Path(toolkit.root) / "bin/nvcc").exists()  # one that does not run may be what is looked for
    return nvcc or toolkit.headers or any(variable in toolkit.found_by for variable in VARIABLES)


def _places(
    environ: Mapping[str, str], root: Path, site_packages: Sequence[Path], conda: Sequence[Path]
) -> Iterator[Found]:
    for variable in VARIABLES:
        if value := environ.get(variable):
            yield variable, Path(value)
    if nvcc := shutil.which("nvcc", path=environ.get("PATH", "")):
        yield "nvcc on PATH", root_of(Path(nvcc))
    for pattern in PLACES:
        for place in sorted(root.glob(pattern)):
            if place.is_dir():
                yield str(place), place
    for prefix in conda:
        if (prefix / "bin/nvcc").exists() or list(prefix.glob("targets/*/include/cuda_runtime.h")):
            yield f"conda environment {prefix}", prefix
    for packages in site_packages:
        for pattern in PARTS:
            for place in sorted(packages.glob(pattern)):
                yield f"pip packages in {packages}", place


def root_of(nvcc: Path) -> Path:
    """The toolkit of an nvcc: a link is followed, and a script (``exec /usr/local/cuda-13.0/bin/nvcc``) is asked."""
    real = Path(os.path.realpath(nvcc))
    root = real.parent.parent
    if _has(root, "cuda_runtime.h") or not _is_script(real):
        return root
    try:
        said = capture([real, "--dryrun", "-x", "cu", os.devnull], timeout=NVCC_SECONDS, check=False)
    except CommandError:
        return root
    top = TOP.search(said.stderr + said.stdout)
    return Path(top[1]) if top else root


def _is_script(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(2) == b"#!"
    except OSError:
        return False


def read_toolkit(root: Path, found_by: tuple[str, ...]) -> CudaToolkit:
    """What lies there; without an nvcc that runs its version is what its files say."""
    nvcc = root / "bin/nvcc"
    there = nvcc.is_file() and os.access(nvcc, os.X_OK)
    said = _version(nvcc) if there else None
    version = said or _written_version(root)
    return CudaToolkit(
        root=str(root),
        found_by=found_by,
        version=version,
        nvcc=there and said == version,  # a version from elsewhere must not make one count that does not run
        headers=_has(root, "cuda_runtime.h"),
        cudart=_has(root, "libcudart.so"),
    )


def _version(nvcc: Path) -> tuple[int, int] | None:
    try:
        return parse_version(capture([nvcc, "--version"], timeout=NVCC_SECONDS).stdout)
    except CommandError:
        return None


def _written_version(root: Path) -> tuple[int, int] | None:
    """What version.json says (NVIDIA's installers write it), else cuda.h."""
    try:
        told = json.loads((root / "version.json").read_bytes())["cuda"]["version"]
        if found := NUMBERS.match(told):
            return int(found[1]), int(found[2])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    for header in (root / "include/cuda.h", *sorted(root.glob("targets/*/include/cuda.h"))):
        try:
            defined = DEFINED.search(header.read_text(encoding="utf-8", errors="replace"))
        except OSError:
            continue
        if defined:
            return int(defined[1]) // 1000, int(defined[1]) % 1000 // 10
    return None


def parse_version(text: str) -> tuple[int, int] | None:
    """(13, 0) of ``Cuda compilation tools, release 13.0, V13.0.88``."""
    found = RELEASE.search(text)
    return (int(found[1]), int(found[2])) if found else None


def _has(root: Path, name: str) -> bool:
    """A header or a library, in one of the places where toolkits, distributions and conda put them."""
    folders = ("include",) if name.endswith(".h") else ("lib64", "lib", "lib/*-linux-gnu")
    patterns = (*folders, *(f"targets/*/{folder}" for folder in folders[-2:]))
    return any(next(root.glob(f"{pattern}/{name}"), None) is not None for pattern in patterns)
