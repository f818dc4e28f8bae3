"""In which order the files of a change reach the gateway."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from llmhost import deploy
from llmhost import keys as keyring
from llmhost.gateway import render_routes
from llmhost.paths import Home
from llmhost.plan.types import ElsewherePlan, EndpointPlan, NodePlan, Plan
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


def test_a_key_that_comes_while_a_change_is_under_way_leaves_what_other_nodes_ask(tmp_path: Path) -> None:
    """They have been told of engines that come, and ask for them as soon as these are ready."""
    home, nodes = Home(tmp_path), (NodePlan("a", "10.0.0.1", 8443, listen="10.0.0.1"), NodePlan("b", "10.0.0.2", 8443))
    comes = make_service(tmp_path, "comes")
    there = replace(comes, replicas=(), elsewhere=(ElsewherePlan("b", ("comes-0",)),))
    before, after = (replace(make_plan(tmp_path, s), nodes=nodes, node="a") for s in (there, comes))
    deploy.write_alone(home, before, lambda _: None)
    deploy.write_united(home, after, (), lambda _: None)
    routes = home.root / deploy.ROUTES_OF_NODES
    told = routes.read_text()
    assert '"cluster": "comes"' in told
    deploy.change_keys(home, lambda keys: keyring.add(keys, "somebody", 0))
    assert routes.read_text() == told
    assert "somebody" in (home.gateway_conf / "rds.json").read_text()
