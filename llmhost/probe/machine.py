"""Everything about this machine that decides which engine runs on it, and what it lacks."""

from __future__ import annotations

import os
import platform
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from llmhost import __version__
from llmhost.facts import MachineFacts, Program
from llmhost.paths import Home
from llmhost.probe.cuda import find_toolkits
from llmhost.probe.gpus import read_gpus
from llmhost.probe.host import free_bytes, read_host
from llmhost.probe.interpreters import Found, find_interpreters
from llmhost.probe.nvidia import Accelerators
from llmhost.probe.pip_options import mask, read_pip_options
from llmhost.probe.programs import (
    conda_channels,
    conda_environments,
    find_compilers,
    find_conda,
    find_uv_program,
)
from llmhost.probe.uv_options import read_uv_settings

SOURCES = (
    "index-url", "extra-index-url", "find-links", "no-index", "trusted-host", "cert", "client-cert", "proxy",
    "constraint", "require-virtualenv", "only-binary", "no-binary", "pre",
)  # fmt: skip
"""Options of pip that decide where packages come from, and which."""
VARIABLES = ("CUDA_HOME", "CUDA_PATH", "CUDA_VISIBLE_DEVICES", "CONDA_PREFIX")
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")


class Usage(NamedTuple):
    """Of a file system, in bytes."""

    total: int
    free: int


def read_machine(home: Home, models_dir: Path | None = None, root: Path = Path("/")) -> MachineFacts:
    """The facts of this machine for a home; nothing is changed, and nothing that is asked can hang for long.

    ``models_dir`` is where its models are, by default below the home; ``root`` is where ``proc``, ``sys``, ``etc``,
    ``dev/shm`` and the usual places of toolkits are looked up.
    """
    environ = dict(os.environ)
    models = models_dir or home.models
    environments = conda_environments(environ, root)
    with ThreadPoolExecutor(max_workers=8) as pool:
        essentials = pool.submit(read_essentials, home, models, root)
        pythons = pool.submit(find_interpreters, environ, [prefix / "bin/python3" for prefix in environments])
        conda = pool.submit(_conda, environ, root)
        compilers = pool.submit(find_compilers, environ)
        pip = pool.submit(read_pip_options)
        stored = pool.submit(lambda: dict(_models(models)))
        found = pythons.result()
        toolkits = pool.submit(find_toolkits, environ, root, _site_packages(found), environments)
    return replace(
        essentials.result(),
        toolkits=toolkits.result(),
        interpreters=tuple(f.interpreter for f in found),
        conda=conda.result()[0],
        conda_channels=conda.result()[1],
        compilers=compilers.result(),
        uv=find_uv_program(),
        pip={name: without_credentials(value) for name, value in pip.result().items() if name in SOURCES},
        models=stored.result(),
        uv_settings=read_uv_settings(environ, home.engines, root),
    )


def read_essentials(
    home: Home, models_dir: Path | None = None, root: Path = Path("/"), *, gpus: bool = True
) -> MachineFacts:
    """What can be read without starting a program: GPUs and driver, memory, disks, the system. Takes milliseconds.

    Without ``gpus`` the driver is not asked: it may take its time.
    """
    environ = dict(os.environ)
    accelerators, shm = read_gpus(root) if gpus else Accelerators(), _shared_memory(root)
    disks = (home.root, models_dir or home.models, _uv_cache(environ), Path(tempfile.gettempdir()))
    return MachineFacts(
        llmhost=__version__,
        machine=platform.machine(),
        system=_system(root),
        kernel=platform.release(),
        glibc=_glibc(),
        host=read_host(root),
        shm_total=shm.total,
        shm_free=shm.free,
        disk_free={str(path): free_bytes(path) for path in disks},
        gpus=accelerators.gpus,
        driver=accelerators.driver,
        gpu_processes=accelerators.processes,
        proxies=_proxies(environ),
        environment={name: environ[name] for name in VARIABLES if name in environ},
    )


def _conda(environ: Mapping[str, str], root: Path) -> tuple[tuple[Program, ...], dict[str, tuple[str, ...]]]:
    programs = find_conda(environ, root)
    with ThreadPoolExecutor(max_workers=4) as pool:
        channels = list(pool.map(conda_channels, [program.path for program in programs]))
    shown = (tuple(map(mask, found)) for found in channels)
    return programs, {program.name: found for program, found in zip(programs, shown, strict=True) if found}


def _site_packages(found: tuple[Found, ...]) -> list[Path]:
    return list(dict.fromkeys(folder for f in found for folder in f.site_packages))


def _system(root: Path) -> str:
    try:
        lines = (root / "etc/os-release").read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return platform.system()
    settings = dict(line.split("=", 1) for line in lines if "=" in line)
    return settings.get("PRETTY_NAME", platform.system()).strip("\"'")


def _glibc() -> tuple[int, ...]:
    """(2, 39) of ``glibc 2.39``; empty where the C library is another one."""
    try:
        name, _, version = (os.confstr("CS_GNU_LIBC_VERSION") or "").partition(" ")
    except (OSError, ValueError):
        return ()
    return tuple(int(part) for part in version.split(".") if part.isdigit()) if name == "glibc" else ()


def _shared_memory(root: Path) -> Usage:
    try:
        found = shutil.disk_usage(root / "dev/shm")
    except OSError:
        return Usage(0, 0)
    return Usage(found.total, found.free)


def _uv_cache(environ: Mapping[str, str]) -> Path:
    home = Path(environ.get("HOME") or tempfile.gettempdir())
    return Path(environ.get("UV_CACHE_DIR") or Path(environ.get("XDG_CACHE_HOME") or home / ".cache") / "uv")


def _proxies(environ: Mapping[str, str]) -> dict[str, str]:
    """Programs read either spelling, most of them the small one first."""
    found = {name: environ.get(name.lower()) or environ.get(name) for name in PROXIES}
    return {name: without_credentials(value) for name, value in found.items() if value}


def without_credentials(text: str) -> str:
    """The text without ``user:password`` in its addresses; those of proxies may have no scheme in front."""
    return re.sub(r"(?<!\S)[^\s/@]+(?=@)", "****", mask(text))


def _models(models_dir: Path) -> Iterator[tuple[str, int]]:
    """``owner/name`` and bytes of what lies below models_dir, unfinished downloads left out."""
    for owner in _folders(models_dir):
        for model in _folders(owner):
            yield f"{owner.name}/{model.name}", sum(f.stat().st_size for f in model.rglob("*") if f.is_file())


def _folders(parent: Path) -> list[Path]:
    try:
        return sorted(p for p in parent.iterdir() if p.is_dir() and not p.name.startswith("."))
    except OSError:
        return []
