"""The only module that imports subprocess: run a program to its end, follow its output, or leave it running."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from llmhost.errors import CommandError


@dataclass(frozen=True)
class Completed:
    """What a program printed and how it ended; ``returncode`` is negative for a signal, as in subprocess."""

    argv: tuple[str, ...]
    returncode: int
    stdout: str
    stderr: str


def _environment(extra: Mapping[str, str] | None) -> dict[str, str]:
    return {**os.environ, **(extra or {})}


def capture(
    argv: Sequence[str | os.PathLike[str]],
    *,
    env: Mapping[str, str] | None = None,
    timeout: float = 60,
    check: bool = True,
    cwd: Path | None = None,
) -> Completed:
    """Run a program and return its output; ``env`` is added to ours, ``timeout`` is in seconds.

    Raises CommandError when it cannot be started, takes too long, or (with ``check``) ends with an error.
    """
    words = tuple(os.fspath(a) for a in argv)
    try:
        done = subprocess.run(
            words, env=_environment(env), timeout=timeout, cwd=cwd, capture_output=True, stdin=subprocess.DEVNULL,
            text=True, errors="replace", check=False,
        )  # fmt: skip
    except OSError as e:
        raise CommandError(f"cannot run {words[0]}: {e.strerror}", f"the command was: {shlex.join(words)}") from e
    except subprocess.TimeoutExpired as e:
        raise CommandError(
            f"{words[0]} did not end within {timeout:.0f} s", f"run it by hand: {shlex.join(words)}"
        ) from e
    result = Completed(words, done.returncode, done.stdout, done.stderr)
    if check and result.returncode != 0:
        last = (result.stderr.strip() or result.stdout.strip() or "no output").splitlines()[-1]
        raise CommandError(f"{words[0]} failed ({result.returncode}): {last}", f"run it by hand: {shlex.join(words)}")
    return result


def follow(
    argv: Sequence[str | os.PathLike[str]],
    on_line: Callable[[str], None],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> int:
    """Run a program, hand over each line (stdout and stderr together) as it comes, return the exit status.

    The program gets a process group of its own and is ended with it when we are interrupted.
    """
    words = [os.fspath(a) for a in argv]
    try:
        child = subprocess.Popen(
            words, env=_environment(env), cwd=cwd, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, errors="replace", start_new_session=True,
        )  # fmt: skip
    except OSError as e:
        raise CommandError(f"cannot run {words[0]}: {e.strerror}", f"the command was: {shlex.join(words)}") from e
    assert child.stdout is not None
    try:
        for line in child.stdout:
            on_line(line.rstrip("\n"))
        return child.wait()
    finally:
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGTERM)
            try:
                child.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()
        child.stdout.close()
