"""Environments of conda, made by conda, mamba or micromamba, whichever is there."""

from __future__ import annotations

import re
from pathlib import Path

from llmhost.config import Engine
from llmhost.env.log import SetupLog
from llmhost.env.releases import Release, dotted
from llmhost.errors import CommandError, EngineError
from llmhost.facts import MachineFacts
from llmhost.run import capture, follow

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
    command = [tool, "create", "--yes", "--prefix", str(build), *_channels(tool, engine), *_wanted(engine, release)]
    log.write(f"$ {' '.join(command)}")
    lines: list[str] = []

    def take(line: str) -> None:
        log.write(line)
        lines.append(line)

    try:
        status = follow(command, take, env=ENVIRONMENT, cwd=build.parent)
    except CommandError as e:
        raise EngineError(f"conda cannot be used: {e.message}", "see engine.kind in llmhost.yaml") from e
    if status != 0:
        raise _refusal(command, lines, status, log)


ENVIRONMENT = {"PYTHONDONTWRITEBYTECODE": ""}


def _wanted(engine: Engine, release: Release) -> list[str]:
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


def _channels(tool: str, engine: Engine) -> list[str]:
    """Those of llmhost.yaml and no others, else conda's own, else conda-forge (micromamba has none by itself)."""
    if engine.channels:
        return ["--override-channels", *(word for channel in engine.channels for word in ("--channel", channel))]
    shown = capture(
        [tool, "config", "list"] if _is_micromamba(tool) else [tool, "config", "--show", "channels"], check=False
    )
    has_some = re.search(r"^\s*-\s+\S", shown.stdout.partition("channels:")[2].split("\n\n")[0], re.MULTILINE)
    return [] if has_some else ["--channel", FALLBACK]


def _is_micromamba(tool: str) -> bool:
    return Path(tool).name.startswith("micromamba")


def _refusal(command: list[str], lines: list[str], status: int, log: SetupLog) -> EngineError:
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
