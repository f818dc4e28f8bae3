"""Compiles flash-attn in a directory that stays, so that what an interrupted build has compiled is used by the next."""

from __future__ import annotations

import os
import re
import signal
import time
from collections import deque
from pathlib import Path

from llmhost.env.flash_attn.causes import find_cause
from llmhost.env.flash_attn.plan import BuildPlan
from llmhost.env.flash_attn.source import unpack
from llmhost.env.uv import Uv
from llmhost.errors import EngineError
from llmhost.run import follow

COMPILE = "compile flash-attn"
NINJA = re.compile(r"\[(\d+)/(\d+)\] ")
KEPT_LINES = 4000
"""The end of the output that is searched for errors; a failing object of many jobs may stand well above the end."""


def compile_wheel(plan: BuildPlan, python: Path, archive: Path, folder: Path, uv: Uv) -> Path:
    """Build the wheel; ``folder`` keeps the source tree and its objects until the caller removes it.

    Raises EngineError with the compiler's own line, the likely cause, and the path of the log.
    """
    tree = unpack(archive, folder)
    interpreter = _stable_interpreter(folder, python)
    compiled = len(list(tree.glob("build/temp*/**/*.o")))
    uv.progress.started(COMPILE)
    if compiled:
        uv.progress.note(f"{compiled} objects are compiled already")
    reader = _NinjaReader(uv, compiled)
    out = folder / "out"
    argv = [
        uv.binary, "build", "--wheel", "--no-build-isolation", "--python", str(interpreter),
        "--out-dir", str(out), "--color", "never", "--no-config", str(tree),
    ]  # fmt: skip
    uv.log.write(f"$ {' '.join(f'{k}={v}' for k, v in plan.environment.items())} {' '.join(argv)}")
    began = time.monotonic()
    status = follow(argv, reader.line, env=_environment(plan, interpreter), cwd=folder)
    if status != 0:
        raise _failure(reader, status, plan, uv)
    wheels = list(out.glob("*.whl"))
    if len(wheels) != 1:
        raise EngineError("the build of flash-attn left no wheel", f"the log is {uv.log.path}")
    uv.progress.finished(COMPILE, f"{reader.total or 'no'} objects, {(time.monotonic() - began) / 60:.1f} min")
    return wheels[0]


def _stable_interpreter(folder: Path, python: Path) -> Path:
    """The engine by a path that is the same for the next attempt: ninja compiles anew what another command compiled."""
    link, prefix = folder / "engine", python.parent.parent
    if not link.is_symlink() or os.readlink(link) != str(prefix):
        link.unlink(missing_ok=True)
        link.symlink_to(prefix)
    return link / "bin" / python.name


def _environment(plan: BuildPlan, interpreter: Path) -> dict[str, str]:
    """The engine's programs (ninja) and the toolkit's come before everybody else's."""
    path = (plan.environment["PATH"], str(interpreter.parent), os.environ.get("PATH", os.defpath))
    more = (
        {"CPATH": f"{cpath}:{os.environ.get('CPATH', '')}".rstrip(":")}
        if (cpath := plan.environment.get("CPATH"))
        else {}
    )
    return {**plan.environment, **more, "PATH": ":".join(path), "PYTHONUNBUFFERED": "1"}


class _NinjaReader:
    """Takes the lines of a build: all go to the log, ninja's counter to the progress."""

    def __init__(self, uv: Uv, compiled: int) -> None:
        self.uv = uv
        self.compiled = compiled
        """Objects that ninja does not count because they were there."""
        self.total = 0
        self.tail: deque[str] = deque(maxlen=KEPT_LINES)

    def line(self, text: str) -> None:
        self.uv.log.write(text)
        if found := NINJA.match(text.lstrip()):
            done, todo = int(found[1]), int(found[2])
            self.total = todo + self.compiled
            self.uv.progress.advanced(COMPILE, done + self.compiled, self.total, "objects")
            return  # the command behind the counter holds flags, and no errors
        self.tail.append(text)


def _failure(reader: _NinjaReader, status: int, plan: BuildPlan, uv: Uv) -> EngineError:
    kept = "what is compiled is kept for the next attempt"
    lines = [*reader.tail]
    if status < 0:
        name = signal.Signals(-status).name
        lines.append(f"the build was ended by signal {-status} ({name})")
    cause = find_cause(lines, plan.jobs)
    if cause is None:
        last = next((line.strip() for line in reversed(lines) if line.strip()), f"it ended with status {status}")
        return EngineError(f"flash-attn cannot be compiled: {last}", f"the log is {uv.log.path}; {kept}")
    return EngineError(
        f"flash-attn cannot be compiled ({cause.what}): {cause.line}", f"{cause.remedy}; the log is {uv.log.path}"
    )
