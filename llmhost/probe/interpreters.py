"""Python interpreters of this machine, and what is installed in them."""

from __future__ import annotations

import json
import os
import re
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmhost.errors import CommandError
from llmhost.facts import Interpreter
from llmhost.run import capture

NAME = re.compile(r"python3(\.\d+)?")
OLDEST = (3, 9)
"""No vLLM that one would install runs on an older one."""
ASK = (
    "import json, sys, sysconfig; print(json.dumps([list(sys.version_info[:3]), sysconfig.get_path('include'), "
    "[p for p in sys.path if p.endswith('-packages')]]))"
)
SECONDS = 20.0
INFO = re.compile(r"(?P<name>[^-]+)-(?P<version>[^-]+)(-py[\d.]+)?(-[^-]+)?\.(dist|egg)-info")


@dataclass(frozen=True)
class Found:
    """An interpreter, and where it has its packages."""

    interpreter: Interpreter
    site_packages: tuple[Path, ...]


def find_interpreters(
    environ: Mapping[str, str] = os.environ, more: Sequence[Path] = (), own: str = sys.executable
) -> tuple[Found, ...]:
    """The interpreter that runs llmhost first, then those on PATH, those of uv and pyenv, and ``more``.

    One that is reached by several links is told once; what does not run, or is older than 3.9, is left out.
    """
    seen = {_identity(own)}
    others: list[str] = []
    for path in (*_on_path(environ), *_managed(environ), *map(str, more)):
        if _identity(path) not in seen:
            seen.add(_identity(path))
            others.append(path)
    with ThreadPoolExecutor(max_workers=8) as pool:
        return (_ours(own), *filter(None, pool.map(read_interpreter, others)))


def _identity(path: str) -> str:
    """An environment's interpreter is a link to that of another, and yet not the same."""
    prefix = Path(path).parent.parent
    return str(Path(path).parent) if (prefix / "pyvenv.cfg").exists() else os.path.realpath(path)


def _on_path(environ: Mapping[str, str]) -> Iterator[str]:
    for folder in dict.fromkeys(environ.get("PATH", "").split(os.pathsep)):
        # What pyenv puts there are scripts; the interpreters themselves come with `_managed`.
        if os.path.isabs(folder) and not folder.endswith("/shims"):
            yield from _in(Path(folder))


def _managed(environ: Mapping[str, str]) -> Iterator[str]:
    home = Path(environ.get("HOME") or "/nonexistent")
    data = Path(environ.get("XDG_DATA_HOME") or home / ".local/share")
    uv = Path(environ.get("UV_PYTHON_INSTALL_DIR") or data / "uv/python")
    pyenv = Path(environ.get("PYENV_ROOT") or home / ".pyenv") / "versions"
    for parent in (uv, pyenv):
        for folder in sorted(parent.glob("*/bin")):
            yield from _in(folder)


def _in(folder: Path) -> list[str]:
    """The newest first, ``python3`` before ``python3.12``, which is most often the same."""
    try:
        names = [name for name in os.listdir(folder) if NAME.fullmatch(name)]
    except OSError:
        return []
    ordered = sorted(names, key=lambda name: (name != "python3", -int(name.partition(".")[2] or 0)))
    return [str(folder / name) for name in ordered if os.access(folder / name, os.X_OK)]


def _ours(path: str) -> Found:
    packages = tuple(Path(p) for p in sys.path if p.endswith("-packages"))
    return _found(path, sys.version_info[:3], sysconfig.get_path("include"), packages)


def read_interpreter(path: str) -> Found | None:
    """Ask an interpreter; None when it does not run or is too old to be of use."""
    try:
        # -I: what the user's environment adds to sys.path belongs to nobody else.
        done = capture([path, "-I", "-c", ASK], timeout=SECONDS)
        answer: Any = json.loads(done.stdout.splitlines()[-1])
        version, include, packages = answer
        if tuple(version) < OLDEST:
            return None
        return _found(path, tuple(version), include, tuple(map(Path, packages)))
    except (CommandError, ValueError, IndexError, TypeError):
        return None


def _found(path: str, version: tuple[int, ...], include: str, packages: tuple[Path, ...]) -> Found:
    headers = (Path(include) / "Python.h").is_file()
    return Found(Interpreter(path, version, headers, installed(packages)), packages)


def installed(site_packages: Iterable[Path]) -> dict[str, str]:
    """Normalized name -> version, by the names of ``*.dist-info`` (and ``*.egg-info``) alone; earlier folders win."""
    found: dict[str, str] = {}
    for folder in site_packages:
        try:
            names = sorted(os.listdir(folder))
        except OSError:
            continue
        for info in filter(None, map(INFO.fullmatch, names)):
            found.setdefault(re.sub(r"[-_.]+", "-", info["name"]).lower(), info["version"])
    return dict(sorted(found.items()))
