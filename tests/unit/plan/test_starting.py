"""How long starts may take."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from llmhost.plan.starting import start_seconds, start_seconds_elsewhere
from llmhost.plan.types import Plan
from tests.unit.gateway.plans import make_plan, make_service

HOME = Path("/srv/llmhost")


def plan(**engines: tuple[float, tuple[tuple[int, ...], ...]]) -> Plan:
    """Services with their start_timeout, and the GPUs of each of their engines."""
    services = []
    for name, (seconds, gpus) in engines.items():
        service = make_service(HOME, name, replicas=len(gpus))
        replicas = tuple(replace(p, gpus=own) for p, own in zip(service.replicas, gpus, strict=True))
        services.append(replace(service, start_timeout=seconds, replicas=replicas))
    return make_plan(HOME, *services)


@pytest.mark.parametrize(
    ("made", "seconds"),
    [
        (plan(), 0),
        (plan(chat=(600, ((),)), embed=(60, ((),))), 600),  # on a CPU all at once
        (plan(chat=(600, ((0,), (0,), (0,)))), 1800),
        (plan(chat=(600, ((0,), (1,)))), 600),
        (plan(chat=(600, ((0,),)), embed=(100, ((0,), (0,))), rerank=(50, ((1,),))), 800),
        (plan(chat=(600, ((0, 1),)), embed=(100, ((1,), (2,))), rerank=(50, ((2, 3),))), 700),
        (plan(embed=(100, ((0,), (2,))), chat=(600, ((0, 1, 2),))), 800),  # one that connects what was apart
        (plan(embed=(100, ((0,), (1,), (0,), (1,)))), 200),
    ],
)
def test_who_shares_a_gpu_starts_after_the_others(made: Plan, seconds: float) -> None:
    assert start_seconds(made, {p.name for p in made.programs}) == seconds


def test_only_those_that_start_count() -> None:
    made = plan(chat=(600, ((0,), (0,))), embed=(100, ((0,),)))
    assert start_seconds(made, {"chat-1", "gateway"}) == 600
    assert start_seconds(made, {"chat-1", "embed-0"}) == 700
    assert start_seconds(made, {"gateway"}) == 0


def test_what_is_needed_starts_before() -> None:
    made = plan(a=(100, ((),)), b=(200, ((),)), c=(600, ((0,), (1,))), d=(50, ((1,),)))
    needs = {"b": ("a",), "c": ("b",), "d": ("a", "gone")}
    made = replace(made, services=tuple(replace(s, needs=needs.get(s.name, ())) for s in made.services))
    everything = {p.name for p in made.programs}
    assert start_seconds(made, everything) == 100 + 200 + 650  # c and d share GPU 1
    assert start_seconds(made, everything - {"a-0"}) == 200 + 650
    assert start_seconds(made, {"d-0"}) == 50


def test_another_node_starts_what_a_service_needs_first() -> None:
    made = plan(embed=(100, ()), chat=(600, ()))
    embed, chat = made.services
    made = replace(made, services=(embed, replace(chat, needs=("embed",))))
    assert [start_seconds_elsewhere(made, s) for s in made.services] == [100, 700]
