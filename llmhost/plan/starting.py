"""How long starts may take. Pure: engines that share a GPU start one after another, the others at the same time."""

from __future__ import annotations

from collections.abc import Collection

from llmhost.plan.types import Plan


def start_seconds(plan: Plan, programs: Collection[str]) -> float:
    """Seconds after which the last of these programs, all started at once, is ready or has run out of its time.

    Who shares a GPU with one that waits for another GPU waits for that one, too. Names that are no engine of the plan
    take no time.
    """
    groups: list[tuple[frozenset[int], float]] = []
    for service in plan.services:
        for program in service.replicas:
            if program.name in programs:
                groups = _joined(groups, frozenset(program.gpus), service.start_timeout)
    return max((seconds for _, seconds in groups), default=0.0)


def _joined(
    groups: list[tuple[frozenset[int], float]], gpus: frozenset[int], seconds: float
) -> list[tuple[frozenset[int], float]]:
    """The groups of GPUs with their seconds, those that one more engine connects made one."""
    met = [group for group in groups if group[0] & gpus]
    others = [group for group in groups if group not in met]
    every = gpus.union(*(g for g, _ in met))
    return [*others, (every, seconds + sum(s for _, s in met))]
