"""Which wheels a machine needs, and fetching them: uv resolves for it, pip downloads for it.

Both run with the user's own configuration of indexes, proxies and certificates (`llmhost.env.pip_config`).
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from llmhost.bundle.target import Target, minor, without_local
from llmhost.env.pip_config import mask
from llmhost.env.releases import Release
from llmhost.env.uv import Uv, UvFailure
from llmhost.errors import BundleError, CommandError
from llmhost.facts import Interpreter
from llmhost.run import capture, follow

RESOLVE = "choose packages"
DOWNLOAD = "download wheels"
PIN = re.compile(r"([A-Za-z0-9._-]+)==(\S+)")
FROM = re.compile(r"\s+# from (https?://\S+)")


@dataclass(frozen=True)
class Pin:
    """One package of a resolution; ``index`` is where it is, as far as uv says."""

    name: str
    version: str
    index: str = ""


def resolve(
    requirements: Sequence[str],
    python: Interpreter,
    target: Target,
    uv: Uv,
    *,
    prefer: Mapping[str, str],
    exclude: Sequence[str] = (),
    torch: Release | None = None,
) -> tuple[Pin, ...]:
    """The packages that meet the requirements on the target, ``prefer``red versions where they fit.

    Raises EngineError naming what has no wheel for that Python and platform.
    """
    work = uv.cwd
    (work / "requirements.in").write_text("".join(f"{line}\n" for line in requirements))
    (work / "excludes.txt").write_text("".join(f"{name}\n" for name in exclude))
    output = work / "requirements.txt"
    command = [
        "pip", "compile", "requirements.in", "--output-file", output.name, "--excludes", "excludes.txt",
        "--python-version", minor(python), "--python-platform", target.uv_platform, "--no-build", "--no-header",
        "--no-annotate", "--emit-index-annotation", "--no-python-downloads",
    ]  # fmt: skip

    def attempt(uv: Uv, *more: str) -> UvFailure | None:
        # A former output is what uv prefers.
        known = sorted((n, v) for n, v in prefer.items() if v[:1].isdigit())
        output.write_text("".join(f"{name}=={version}\n" for name, version in known))
        return uv.run([*command, *more])

    backend = ["--torch-backend", torch.torch_backend] if torch and torch.torch_backend == "cpu" else []
    failure = attempt(uv)
    if failure and failure.lacks("torch") and backend:
        failure = attempt(uv, *backend)
    if failure and "UV_INDEX" in uv.settings.env:
        # Of a version that an extra index has, uv sees the files of that index alone, and it may not have them all.
        failure = attempt(without_extra_indexes(uv)) and failure
    if failure:
        what = f"find wheels of {', '.join(requirements[:3])}{' …' if len(requirements) > 3 else ''}"
        raise failure.as_error(f"{what} for Python {minor(python)} on {target.uv_platform}", uv.log)
    return read_pins(output.read_text())


def without_extra_indexes(uv: Uv) -> Uv:
    """The same uv with the main index and find-links only."""
    env = {name: value for name, value in uv.settings.env.items() if name != "UV_INDEX"}
    return replace(uv, settings=replace(uv.settings, env=env))


def read_pins(text: str) -> tuple[Pin, ...]:
    """The output of `uv pip compile --emit-index-annotation`."""
    pins: list[Pin] = []
    for line in text.splitlines():
        if found := PIN.match(line):
            pins.append(Pin(found[1], found[2]))
        elif pins and (found := FROM.match(line)):
            pins[-1] = replace(pins[-1], index=found[1])
    return tuple(pins)


def missing(pins: Sequence[Pin], there: Mapping[str, str]) -> tuple[Pin, ...]:
    """Those that the target does not have in this version (builds of a version count as the same)."""
    return tuple(p for p in pins if without_local(there.get(p.name, "")) != without_local(p.version))


def find_pip(uv: Uv) -> list[str]:
    """A command that is pip: of this interpreter, on PATH, or fetched by uv. Raises BundleError without one."""
    others = [[path] for name in ("pip3", "pip") if (path := shutil.which(name))]
    for command in ([sys.executable, "-m", "pip"], *others, [uv.binary, "tool", "run", "pip"]):
        try:
            capture([*command, "--version"], env={**uv.settings.env, **uv.env}, timeout=120)
        except CommandError:
            continue
        return command
    raise BundleError("there is no pip to download wheels with", "install it: `python3 -m ensurepip`, or your packages")


def download(pins: Sequence[Pin], python: Interpreter, target: Target, uv: Uv, directory: Path) -> tuple[Path, ...]:
    """Fetch the wheels of these packages for the target's Python and platform.

    Raises BundleError with pip's own words when one cannot be had.
    """
    if not pins:
        return ()
    uv.progress.started(DOWNLOAD)
    listing = uv.cwd / "download.txt"
    listing.write_text("".join(f"{pin.name}=={pin.version}\n" for pin in pins))
    # A local part (+cpu) says that it comes from an index that the user's configuration need not have.
    extra = sorted({p.index for p in pins if p.index and "+" in p.version})
    argv = [
        *find_pip(uv), "download", "--no-deps", "--only-binary=:all:", "--disable-pip-version-check", "--no-input",
        "--progress-bar", "off", "--implementation", "cp", "--python-version", minor(python), "--dest", str(directory),
        *(word for tag in target.pip_platforms for word in ("--platform", tag)), "--requirement", str(listing),
    ]  # fmt: skip
    reader = _PipReader(uv, len(pins))
    env = {"PIP_EXTRA_INDEX_URL": _joined_indexes(uv, extra)} if extra else {}
    before = set(directory.glob("*.whl"))
    uv.log.write(f"$ {mask(' '.join(argv))}")
    if follow(argv, reader.line, env=env, cwd=uv.cwd):
        raise reader.error(uv)
    found = tuple(sorted(set(directory.glob("*.whl")) - before))
    uv.progress.finished(DOWNLOAD, f"{len(pins)} wheels, {sum(f.stat().st_size for f in found) / 1e6:.0f} MB")
    return tuple(sorted(directory / f.name for f in found))


def _joined_indexes(uv: Uv, more: Sequence[str]) -> str:
    """The user's extra indexes and those that uv found packages at."""
    return " ".join((*os.environ.get("PIP_EXTRA_INDEX_URL", uv.settings.env.get("UV_INDEX", "")).split(), *more))


class _PipReader:
    """Counts packages as pip comes to them, and keeps its errors."""

    def __init__(self, uv: Uv, total: int) -> None:
        self.uv, self.total = uv, total
        self.begun = 0
        self.errors: list[str] = []

    def line(self, text: str) -> None:
        text = mask(text)
        self.uv.log.write(text)
        if text.startswith(("Collecting ", "Processing ")):
            self.begun += 1
            self.uv.progress.advanced(DOWNLOAD, self.begun, self.total, "packages")
        elif text.startswith("ERROR: "):
            self.errors.append(text.removeprefix("ERROR: "))

    def error(self, uv: Uv) -> BundleError:
        text = self.errors[-1] if self.errors else "pip failed"
        hint = "check index, proxy and certificates in pip's configuration"
        if "No space left" in " ".join(self.errors):
            hint = "free some disk space, or set TMPDIR and PIP_CACHE_DIR elsewhere"
        elif "No matching distribution" in text:
            hint = (
                "no index has a wheel of it for that machine, or what answers is a page of a proxy that wants a login:"
                " check index-url, extra-index-url and proxy in pip's configuration"
            )
        elif "hash" in text.lower():
            hint = "the index or a cache serves an altered or damaged file: ask its owner, or `pip cache purge`"
        return BundleError(f"cannot download wheels: {text[:300]}", f"{hint}; the log is {uv.log.path}")
