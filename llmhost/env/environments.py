"""Environments of foreign engines: built by uv from requirements, each below ``environments/`` of the home.

As with engines a build lies at its final path, because what runs keeps importing from there; ``environment.json`` names
the one that counts and is written last.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from pathlib import Path

from llmhost.config_foreign import Environment
from llmhost.env.builds import disk_errors, new_build, remove_all_but, setup_lock
from llmhost.env.log import SetupLog
from llmhost.env.manifest import python_of, write_record
from llmhost.env.progress import Progress
from llmhost.env.python import read_python
from llmhost.env.releases import dotted
from llmhost.env.setup import user_uv
from llmhost.env.uv import Uv
from llmhost.errors import ConfigError, LlmhostError
from llmhost.paths import Home, in_user_home

RECORD = "environment.json"


def find_environment(home: Home, name: str, environment: Environment) -> Path | None:
    """The directory of programs of an environment when it is there and what is asked for, else None.

    Raises ConfigError for an interpreter or a file of requirements that does not exist.
    """
    if environment.interpreter is not None:
        interpreter = home.root / in_user_home(f"environment {name}: interpreter", environment.interpreter)
        if not interpreter.is_file():
            raise ConfigError(f"environment {name}: there is no interpreter {interpreter}", "name one that is there")
        return interpreter.parent
    directory, digest = home.environment_dir(name), _digest(home, name, environment)
    try:
        record = json.loads((directory / RECORD).read_bytes())
        build = directory / str(record["build"])
        same = record["digest"] == digest
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return build / "bin" if same and python_of(build).exists() else None


def ensure_environment(home: Home, name: str, environment: Environment, progress: Progress) -> Path:
    """Build it unless it is there; the former one stays in use until the new one is whole.

    Returns its directory of programs. Raises EngineError (message, log, remedy) when it cannot be built, ConfigError
    for a file that does not exist, BusyError when another llmhost is building it.
    """
    if found := find_environment(home, name, environment):
        return found
    directory = home.environment_dir(name)
    with (
        disk_errors(f"the environment {name}", directory),
        setup_lock(directory),
        SetupLog(home.log_file(f"environment-{name}")) as log,
    ):
        if found := find_environment(home, name, environment):  # somebody was faster
            return found
        return _build(home, name, environment, user_uv(home, directory, log, progress)) / "bin"


def _build(home: Home, name: str, environment: Environment, uv: Uv) -> Path:
    directory, digest = home.environment_dir(name), _digest(home, name, environment)
    remove_all_but(directory, home.plan_file, _recorded(directory))
    build = new_build(directory, digest[:12])
    step = f"build the environment {name}"
    uv.progress.started(step)
    try:
        _install(home, name, environment, build, uv)
        python = read_python(python_of(build))
    except (LlmhostError, OSError):
        shutil.rmtree(build, ignore_errors=True)  # its room may be what the next attempt lacks
        raise
    packages = {package: found.version for package, found in sorted(python.packages.items())}
    record = {"digest": digest, "build": build.name, "python": dotted(python.version), "packages": packages}
    write_record(directory / RECORD, record)
    uv.progress.finished(step, f"Python {dotted(python.version)}, {len(packages)} package{'s' * (len(packages) != 1)}")
    return build


def _recorded(directory: Path) -> set[str]:
    """The build that counts until now."""
    try:
        return {str(json.loads((directory / RECORD).read_bytes())["build"])}
    except (OSError, ValueError, KeyError, TypeError):
        return set()


def _install(home: Home, name: str, environment: Environment, build: Path, uv: Uv) -> None:
    asked = environment.python or sys.executable
    python = str(home.root / in_user_home(f"environment {name}: python", asked)) if "/" in asked else asked
    if failure := uv.run(["venv", str(build), "--python", python, "--no-project"]):
        raise failure.as_error(f"create a Python environment with {asked}", uv.log)
    command = ["pip", "install", "--python", str(python_of(build)), "--compile-bytecode"]
    command += ["-r", str(_file(home, name, environment.requirements or [], build / "requirements.txt"))]
    if environment.constraints:
        command += ["-c", str(_file(home, name, environment.constraints, build / "constraints.txt"))]
    if environment.exclude_newer:
        command += ["--exclude-newer", environment.exclude_newer]
    if environment.torch_backend:
        command += ["--torch-backend", environment.torch_backend]
    if failure := uv.run(command, follow_stages=True):
        raise failure.as_error(f"install the requirements of the environment {name}", uv.log)


def _file(home: Home, name: str, written: list[str] | str, scratch: Path) -> Path:
    """A file in the form of requirements: the one that is named, which may name others beside it, or one of a list."""
    if isinstance(written, str):
        return _existing(home, name, written)
    scratch.write_text("".join(f"{line}\n" for line in written), encoding="utf-8")
    return scratch


def _existing(home: Home, name: str, written: str) -> Path:
    path = home.root / in_user_home(f"environment {name}", written)
    if not path.is_file():
        raise ConfigError(f"environment {name}: there is no file {path}", "a list of requirements may be written, too")
    return path


def _digest(home: Home, name: str, environment: Environment) -> str:
    """Of all that decides what is in it."""
    data = environment.model_dump()
    for key in ("requirements", "constraints"):
        if isinstance(data[key], str):
            data[key] = _existing(home, name, data[key]).read_text(encoding="utf-8", errors="replace")
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()
