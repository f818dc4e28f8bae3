"""In which order the files of a change reach the gateway."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from llmhost import deploy
from llmhost.gateway import render_routes
from llmhost.paths import Home
from llmhost.plan.types import EndpointPlan, Plan
from tests.unit.gateway.plans import make_plan, make_service

FAR = EndpointPlan("http://10.0.0.2:8000", "10.0.0.2", key="sk-far")


def in_force(home: Home) -> tuple[bool, bool]:
    """Whether the cluster keeps the key of a client from other hosts, and whether one of those is a member."""
    clusters, members = (home.gateway_conf / f"{name}.json" for name in ("cds", "eds-chat"))
    return '"remove": "authorization"' in clusters.read_text(), FAR.address in members.read_text()


def plans(folder: Path) -> tuple[Plan, Plan]:
    chat = make_service(folder, "chat")
    return make_plan(folder, chat), make_plan(folder, replace(chat, endpoints=(FAR,)))


def test_the_routes_are_the_same_with_and_without_another_host(tmp_path: Path) -> None:
    """Members come before routes are switched, and leave after: requests must be fit for both."""
    without, with_far = plans(tmp_path)
    assert render_routes(without) == render_routes(with_far)


def changed(home: Home, plan: Plan) -> list[tuple[bool, bool]]:
    """What is in force at each moment while a home comes to a plan, and at the end."""
    seen: list[tuple[bool, bool]] = []

    def noted(home: Home) -> None:
        seen.append(in_force(home))

    deploy.write_united(home, plan, (), noted)
    deploy.write_alone(home, plan, noted)
    return [*seen, in_force(home)]


def test_another_host_comes_when_its_cluster_is_in_force_and_leaves_before_that_goes(tmp_path: Path) -> None:
    home, (without, with_far) = Home(tmp_path), plans(tmp_path)
    deploy.write_alone(home, without, lambda _: None)
    assert in_force(home) == (False, False)
    assert changed(home, with_far) == [(True, False), (True, True), (True, True)]
    assert changed(home, without) == [(True, True), (True, True), (True, False), (False, False)]
