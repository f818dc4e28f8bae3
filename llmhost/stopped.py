"""Which services were stopped on purpose, so that a reboot or a killed supervisord does not bring them back.

Everything else of the plan should run. What is kept is what does *not*, so that a new service starts by itself.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import NamedTuple

from llmhost import writer
from llmhost.errors import HomeError
from llmhost.gateway_address import GATEWAY_PROGRAM
from llmhost.paths import Home
from llmhost.plan.running import service_of


class Stopped(NamedTuple):
    """``gateway`` is true after a stop of everything."""

    services: frozenset[str] = frozenset()
    gateway: bool = False


def read_stopped(home: Home) -> Stopped:
    """Nothing, when nothing is written or it cannot be understood."""
    try:
        data = json.loads(home.stopped_file.read_bytes())
        return Stopped(frozenset(map(str, data["services"])), bool(data["gateway"]))
    except (OSError, ValueError, KeyError, TypeError):
        return Stopped()


def not_stopped(home: Home, programs: Iterable[str]) -> tuple[str, ...]:
    """Those of these programs that nobody stopped on purpose."""
    stopped = read_stopped(home)

    def wanted(program: str) -> bool:
        return not stopped.gateway if program == GATEWAY_PROGRAM else service_of(program) not in stopped.services

    return tuple(filter(wanted, programs))


def after_start(old: Stopped, names: Iterable[str], every: Iterable[str], *, alone: bool) -> Stopped:
    """What stays stopped when `names` are started (none: all); `alone`: nothing ran before, so only they are wanted."""
    wanted = frozenset(names)
    if not wanted:
        return Stopped()
    return Stopped((frozenset(every) if alone else old.services) - wanted)


def after_stop(old: Stopped, names: Iterable[str], every: Iterable[str]) -> Stopped:
    """What is stopped when `names` are stopped as well (none: everything, the gateway too)."""
    more = frozenset(names)
    return Stopped(old.services | more, old.gateway) if more else Stopped(frozenset(every), True)


def write_stopped(home: Home, stopped: Stopped) -> None:
    """Keep it; raises HomeError when it cannot be written."""
    if stopped == read_stopped(home):
        return
    text = json.dumps({"services": sorted(stopped.services), "gateway": stopped.gateway})
    try:
        writer.replace_file(home.stopped_file, f"{text}\n")
    except OSError as e:
        raise HomeError(
            f"cannot write {home.stopped_file}: {e.strerror}", "see `df -h` and the permissions of the home"
        ) from e
