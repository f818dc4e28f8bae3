"""The plan in force, as the last `up` wrote it."""

from __future__ import annotations

import json

from llmhost.paths import Home
from llmhost.plan.types import Plan


def read_plan(home: Home) -> Plan | None:
    """None before the first `up`, or when the file is not (any more) of this version."""
    try:
        return Plan.from_dict(json.loads(home.plan_file.read_bytes()))
    except (OSError, ValueError, KeyError, TypeError):
        return None
