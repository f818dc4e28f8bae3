"""How long starts may take. Pure.

Engines that share a GPU start one after another, and so do those that need each other; the others at the same time.
"""

from __future__ import annotations

from collections.abc import Collection

from llmhost.plan.types import Plan, ServicePlan


def start_seconds(plan: Plan, programs: Collection[str]) -> float:
    """Seconds after which the last of these programs, all started at once, is ready or has run out of its time.

    Who shares a GPU with one that waits for another GPU waits for that one, too; who needs other services starts after
    those. Names that are no engine of the plan take no time.
    """
    groups: list[tuple[frozenset[int], float]] = []
    for service in plan.services:
        for program in service.replicas:
            if program.name in programs:
                groups = _joined(groups, frozenset(program.gpus), service.start_timeout)
    return max((_ready_after(plan, service, programs, groups) for service in plan.services), default=0.0)


def start_seconds_elsewhere(plan: Plan, service: ServicePlan) -> float:
    """Seconds that another node may take to start a service, after what it needs; its GPUs there are not known."""
    needed = (plan.service(name) for name in service.needs)
    before = max((start_seconds_elsewhere(plan, other) for other in needed if other), default=0.0)
    return before + service.start_timeout


def _ready_after(
    plan: Plan, service: ServicePlan, programs: Collection[str], groups: Collection[tuple[frozenset[int], float]]
) -> float:
    """Seconds of what it needs, one after the other, and then its own."""
    needed = (plan.service(name) for name in service.needs)
    before = max((_ready_after(plan, other, programs, groups) for other in needed if other), default=0.0)
    starting = [frozenset(p.gpus) for p in service.replicas if p.name in programs]
    shared = max((seconds for gpus, seconds in groups if any(gpus & own for own in starting)), default=0.0)
    return before + max(shared, service.start_timeout if starting else 0.0)


def _joined(
    groups: list[tuple[frozenset[int], float]], gpus: frozenset[int], seconds: float
) -> list[tuple[frozenset[int], float]]:
    """The groups of GPUs with their seconds, those that one more engine connects made one."""
    met = [group for group in groups if group[0] & gpus]
    others = [group for group in groups if group not in met]
    every = gpus.union(*(g for g, _ in met))
    return [*others, (every, seconds + sum(s for _, s in met))]
