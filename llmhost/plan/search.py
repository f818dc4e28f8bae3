"""The search for a place on GPUs for every engine. Pure."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from llmhost.facts import Gpu
from llmhost.plan.memory import Need
from llmhost.plan.shapes import GpuShare, Shape, Task, find_shapes, least_size, make_share

SEARCH_LIMIT = 20_000
"""Placements that are looked at before giving up; a handful is enough but for contrived machines."""


@dataclass(frozen=True)
class Misfit:
    """The engine for which no place was found, its need in the way that came nearest, and what was missing for it
    and those that were to be placed after it."""

    task: Task
    shape: Shape
    need: Need
    missing: int


def place(tasks: Sequence[Task], gpus: Sequence[Gpu], free: Mapping[int, int]) -> dict[str, GpuShare] | Misfit:
    """Search in order of size, emptiest GPUs first, going back where it does not work out."""
    ordered = sorted(tasks, key=lambda t: (not isinstance(t.config.gpus, list), -least_size(t, gpus)))
    search = _Search(gpus, dict(free))
    placed = search.run(ordered)
    return search.misfit(ordered) if placed is None else placed


class _Search:
    """Depth first, with a limit; remembers how far it came."""

    def __init__(self, gpus: Sequence[Gpu], free: dict[int, int]) -> None:
        self.gpus = {gpu.index: gpu for gpu in gpus}
        self.free = free
        self.looked = 0
        self.deepest = -1
        self.then_free: dict[int, int] = dict(free)

    def run(self, tasks: Sequence[Task]) -> dict[str, GpuShare] | None:
        if not tasks:
            return {}
        return self._from(tasks, 0)

    def _from(self, tasks: Sequence[Task], position: int) -> dict[str, GpuShare] | None:
        if position == len(tasks):
            return {}
        if position > self.deepest:
            self.deepest, self.then_free = position, dict(self.free)
        task = tasks[position]
        for chosen, shape, need in self._options(task):
            self.looked += 1
            if self.looked > SEARCH_LIMIT:
                return None
            self._take(chosen, need.least)
            rest = self._from(tasks, position + 1)
            self._take(chosen, -need.least)
            if rest is not None:
                total = min(self.gpus[i].total for i in chosen)
                return {task.program: make_share(chosen, shape, need, need.kv_least, total), **rest}
        return None

    def _take(self, chosen: Sequence[int], size: int) -> None:
        for index in chosen:
            self.free[index] -= size

    def _options(self, task: Task) -> Iterator[tuple[tuple[int, ...], Shape, Need]]:
        written = task.config.gpus
        for shape in find_shapes(task, tuple(self.gpus.values())):
            # Of GPUs that are equally free, one is as good as another.
            seen: set[tuple[tuple[int, int], ...]] = set()
            ranked = sorted(self.free, key=lambda i: (-self.free[i], i))
            choices = [tuple(written)] if isinstance(written, list) else itertools.combinations(ranked, shape.gpus)
            for chosen in choices:
                need = task.need(shape, min(self.gpus[i].total for i in chosen))
                alike = tuple(sorted((self.free[i], self.gpus[i].total) for i in chosen))
                if alike in seen or need.over or any(self.free[i] < need.least for i in chosen):
                    continue
                seen.add(alike)
                yield tuple(chosen) if isinstance(written, list) else tuple(sorted(chosen)), shape, need

    def misfit(self, tasks: Sequence[Task]) -> Misfit:
        task = tasks[max(self.deepest, 0)]
        ways = [self._nearest(task, shape) for shape in find_shapes(task, tuple(self.gpus.values()))]
        found = min(ways, key=lambda way: (way.missing, way.shape.gpus))
        lacking = sum(least_size(t, tuple(self.gpus.values())) for t in tasks) - sum(self.free.values())
        return replace(found, missing=max(found.missing, lacking))

    def _nearest(self, task: Task, shape: Shape) -> Misfit:
        written = task.config.gpus
        ranked = written if isinstance(written, list) else sorted(self.then_free, key=lambda i: -self.then_free[i])
        chosen = ranked[: shape.gpus]
        need = task.need(shape, min(self.gpus[i].total for i in chosen))
        return Misfit(task, shape, need, sum(max(need.over, need.least - self.then_free[i], 0) for i in chosen))
