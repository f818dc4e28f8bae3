"""Words for how an engine ended: its exit status, and the line of its output that says why."""

from __future__ import annotations

import os
import re
import signal

ERROR_CHARACTERS = 300
"""Longest error in a state file."""

_PREFIX = re.compile(r"^(?:\([\w-]+ pid=\d+\) ?)?(?:(?:DEBUG|INFO|WARNING|ERROR|CRITICAL) [\d-]+ [\d:.]+ \[[^]]*\] ?)?")
"""What vLLM puts before each line: ``(EngineCore pid=7) ERROR 01-31 12:00:00 [core.py:1] ``."""
_ERROR = re.compile(r"(?:[\w.]*(?:Error|Exception|Interrupt|Exit)|[\w./-]+: error|\w*(?:error|fatal|panic)): \S", re.I)
_POINTER = re.compile(r"see (?:the )?(?:root cause|stack trace|error)s? \(?above|see stack trace", re.I)
_PYDANTIC = re.compile(r"validation errors? for \w+$")
_GUARD = re.compile(r"(?:[\d-]{10} [\d:]{8} )?\[guard\] ")
"""What the guard itself said (`llmhost.supervise.guarding.processes.say`)."""
_CONTROL = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?|[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def plain(text: str) -> str:
    """One line without terminal sequences and control characters, at most `ERROR_CHARACTERS` long."""
    return " ".join(_CONTROL.sub(" ", text).split())[:ERROR_CHARACTERS]


def error_lines(log: str) -> list[str]:
    """The lines of an engine's output that look like errors, each as one plain line."""
    lines = _lines(log)
    return [_whole(lines, n) for n, line in enumerate(lines) if _ERROR.match(line)]


def points_elsewhere(line: str) -> bool:
    """Whether an error only says that another one tells more."""
    return bool(_POINTER.search(line))


def last_words(log: str) -> str:
    """The line of an engine's output that says best why it ended, '' when there is none.

    That is the last line that looks like an error, unless it only points at another one; else the last line.
    """
    errors = error_lines(log)
    telling = [line for line in errors if not points_elsewhere(line)] or errors
    if telling:
        return telling[-1]
    lines = _lines(log)
    return plain(lines[-1]) if lines else ""


def _lines(log: str) -> list[str]:
    lines = [_PREFIX.sub("", _CONTROL.sub("", line)) for line in re.split(r"\r?\n|\r", log)]
    return [line for line in lines if line.strip() and not _GUARD.match(line)]


def _whole(lines: list[str], n: int) -> str:
    chosen = lines[n].rstrip()
    if _PYDANTIC.search(chosen):  # it says what is wrong in its next line
        chosen = ": ".join([chosen, *(line.strip() for line in lines[n + 1 : n + 2])])
    return plain(chosen)


def outcome(status: int) -> str:
    """A wait status in words."""
    code = os.waitstatus_to_exitcode(status)
    return f"exited with status {code}" if code >= 0 else f"was killed by {signal_name(-code)}"


def signal_name(number: int) -> str:
    """SIGKILL for 9; real-time signals have no name."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
