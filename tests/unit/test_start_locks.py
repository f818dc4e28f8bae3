"""Engines that share a GPU start one after another."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from llmhost.render import guard_spec_path, render
from tests.unit.gateway.plans import make_plan, make_service

HOME = Path("/srv/llmhost")


def locks(*gpus: tuple[int, ...]) -> list[list[str]]:
    """Of engines on these GPUs, as their guards are told."""
    service = make_service(HOME, "chat", "chat", ("gpt",), replicas=len(gpus))
    replicas = tuple(replace(p, gpus=own) for p, own in zip(service.replicas, gpus, strict=True))
    files = {f.path: f.text for f in render(make_plan(HOME, replace(service, replicas=replicas)))}
    return [json.loads(files[guard_spec_path(p.name)])["locks"] for p in replicas]


def test_a_lock_for_each_gpu_in_one_order_for_all() -> None:
    first, second = f"{HOME}/run/gpu-1.lock", f"{HOME}/run/gpu-3.lock"
    assert locks((3, 1), (1,), (1, 3)) == [[first, second], [first], [first, second]]


def test_none_on_a_cpu() -> None:
    assert locks(()) == [[]]
