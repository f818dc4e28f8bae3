"""The plan in force, as the last `up` left it, and what the names on a command line mean in it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from llmhost.errors import ConfigError, NotReadyError
from llmhost.gateway_address import ACCESS_LOG, GATEWAY_PROGRAM, METRICS_PROGRAM
from llmhost.homedir import require_access
from llmhost.paths import Home
from llmhost.plan import Plan, ServicePlan
from llmhost.supervise.planfile import read_plan

OWN_LOGS = (GATEWAY_PROGRAM, METRICS_PROGRAM, ACCESS_LOG, "supervisord")
"""Names of logs beside those of services."""


def load_plan(home: Home) -> Plan:
    """The plan in force; raises NotReadyError before the first `up`, HomeError when the home is somebody else's."""
    require_access(home)
    plan = read_plan(home)
    if plan is None:
        raise NotReadyError(f"nothing has been brought up in {home.root} yet", "run `llmhost up`")
    return plan


def select_services(plan: Plan, names: tuple[str, ...]) -> tuple[ServicePlan, ...]:
    """The services of these names, all when none is given; raises ConfigError for one that is not in the plan."""
    known = [s.name for s in plan.services]
    for name in names:
        if name == GATEWAY_PROGRAM:
            raise ConfigError(
                "the gateway is not a service: it runs as long as one of them is wanted",
                "`llmhost up` and `llmhost start` start it, and mend it when it cannot listen;"
                " `llmhost stop` without a name stops it, after the services",
            )
        if name not in known:
            raise ConfigError(f"there is no service {name}", _in_force(known))
    return tuple(s for s in plan.services if not names or s.name in names or s.part_of in names)


def select_rolling(plan: Plan, names: tuple[str, ...]) -> tuple[ServicePlan, ...]:
    """Those of `select_services` whose engines can restart in turn: parts on other nodes come with rank 0, Ray stays.

    Raises ConfigError for a name that is not in the plan, and for the name of a part.
    """
    chosen = select_services(plan, names)
    for part in (s for s in chosen if s.part_of and s.name in names):
        raise ConfigError(
            f"{part.name} is a part of {part.part_of}, which restarts as a whole",
            f"use `llmhost restart --rolling {part.part_of}`, where its first part runs",
        )
    return tuple(s for s in chosen if not s.part_of)


def with_parts(plan: Plan, names: tuple[str, ...]) -> tuple[str, ...]:
    """These services and those that their parts on this node run as; none: all."""
    return tuple(dict.fromkeys((*names, *(s.name for s in select_services(plan, names))))) if names else ()


def with_needs(needs: Mapping[str, Iterable[str]], services: tuple[str, ...]) -> tuple[str, ...]:
    """These services and what they need, what that needs, and so on; none: all."""
    found = dict.fromkeys(services)
    waiting = list(services)
    while waiting:
        more = [name for name in needs.get(waiting.pop(), ()) if name not in found]
        found |= dict.fromkeys(more)
        waiting += more
    return tuple(found)


def _in_force(known: Collection[str]) -> str:
    return f"the last `llmhost up` had: {', '.join(known) or 'none'}; run it again for what was written since"


def log_files(home: Home, names: tuple[str, ...]) -> dict[str, Path]:
    """The log file of each program, of all services and the gateway when none is named.

    Raises ConfigError for a name that is no service and no replica of the plan in force, and not one of `OWN_LOGS`.
    """
    plan = load_plan(home)
    own = {name: home.log_file(name) for name in OWN_LOGS}
    known = [s.name for s in plan.services]
    replicas = {r.name: s.name for s in plan.services for r in s.replicas}
    for name in names:
        if name not in (*known, *replicas, *own):
            raise ConfigError(f"there is no log of {name}", f"also {', '.join(own)} have one; {_in_force(known)}")
    chosen = [name for name, service in replicas.items() if not names or {name, service} & set(names)]
    chosen += [n for n in own if n in (names or (GATEWAY_PROGRAM,))]
    return {name: home.log_file(name) for name in chosen}
