"""The plan in force, as the last `up` wrote it."""

from __future__ import annotations

import json
from pathlib import Path

from llmhost.paths import Home
from llmhost.plan import stored
from llmhost.plan.types import Plan


def read_plan(home: Home) -> Plan | None:
    """None before the first `up`, or when the file is not (any more) of this version."""
    return _read(home.plan_file)


def read_next_plan(home: Home) -> Plan | None:
    """The plan that the gateway's routes are of while a change is under way, or was interrupted; else None."""
    return _read(home.next_plan_file)


def _read(path: Path) -> Plan | None:
    try:
        return stored.from_dict(json.loads(path.read_bytes()))
    except (OSError, ValueError, KeyError, TypeError):
        return None
