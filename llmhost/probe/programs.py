"""Programs that an installation may need, and their channels: conda and its like, compilers, uv."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from llmhost.errors import CommandError
from llmhost.facts import Program
from llmhost.run import capture

CONDA = ("conda", "mamba", "micromamba")
VARIABLES = {"conda": "CONDA_EXE", "mamba": "MAMBA_EXE", "micromamba": "MAMBA_EXE"}
"""Set by `conda init` and its like; there the program is no file on PATH but a function of the shell."""
ROOTS = ("miniconda3", "anaconda3", "miniforge3", "mambaforge", "miniconda", "anaconda", "micromamba", "conda")
COMPILERS = ("gcc", "clang", "g++", "c++", "clang++", "ninja")
VERSION = re.compile(r"\d+(\.\d+)+")
SECONDS = 20.0


def find_conda(environ: Mapping[str, str] = os.environ, root: Path = Path("/")) -> tuple[Program, ...]:
    """conda, mamba and micromamba: on PATH, as their own variables say, or where their installers put them."""
    found: dict[str, str] = {}
    for name in CONDA:
        for path in _conda_places(name, environ, root):
            if os.path.basename(path) == name and os.access(path, os.X_OK):
                found.setdefault(name, path)
    return _with_versions(found)


def _conda_places(name: str, environ: Mapping[str, str], root: Path) -> Iterator[str]:
    if on_path := shutil.which(name, path=environ.get("PATH", "")):
        yield on_path
    if told := environ.get(VARIABLES[name]):
        yield told
    yield from (str(prefix / "bin" / name) for prefix in conda_roots(environ, root))


def conda_roots(environ: Mapping[str, str], root: Path) -> list[Path]:
    """Where installations of conda may lie."""
    home = Path(environ.get("HOME") or "/nonexistent")
    told = [Path(environ["CONDA_EXE"]).parent.parent] if environ.get("CONDA_EXE") else []
    prefix = [Path(environ["MAMBA_ROOT_PREFIX"])] if environ.get("MAMBA_ROOT_PREFIX") else []
    return [*told, *prefix, *(home / name for name in ROOTS), *(root / "opt" / name for name in ROOTS)]


def conda_environments(environ: Mapping[str, str] = os.environ, root: Path = Path("/")) -> tuple[Path, ...]:
    """Prefixes of conda environments: the active one, those that conda remembers, and those of installations."""
    listed = Path(environ.get("HOME") or "/nonexistent") / ".conda/environments.txt"
    try:
        remembered = [Path(line) for line in listed.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError):
        remembered = []
    active = [Path(environ["CONDA_PREFIX"])] if environ.get("CONDA_PREFIX") else []
    below = [p for prefix in conda_roots(environ, root) for p in (prefix, *sorted(prefix.glob("envs/*")))]
    return tuple(dict.fromkeys(p for p in (*active, *remembered, *below) if (p / "conda-meta").is_dir()))


def conda_channels(tool: str) -> tuple[str, ...]:
    """The channels that conda, mamba or micromamba is configured with (.condarc, .mambarc …), as it says itself.

    They may hold passwords and tokens. Empty where none are configured, or where it does not say.
    """
    python = ["config", "--show", "channels"]  # conda, and the mamba that was written in Python (before 2.0)
    for question in [python] if os.path.basename(tool) == "conda" else [["config", "list"], python]:
        try:
            done = capture([tool, *question], timeout=SECONDS)
            told = YAML(typ="safe", pure=True).load(done.stdout)
        except (CommandError, YAMLError, ValueError):
            continue
        channels = told.get("channels") if isinstance(told, Mapping) else None
        return tuple(_channel(c) for c in channels) if isinstance(channels, list) else ()
    return ()


def _channel(entry: object) -> str:
    """A name or an address; newer versions of conda take settings below it."""
    return str(next(iter(entry))) if isinstance(entry, Mapping) and entry else str(entry)


def find_compilers(environ: Mapping[str, str] = os.environ) -> tuple[Program, ...]:
    """C and C++ compilers, and ninja, on PATH."""
    paths = {name: shutil.which(name, path=environ.get("PATH", "")) for name in COMPILERS}
    return _with_versions({name: path for name, path in paths.items() if path})


def find_uv_program() -> Program | None:
    """The uv that came with llmhost."""
    from uv import find_uv_bin  # noqa: PLC0415 -- slow, and seldom asked for

    try:
        return Program("uv", find_uv_bin(), importlib.metadata.version("uv"))
    except (FileNotFoundError, importlib.metadata.PackageNotFoundError):
        return None


def _with_versions(paths: Mapping[str, str]) -> tuple[Program, ...]:
    with ThreadPoolExecutor(max_workers=4) as pool:
        versions: Sequence[str] = list(pool.map(_version, paths.values()))
    return tuple(Program(name, path, v) for (name, path), v in zip(paths.items(), versions, strict=True) if v)


def _version(path: str) -> str:
    """What ``--version`` says; empty for a program that does not run."""
    try:
        said = capture([path, "--version"], timeout=SECONDS).stdout
    except CommandError:
        return ""
    # "g++ (Debian 12.2.0-14) 12.2.0": what stands in brackets is the distribution's.
    first = re.sub(r"\(.*?\)", "", said.splitlines()[0]) if said.strip() else ""
    found = VERSION.search(first)
    return found[0] if found else "?"
