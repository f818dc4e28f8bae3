"""What a log line says about itself: when, and how serious. Pure; the one place that knows every format."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta
from typing import NamedTuple

LEVELS = ("debug", "info", "warning", "error", "critical")

_NAMES = {
    "TRAC": "debug", "TRACE": "debug", "BLAT": "debug", "DEBG": "debug", "DEBUG": "debug",
    "INFO": "info", "WARN": "warning", "WARNING": "warning", "ERRO": "error", "ERROR": "error",
    "CRIT": "critical", "CRITICAL": "critical", "FATAL": "critical",
}  # fmt: skip

_DATED = re.compile(
    r"(?P<when>\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d)(?:[.,](?P<fraction>\d{1,6})\d*)?(?P<zone>Z|[+-]\d\d:?\d\d)?"
    r"(?: \[?(?P<level>[A-Za-z]+)\b)?"
)
"""supervisord, Envoy, the guard, and what else writes a whole date."""
_VLLM = re.compile(
    r"(?:\([^()]* pid=\d+\) ?)?(?P<level>DEBUG|INFO|WARNING|ERROR|CRITICAL) "
    r"(?P<when>\d\d-\d\d \d\d:\d\d:\d\d)(?:[.,](?P<fraction>\d{1,6})\d*)?"
)
"""vLLM leaves out the year."""
_UVICORN = re.compile(r"(?:\([^()]* pid=\d+\) ?)?(?P<level>DEBUG|INFO|WARNING|ERROR|CRITICAL):? ")
_PYTHON_ERROR = re.compile(
    r"(?:\([^()]* pid=\d+\) ?)?(?:Traceback \(most recent call last\)|[\w.]*(?:Error|Exception): )"
)
_ACCESS = '{"'


class Line(NamedTuple):
    """A line of a program's log; ``time`` is unix time, None when neither it nor a line before it has one."""

    program: str
    time: float | None
    level: str
    text: str

    def to_dict(self) -> dict[str, object]:
        """What ``llmhost logs --json`` prints; a line of the access log comes with its fields."""
        stamp = (
            None if self.time is None else datetime.fromtimestamp(self.time).astimezone().isoformat("T", "milliseconds")
        )
        request = access_entry(self.text)
        said: dict[str, object] = {"text": self.text} if request is None else {"request": request}
        return {"time": stamp, "program": self.program, "level": self.level, **said}


def read_lines(program: str, texts: Iterable[str], now: datetime, before: Line | None = None) -> Iterator[Line]:
    """Lines with their time and level; what has none of its own (a traceback, a wrapped line) has those before it.

    ``now`` is local time and finds the year of lines without one; ``before`` is the line that came last.
    """
    time = before.time if before else None
    level = before.level if before else "info"
    for text in texts:
        stamp, own = describe(text, now)
        time = stamp if stamp is not None else time
        level = own or (level if stamp is None else "info")
        yield Line(program, time, level, text)


def describe(text: str, now: datetime) -> tuple[float | None, str | None]:
    """Unix time and level of a line, as far as it says so itself."""
    request = access_entry(text)
    if request is not None:
        return _access(request)
    if found := _DATED.match(text):
        return _time(found, found["when"]), _NAMES.get((found["level"] or "").upper())
    if found := _VLLM.match(text):
        return _time(found, f"{_year(found['when'], now)}-{found['when']}"), _NAMES[found["level"]]
    if found := _UVICORN.match(text):
        return None, _NAMES[found["level"]]
    return None, "error" if _PYTHON_ERROR.match(text) else None


def access_entry(text: str) -> dict[str, object] | None:
    """The fields of a line of the access log; None for any other line."""
    if not text.startswith(_ACCESS):
        return None
    try:
        entry = json.loads(text)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) and "status" in entry and "time" in entry else None


def _access(entry: dict[str, object]) -> tuple[float | None, str]:
    status = entry["status"] if isinstance(entry["status"], int) else 0
    level = "error" if status >= 500 or status == 0 else "warning" if status >= 400 else "info"
    found = _DATED.match(str(entry["time"]))
    return (_time(found, found["when"]) if found else None), level


def _time(found: re.Match[str], when: str) -> float | None:
    zone = (found.groupdict().get("zone") or "").replace("Z", "+00:00")
    fraction = f".{found['fraction']:0<6}" if found["fraction"] else ""
    try:
        return datetime.fromisoformat(f"{when}{fraction}{zone}").timestamp()
    except ValueError:
        return None


def _year(when: str, now: datetime) -> int:
    """The last year in which this was not in the future; clocks may differ by a day."""
    this = f"{now.year}-{when}"
    try:
        return now.year if datetime.fromisoformat(this) <= now + timedelta(days=1) else now.year - 1
    except ValueError:  # 29 February
        return now.year - 1


_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


def parse_since(text: str, now: datetime) -> float:
    """Unix time of ``90s``, ``10m``, ``2h``, ``3d`` (ago), ``13:30`` (today) or an ISO date; raises ValueError."""
    if found := re.fullmatch(r"(\d+(?:\.\d+)?)([smhdw])", text.strip()):
        return now.timestamp() - float(found[1]) * _UNITS[found[2]]
    if re.fullmatch(r"\d\d?:\d\d(:\d\d)?", text.strip()):
        text = f"{now.date().isoformat()} {text.strip():0>5}"
    return datetime.fromisoformat(text.strip()).timestamp()
