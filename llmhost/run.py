"""The only module that imports subprocess: run a program to its end, follow its output, or leave it running."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from llmhost.errors import CommandError, CommandTimeout


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
    given: str | Path | None = None,
) -> Completed:
    """Run a program and return its output; ``env`` is added to ours, ``timeout`` is in seconds.

    ``given`` is what it reads from its standard input: a text, or a file. Raises CommandTimeout when it takes too long,
    CommandError when it cannot be started or (with ``check``) ends with an error.
    """
    words = tuple(os.fspath(a) for a in argv)
    with _source(given) as stdin:
        child = _start(words, env, cwd, stderr=subprocess.PIPE, stdin=stdin)
    try:
        stdout, stderr = child.communicate(given if isinstance(given, str) else None, timeout=timeout)
    except subprocess.TimeoutExpired as e:
        raise CommandTimeout(
            f"{words[0]} did not end within {timeout:.0f} s", f"run it by hand: {shlex.join(words)}"
        ) from e
    finally:
        with child:  # closes its pipes
            child.kill()  # does nothing when it has ended
    result = Completed(words, child.returncode, stdout, stderr)
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
    words = tuple(os.fspath(a) for a in argv)
    child = _start(words, env, cwd, stderr=subprocess.STDOUT, own_group=True)
    try:
        for line in child.stdout or ():
            on_line(line.rstrip("\n"))
        return child.wait()
    finally:
        _end_group(child)


def detach(argv: Sequence[str | os.PathLike[str]], errors: Path, timeout: float) -> int:
    """Run a program that goes on in the background by itself; returns the exit status of what it leaves.

    What it says on stderr goes to a file: what goes on could hold a pipe open. Raises CommandTimeout after ``timeout``
    seconds, CommandError when it cannot be started.
    """
    words = tuple(os.fspath(a) for a in argv)
    try:
        with open(errors, "wb") as file, _interrupts_held():
            child = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=file, start_new_session=True
            )
    except OSError as e:
        raise _not_started(words, e) from e
    try:
        return child.wait(timeout)
    except subprocess.TimeoutExpired as e:
        raise CommandTimeout(f"{words[0]} did not end within {timeout:.0f} s", "") from e
    finally:
        child.kill()  # does nothing when it has ended
        child.wait()


class Talk:
    """A program whose lines are handed over as they come, and which another thread may end.

    Its standard input stays open for as long as it runs: it can tell by that whether somebody still listens.
    """

    def __init__(self, argv: Sequence[str | os.PathLike[str]]) -> None:
        """Start it, in a process group of its own. Raises CommandError when it cannot be started."""
        words = tuple(os.fspath(a) for a in argv)
        self._child = _start(words, None, None, stderr=subprocess.PIPE, own_group=True, stdin=subprocess.PIPE)

    def follow(self, on_line: Callable[[str], None], on_error: Callable[[str], None]) -> int:
        """Hand over what it says on stdout and, from another thread, on stderr; returns the exit status."""
        errors = threading.Thread(target=_hand_over, args=(self._child.stderr, on_error), daemon=True)
        errors.start()
        try:
            _hand_over(self._child.stdout, on_line)
            errors.join()
            return self._child.wait()
        finally:
            _end_group(self._child)

    def end(self) -> None:
        """Ask it to end; `follow` returns then."""
        if self._child.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._child.pid, signal.SIGTERM)


def _hand_over(lines: Iterable[str] | None, to: Callable[[str], None]) -> None:
    for line in lines or ():
        to(line.rstrip("\n"))


@contextmanager
def while_running(argv: Sequence[str | os.PathLike[str]], output: Path) -> Iterator[Callable[[], int | None]]:
    """Run a program for as long as the block takes, its output added to a file; it gets SIGTERM then, and time to end.

    Yields a function that returns the exit status once it has ended by itself. Raises CommandError when it cannot be
    started.
    """
    words = tuple(os.fspath(a) for a in argv)
    try:
        with open(output, "ab") as file, _interrupts_held():
            child = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
            )
    except OSError as e:
        raise _not_started(words, e) from e
    with child:
        try:
            yield child.poll
        finally:
            if child.poll() is None:
                child.terminate()
                child.wait()


def _not_started(words: tuple[str, ...], error: OSError) -> CommandError:
    return CommandError(f"cannot run {words[0]}: {error.strerror}", f"the command was: {shlex.join(words)}")


@contextmanager
def _source(given: str | Path | None) -> Iterator[int | BinaryIO]:
    """What a program gets as its standard input."""
    if isinstance(given, Path):
        with open(given, "rb") as file:
            yield file
    else:
        yield subprocess.DEVNULL if given is None else subprocess.PIPE


def _start(
    words: tuple[str, ...],
    env: Mapping[str, str] | None,
    cwd: Path | None,
    *,
    stderr: int,
    own_group: bool = False,
    stdin: int | BinaryIO = subprocess.DEVNULL,
) -> subprocess.Popen[str]:
    child = None
    try:
        with _interrupts_held():
            child = subprocess.Popen(
                words, env=_environment(env), cwd=cwd, stdin=stdin, stdout=subprocess.PIPE,
                stderr=stderr, text=True, errors="replace", start_new_session=own_group,
            )  # fmt: skip
    except OSError as e:
        raise _not_started(words, e) from e
    except KeyboardInterrupt:
        if child is not None:
            with child:
                child.kill()
        raise
    return child


def _end_group(child: subprocess.Popen[str]) -> None:
    """Make sure that the process group of a child is gone."""
    with child:  # closes its pipes
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGTERM)
            try:
                child.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(child.pid, signal.SIGKILL)


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Hold Ctrl-C and SIGTERM back for a moment: a child that is just being made would be left to itself by it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    held: list[int] = []
    former = {
        number: signal.signal(number, lambda number, _: held.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
        if held:
            signal.raise_signal(held[0])
