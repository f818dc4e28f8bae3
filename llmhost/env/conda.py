"""Environments of conda, made by conda, mamba or micromamba, whichever is there."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from llmhost.config import Engine
from llmhost.env.log import SetupLog
from llmhost.env.pip_config import mask
from llmhost.env.releases import Release, dotted
from llmhost.errors import CommandError, EngineError
from llmhost.facts import MachineFacts
from llmhost.probe.programs import conda_channels
from llmhost.run import follow

PREFERRED = ("mamba", "conda", "micromamba")
"""They take the same commands; mamba solves faster than an old conda."""
COMPILER = ("cuda-nvcc", "cuda-cudart-dev", "cuda-cccl", "libcublas-dev", "libcusparse-dev", "libcusolver-dev")
"""What it takes to compile extensions of torch: nvcc, and the headers that torch's own headers include."""
FALLBACK = "conda-forge"


def find_tool(facts: MachineFacts) -> str:
    """The path of conda, mamba or micromamba. Raises EngineError when none is on the machine."""
    found = {program.name: program.path for program in facts.conda}
    for name in PREFERRED:
        if name in found:
            return found[name]
    raise EngineError(
        "engine.kind is conda, but there is no conda, mamba or micromamba on this machine",
        "install one (Miniforge, micromamba) and put it on PATH, or write engine.kind: venv in llmhost.yaml",
    )


def create(tool: str, build: Path, engine: Engine, release: Release, log: SetupLog) -> None:
    """Make the environment at ``build``, with the asked Python and, where wanted, the CUDA compiler.

    Raises EngineError when it cannot be solved or installed.
    """
    lines: list[str] = []

    def take(line: str) -> None:
        lines.append(mask(line))
        log.write(lines[-1])

    try:
        with _channels(tool, engine, build.parent) as (channels, env):
            command = [tool, "create", "--yes", "--prefix", str(build), *channels, *packages_of(engine, release)]
            log.write(f"$ {mask(' '.join(command))}")
            status = follow(command, take, env={**ENVIRONMENT, **env}, cwd=build.parent)
    except CommandError as e:
        raise EngineError(f"conda cannot be used: {e.message}", "see engine.kind in llmhost.yaml") from e
    if status != 0:
        raise _refusal(command, lines, status, log)


ENVIRONMENT = {"PYTHONDONTWRITEBYTECODE": ""}


def packages_of(engine: Engine, release: Release) -> list[str]:
    asked = engine.python or dotted(min(release.python[1], (3, 12)))
    packages = [f"python={asked}.*" if asked.count(".") == 1 else f"python={asked}", "pip"]
    if engine.cuda_compiler:
        if release.cuda is None:
            raise EngineError(
                "engine.cuda_compiler is true, but the engine computes on the CPU",
                "leave it out, or write engine.device: cuda in llmhost.yaml",
            )
        packages += [f"cuda-version={dotted(release.cuda)}", *COMPILER]
    return packages


@contextmanager
def _channels(tool: str, engine: Engine, place: Path) -> Iterator[tuple[list[str], dict[str, str]]]:
    """Arguments and environment for the channels: those of llmhost.yaml and no others, else the tool's own.

    conda-forge where it has none by itself (micromamba). What holds a password or token gets a name in a
    configuration that only its user can read: arguments are visible to every user of the machine.
    """
    if not engine.channels:
        yield ([] if conda_channels(tool) else ["--channel", FALLBACK]), {}
        return
    secret = {f"llmhost-{i}": channel for i, channel in enumerate(engine.channels) if mask(channel) != channel}
    names = {channel: name for name, channel in secret.items()}
    words = [word for channel in engine.channels for word in ("--channel", names.get(channel, channel))]
    with _condarc(tool, secret, place) as env:
        yield ["--override-channels", *words], env


@contextmanager
def _condarc(tool: str, named: Mapping[str, str], place: Path) -> Iterator[dict[str, str]]:
    """A configuration for one call with channels by name, on top of what the tool would read without it."""
    if not named:
        yield {}
        return
    folder = Path(tempfile.mkdtemp(prefix=".conda.", dir=place))
    try:
        own = _own_settings(tool)
        multi = {**(own.get("custom_multichannels") or {}), **{name: [channel] for name, channel in named.items()}}
        file = folder / ".condarc"  # conda takes no other names
        with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as out:
            YAML(typ="safe", pure=True).dump({**own, "custom_multichannels": multi}, out)
        yield {"CONDARC": str(file)} if _is_conda(tool) else {"CONDARC": str(file), "MAMBARC": str(file)}
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _own_settings(tool: str) -> dict[str, Any]:
    """What the user's files say that would not be read beside ours; of two the nearer one counts, lists are joined.

    To conda CONDARC is one file more, to mamba 2 and micromamba MAMBARC or CONDARC replaces all of them
    (``Configuration::compute_default_rc_sources`` of libmamba).
    """
    variables = ("CONDARC",) if _is_conda(tool) else ("MAMBARC", "CONDARC")
    named = [Path(os.environ[name]) for name in variables if os.environ.get(name)]
    home = Path(os.environ.get("HOME") or "/nonexistent")
    root = [Path(os.environ["MAMBA_ROOT_PREFIX"])] if os.environ.get("MAMBA_ROOT_PREFIX") else []
    usual = [f / n for f in (home, home / ".conda", *root, Path("/etc/conda")) for n in (".mambarc", ".condarc")]
    files = named[:1] or ([] if _is_conda(tool) else usual)
    merged: dict[str, Any] = {}
    for file in files:
        for key, value in _settings(file).items():
            merged[key] = _joined(merged[key], value) if key in merged else value
    return merged


def _settings(file: Path) -> dict[str, Any]:
    try:
        data = YAML(typ="safe", pure=True).load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, YAMLError):
        return {}
    return dict(data) if isinstance(data, Mapping) else {}


def _joined(nearer: Any, farther: Any) -> Any:
    if isinstance(nearer, list) and isinstance(farther, list):
        return [*nearer, *(item for item in farther if item not in nearer)]
    if isinstance(nearer, Mapping) and isinstance(farther, Mapping):
        return {**farther, **nearer}
    return nearer


def _is_conda(tool: str) -> bool:
    return Path(tool).name == "conda"


def _refusal(command: Sequence[str], lines: Sequence[str], status: int, log: SetupLog) -> EngineError:
    text = "\n".join(lines)
    for pattern, words, remedy in REMEDIES:
        if found := re.search(pattern, text, re.IGNORECASE | re.DOTALL):
            detail = " ".join(next((group for group in found.groups() if group), "").split())
            reason = f"{words}{f': {detail[:200]}' if detail else ''}"
            return EngineError(f"conda cannot make the environment: {reason}", f"{remedy}; the log is {log.path}")
    last = next((line.strip() for line in reversed(lines) if line.strip()), f"it ended with status {status}")
    name = Path(command[0]).name
    return EngineError(f"{name} cannot make the environment: {last[:300]}", f"see what it says; the log is {log.path}")


REMEDIES: tuple[tuple[str, str, str], ...] = (
    (
        r"no space left on device|NoSpaceLeftError",
        "the disk is full",
        "free some disk space, or put the home elsewhere with --home",
    ),
    (
        r"PackagesNotFoundError:[^-]*((?:-\s+\S+\s*)+)|nothing provides ([^\n]+)|"
        r"([^\n]+ does not exist[^\n]*)|no candidates were found for ([^\n]+)",
        "no channel has what is wanted",
        "check engine.python and engine.channels in llmhost.yaml, and that the channel's mirror is complete",
    ),
    (
        r"(?:LibMambaUnsatisfiable|Unsatisfiable|ResolvePackageNotFound)\w*:?\s*([^\n]*\n?[^\n]*)|"
        r"(could not solve[^\n]*)|(cannot solve[^\n]*)",
        "the packages do not fit together",
        "ask for another engine.python, or leave engine.cuda_compiler out",
    ),
    (
        r"(CondaHTTPError[^\n]*)|(Connection\w*Error[^\n]*)|(could not resolve host[^\n]*)|(download error[^\n]*)|"
        r"(404 Not Found[^\n]*)",
        "a channel cannot be reached",
        "check the network, conda's proxy_servers, and engine.channels in llmhost.yaml",
    ),
    (
        r"(JSONDecodeError[^\n]*|invalid repodata[^\n]*|not valid json[^\n]*)",
        "a channel answers with something that is no index, perhaps the page of a proxy that wants a login",
        "check conda's proxy_servers, and engine.channels in llmhost.yaml",
    ),
    (
        r"(ChecksumMismatchError[^\n]*|hash mismatch[^\n]*|SafetyError[^\n]*)",
        "a package is damaged or altered",
        "run `conda clean --packages`, then again; ask the owner of the channel if it stays so",
    ),
)
"""Patterns of what conda says -> what it means and what to do; the first that matches counts."""
