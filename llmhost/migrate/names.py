"""Names of services: what llmhost takes, one for each."""

from __future__ import annotations

import re
from collections.abc import Iterable

RESERVED = ("gateway", "supervisord", "metrics", "access")
LONGEST = 40


def slug(name: str) -> str:
    """A name that llmhost takes for a service."""
    plain = re.sub(r"%\(\w+\)\d*[ds]", "", name)  # supervisord's own placeholders
    made = re.sub(r"[^a-z0-9]+", "-", plain.lower()).strip("-")[:LONGEST].rstrip("-") or "service"
    return f"{made}-service" if made in RESERVED else made


def service_names(names: Iterable[str]) -> dict[str, str]:
    """A name of its own for each: those that need no change keep theirs, of others that meet the later get a number."""
    names = list(names)
    found = {name: name for name in names if slug(name) == name}
    for name in names:
        if name not in found:
            found[name] = free(slug(name), set(found.values()))
    return found


def free(name: str, taken: set[str]) -> str:
    """The name, or with a number behind it where it is taken."""
    if name not in taken:
        return name
    number = 2
    while (numbered := f"{name[: LONGEST - len(str(number)) - 1]}-{number}") in taken:
        number += 1
    return numbered
