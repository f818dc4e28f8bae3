"""What `up` would do to each service: the same comparison that it makes itself, without doing anything."""

from __future__ import annotations

from collections.abc import Iterable

from llmhost import writer
from llmhost.paths import Home
from llmhost.plan import Plan, ServicePlan
from llmhost.plan.running import Running, service_of
from llmhost.render import guard_spec_path, render


def changed(home: Home, plan: Plan, there: Running, services: Iterable[ServicePlan]) -> Iterable[str]:
    """Services with an engine that runs with another command or environment than the plan has for it."""
    now = {p.name: p.argv for p in there.programs}
    specs = {f.path: f.text for f in render(plan)}
    for service in services:
        for program in service.replicas:
            spec = guard_spec_path(program.name)
            if program.name in now and (now[program.name], writer.read(home, spec)) != (program.argv, specs[spec]):
                yield service.name


def outlook(home: Home, plan: Plan, there: Running) -> tuple[tuple[str, str], ...]:
    """(service, what happens to it in words) for those of the plan, then for those that are stopped because it has
    them no more."""
    different = set(changed(home, plan, there, plan.services))
    running = {p.name for p in there.programs}
    found = [(s.name, _words(s, running, s.name in different)) for s in plan.services]
    known = {s.name for s in plan.services}
    gone = dict.fromkeys(name for p in there.programs if (name := service_of(p.name)) not in known)
    return (*found, *((name, "stop: it is no longer in llmhost.yaml") for name in gone))


def _words(service: ServicePlan, running: set[str], different: bool) -> str:
    own = [p.name for p in service.replicas]
    idle = [name for name in own if name not in running]
    if not own:
        return "nothing runs here: other hosts serve it"
    if different:
        return "restart: its command, environment or share has changed"
    if idle == own:
        return "start"
    return f"start {', '.join(idle)}, keep the others" if idle else "keep"
