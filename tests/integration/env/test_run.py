"""Running programs: what comes back, and that none is left behind."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from llmhost.errors import CommandError
from llmhost.run import capture, follow

pytestmark = pytest.mark.integration


def children() -> list[psutil.Process]:
    return psutil.Process().children(recursive=True)


def test_capture() -> None:
    done = capture([sys.executable, "-c", "import sys; print('out'); print('err', file=sys.stderr)"])
    assert (done.returncode, done.stdout, done.stderr) == (0, "out\n", "err\n")


def test_capture_of_a_failure() -> None:
    command = [sys.executable, "-c", "import sys; sys.exit('it broke')"]
    with pytest.raises(CommandError, match="it broke"):
        capture(command)
    assert capture(command, check=False).returncode == 1


def test_capture_of_something_that_takes_too_long() -> None:
    with pytest.raises(CommandError, match="did not end within"):
        capture([sys.executable, "-c", "import time; time.sleep(60)"], timeout=0.2)
    assert children() == []


@pytest.mark.parametrize("run", [capture, lambda argv: follow(argv, print)])
def test_no_such_program(run) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(CommandError, match="cannot run /no/such/program"):
        run(["/no/such/program"])


def test_follow(tmp_path: Path) -> None:
    lines: list[str] = []
    code = (
        "import os, sys; print(os.getcwd(), os.environ['X'], flush=True); print('é\\n', file=sys.stderr); sys.exit(3)"
    )
    assert follow([sys.executable, "-c", code], lines.append, env={"X": "1"}, cwd=tmp_path) == 3
    assert lines == [f"{tmp_path} 1", "é", ""]


def test_an_error_while_following_ends_the_program() -> None:
    def refuse(line: str) -> None:
        raise BrokenPipeError(line)

    with pytest.raises(BrokenPipeError):
        follow([sys.executable, "-c", "import time; print('x', flush=True); time.sleep(60)"], refuse)
    assert children() == []


@pytest.mark.parametrize("run", [capture, lambda argv: follow(argv, print)])
def test_interrupted(run) -> None:  # type: ignore[no-untyped-def]
    """Ctrl-C reaches us, not the program: it is ended with its children."""
    thread = threading.Thread(target=_interrupt_when_running)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        run([sys.executable, "-c", "import time; time.sleep(60)"])
    thread.join()
    assert children() == []


def _interrupt_when_running() -> None:
    deadline = time.monotonic() + 300
    while not children() and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGINT)
