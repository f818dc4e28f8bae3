"""What an interpreter is and has, as it says itself."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from llmhost.errors import CommandError, EngineError
from llmhost.run import capture

ASK = """
import importlib.metadata, json, os, sys, sysconfig
own = os.path.realpath(sys.prefix)
found = {}
for d in importlib.metadata.distributions():
    name, path = d.metadata["Name"], str(getattr(d, "_path", ""))
    if name and name not in found:
        installed = (d.read_text("INSTALLER") or "").strip() == "uv" and d.read_text("direct_url.json") is None
        found[name] = [d.version, path, os.path.realpath(path).startswith(own + os.sep), installed]
headers = os.path.isfile(os.path.join(sysconfig.get_path("include"), "Python.h"))
print(json.dumps({"version": list(sys.version_info[:3]), "headers": headers, "packages": found}))
"""
RUN = """
import runpy, sys
sys.path[:] = [folder for folder in sys.path if folder]
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
SECONDS = 60.0


@dataclass(frozen=True)
class Package:
    """An installed package."""

    version: str
    metadata: str
    """Path of its dist-info."""
    own: bool
    """It lies in the environment itself and not in one below it."""
    indexed: bool = False
    """Installed by uv from an index, so that it can be had again."""

    @property
    def public(self) -> str:
        """Its version without the local part (``+cu130``), as an index has it."""
        return self.version.partition("+")[0]


@dataclass(frozen=True)
class Python:
    """An interpreter as it sees itself."""

    path: Path
    version: tuple[int, ...]
    headers: bool
    packages: Mapping[str, Package]
    """By normalized name."""


def script_command(python: str | Path, script: Path, *arguments: str) -> list[str]:
    """Run a script of ours in an engine without its directory, or the present one, on sys.path.

    The option for that (-P) came with Python 3.11, and engines may be older.
    """
    return [str(python), "-c", RUN, str(script), *arguments]


def read_python(path: Path) -> Python:
    """Ask an interpreter what it is and what it has. Raises EngineError when it cannot be run or is none."""
    try:
        said = capture([path, "-c", ASK], timeout=SECONDS, cwd=Path("/"))
        data = json.loads(said.stdout.splitlines()[-1])
        packages = {normalized(name): Package(*info) for name, info in data["packages"].items()}
        return Python(path, tuple(data["version"]), data["headers"], packages)
    except CommandError as e:
        raise EngineError(f"the interpreter {path} cannot be used: {e.message}", _how_to_name) from e
    except (ValueError, LookupError, TypeError) as e:
        raise EngineError(f"{path} is no Python interpreter that llmhost understands", _how_to_name) from e


BELOW_PTH = "_llmhost_below.pth"
"""Names the packages of a virtual environment that another one stands on."""

ASK_PLACES = """
import json, sys, sysconfig
own = sys.prefix != sys.base_prefix
print(json.dumps(sorted({sysconfig.get_path(n) for n in ("purelib", "platlib")}) if own else []))
"""


def see_through(python: Path, below: Path) -> None:
    """Let a new environment see the packages of ``below`` when that is a virtual environment itself.

    ``--system-site-packages`` shows the packages of the base interpreter only (PEP 405: environments do not nest).
    """
    places = json.loads(capture([below, "-c", ASK_PLACES], timeout=SECONDS, cwd=Path("/")).stdout)
    own = capture([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], timeout=SECONDS)
    if places:
        lines = (f"import site; site.addsitedir({place!r})\n" for place in places)
        (Path(own.stdout.strip()) / BELOW_PTH).write_text("".join(lines), encoding="utf-8")


_how_to_name = "name an interpreter of Python 3.10 or newer as engine.python in llmhost.yaml"


def normalized(name: str) -> str:
    """The name of a package as indexes compare it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()
