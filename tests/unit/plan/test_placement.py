"""Which node runs which replica."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from llmhost import config
from llmhost.config import Config
from llmhost.errors import PlanError
from llmhost.facts import Gpu, HostFacts, ModelFacts, NodeFacts
from llmhost.plan import Plan, stored
from llmhost.plan.build import make_plan
from llmhost.plan.gpu import gpus_have_room
from llmhost.plan.placement import NOWHERE, Part, Placement, place, place_beside
from llmhost.plan.running import NOTHING, Running
from llmhost.plan.types import NodePlan
from tests.samples import machine, model

GIB = 2**30


def cpu_node(name: str, gib: int = 64, cores: int = 8) -> NodeFacts:
    return NodeFacts(name, HostFacts(tuple(range(cores)), gib * GIB, gib * GIB))


def gpu_node(name: str, *sizes: int) -> NodeFacts:
    gpus = tuple(Gpu(i, "", size * GIB, size * GIB) for i, size in enumerate(sizes))
    return NodeFacts(name, HostFacts(tuple(range(32)), 512 * GIB, 512 * GIB), gpus, "cuda")


def named(*nodes: NodeFacts) -> dict[str, NodeFacts]:
    return {node.name: node for node in nodes}


def parsed(services: Mapping[str, object] | str, nodes: Mapping[str, NodeFacts]) -> Config:
    written = {name: {"address": f"10.0.0.{i}"} for i, name in enumerate(nodes, 1)}
    text = services if isinstance(services, str) else json.dumps(services)
    return config.parse(f"nodes: {json.dumps(written)}\nservices: {text}")


def plan_of(
    name: str, whole: Config, nodes: Mapping[str, NodeFacts], models: Mapping[str, ModelFacts], placement: Placement,
    running: Running = NOTHING,
) -> Plan:  # fmt: skip
    """The plan that a node makes for itself."""
    facts = nodes[name]
    known = tuple(NodePlan(n, f"10.0.0.{i}", 8443) for i, n in enumerate(nodes, 1))
    part = Part(name, known, placement)
    here = machine()
    engine = replace(here.engine, device=facts.device)
    on = replace(here, host=facts.host, gpus=facts.gpus, engine=engine, part=part)
    return make_plan(part.of(whole), on, models, running)


def test_replicas_are_spread_first() -> None:
    nodes = named(cpu_node("a"), cpu_node("b"), cpu_node("c"))
    whole = parsed("{chat: {model: m, replicas: 3}, embed: {model: e, kind: embed}}", nodes)
    models = {"chat": model(), "embed": model("embed")}
    found = place(whole.services, nodes, models)
    assert found.nodes["chat"] == {0: "a", 1: "b", 2: "c"}
    assert found.nodes["embed"] == {0: "a"}


def test_fewest_nodes_otherwise() -> None:
    nodes = named(*(cpu_node(f"n{i}") for i in range(9)))
    whole = parsed({f"s{i}": {"model": "m"} for i in range(4)}, nodes)
    found = place(whole.services, nodes, {f"s{i}": model() for i in range(4)})
    assert {node for own in found.nodes.values() for node in own.values()} == {"n0"}


def test_a_core_of_its_own_goes_before_fewer_nodes() -> None:
    nodes = named(cpu_node("a", cores=1), cpu_node("b", cores=1))
    whole = parsed("{x: {model: m}, y: {model: m}}", nodes)
    found = place(whole.services, nodes, {"x": model(), "y": model()})
    assert {found.nodes["x"][0], found.nodes["y"][0]} == {"a", "b"}


def test_only_where_it_may() -> None:
    nodes = named(cpu_node("a"), cpu_node("b"), cpu_node("c"))
    whole = parsed("{chat: {model: m, nodes: c}, embed: {model: e, replicas: 2, nodes: [b, c]}}", nodes)
    found = place(whole.services, nodes, {"chat": model(), "embed": model("embed")})
    assert found.nodes == {"chat": {0: "c"}, "embed": {0: "b", 1: "c"}} or found.nodes["embed"] == {0: "c", 1: "b"}


def test_engines_go_where_gpus_are() -> None:
    nodes = named(cpu_node("a"), gpu_node("b", 24))
    whole = parsed("{chat: {model: m}, small: {model: m, nodes: a}}", nodes)
    found = place(whole.services, nodes, {"chat": model(), "small": model()})
    assert found.nodes == {"chat": {0: "b"}, "small": {0: "a"}}


def test_written_gpus_must_be_there() -> None:
    nodes = named(gpu_node("a", 80), gpu_node("b", 80, 80, 80, 80))
    whole = parsed("{big: {model: m, gpus: 4}, second: {model: m, gpus: [3], args: {gpu_memory_utilization: 0.3}}}",
                   nodes)  # fmt: skip
    models = {"big": model(weights_gib=40), "second": model(weights_gib=4)}
    assert place(whole.services, nodes, models).nodes == {"big": {0: "b"}, "second": {0: "b"}}
    with pytest.raises(PlanError, match=r"services.big: big-0 fits on no node; b comes nearest: .*8 GPUs are asked"):
        place(parsed("{big: {model: m, gpus: 8}}", nodes).services, nodes, models)


def test_what_does_not_fit_says_what_is_missing() -> None:
    nodes = named(cpu_node("a", 16), cpu_node("b", 24))
    whole = parsed("{chat: {model: m}}", nodes)
    with pytest.raises(PlanError, match=r"services.chat: chat-0 fits on no node; b comes nearest: .*GiB") as e:
        place(whole.services, nodes, {"chat": model(weights_gib=40)})
    assert "add a node" in e.value.hint
    limited = parsed("{chat: {model: m, nodes: a}}", nodes)
    with pytest.raises(PlanError, match="a comes nearest") as e:
        place(limited.services, nodes, {"chat": model(weights_gib=18)})
    assert "allow it more nodes than a" in e.value.hint


def test_no_host_memory_is_given_out_twice_beside_gpus() -> None:
    tight = replace(gpu_node("a", 80), host=HostFacts((0, 1), 4 * GIB, 4 * GIB))
    whole = parsed("{x: {model: m, args: {gpu_memory_utilization: 0.2}}, y: {model: m}}", named(tight))
    with pytest.raises(PlanError, match="of memory of the host are missing"):
        place(whole.services, named(tight), {"x": model(), "y": model()})


FASTCHAT = """
 {controller: {command: 'c --port {port}'},
  worker: {command: 'w --controller {controller.port} --port {port}', kind: chat, replicas: 2},
  other: {command: 'o {uds}', kind: embed, replicas: 2}}
"""


def test_who_asks_another_at_127_0_0_1_is_beside_it() -> None:
    nodes = named(cpu_node("a"), cpu_node("b"))
    whole = parsed(FASTCHAT, nodes)
    found = place(whole.services, nodes, {})
    assert len({*found.nodes["controller"].values(), *found.nodes["worker"].values()}) == 1
    assert set(found.nodes["other"].values()) == {"a", "b"}


def test_linked_services_with_nothing_in_common_are_refused() -> None:
    nodes = named(cpu_node("a"), cpu_node("b"))
    text = FASTCHAT.replace("kind: chat,", "kind: chat, nodes: a,").replace("'c --port {port}'",
                                                                          "'c --port {port}', nodes: b")  # fmt: skip
    with pytest.raises(PlanError, match="must be on one node"):
        place(parsed(text, nodes).services, nodes, {})


def test_who_needs_a_helper_is_beside_it() -> None:
    nodes = named(cpu_node("a"), cpu_node("b"))
    whole = parsed("{cache: {command: 'c'}, chat: {model: m, replicas: 2, needs: cache}}", nodes)
    found = place(whole.services, nodes, {"chat": model()})
    assert len({*found.nodes["cache"].values(), *found.nodes["chat"].values()}) == 1


def test_what_was_placed_stays() -> None:
    nodes = named(cpu_node("a", 24), cpu_node("b", 24))
    first = parsed("{chat: {model: m, replicas: 2}}", nodes)
    before = place(first.services, nodes, {"chat": model()})
    more = parsed("{new: {model: m}, chat: {model: m, replicas: 3}}", nodes)
    after = place(more.services, nodes, {"chat": model(), "new": model(weights_gib=2)}, before)
    assert {n: after.nodes["chat"][n] for n in (0, 1)} == before.nodes["chat"]
    fewer = place(first.services, nodes, {"chat": model()}, after)
    assert fewer == before


def test_a_node_that_is_gone_leaves_its_replicas_to_the_others() -> None:
    three = named(cpu_node("a"), cpu_node("b"), cpu_node("c"))
    before = place(parsed("{chat: {model: m, replicas: 3}}", three).services, three, {"chat": model()})
    two = {name: node for name, node in three.items() if name != "b"}
    after = place(parsed("{chat: {model: m, replicas: 3}}", two).services, two, {"chat": model()}, before)
    assert (after.nodes["chat"][0], after.nodes["chat"][2]) == ("a", "c")
    assert after.nodes["chat"][1] in ("a", "c")


def test_json() -> None:
    made = Placement({"chat": {0: "a", 10: "b"}})
    assert Placement.from_dict(json.loads(json.dumps(made.to_dict()))) == made
    assert made.digest != NOWHERE.digest


def test_numbers_are_the_same_everywhere() -> None:
    nodes = named(cpu_node("a"), cpu_node("b"))
    whole = parsed("{chat: {model: m, replicas: 3}, embed: {model: e}}", nodes)
    models = {"chat": model(), "embed": model("embed")}
    placement = place(whole.services, nodes, models)
    plans = {name: plan_of(name, whole, nodes, models, placement) for name in nodes}
    own = [p.name for plan in plans.values() for p in plan.programs]
    assert sorted(own) == ["chat-0", "chat-1", "chat-2", "embed-0"]
    for name, plan in plans.items():
        (other,) = set(nodes) - {name}
        chat = plan.service("chat")
        assert chat is not None
        assert [e.node for e in chat.elsewhere] == [other]
        assert chat.elsewhere[0].replicas == tuple(p.name for p in plans[other].programs if p.name.startswith("chat"))
        embed = plan.service("embed")
        assert embed is not None
        assert embed.kind == "embed"
    assert plans["a"].placement == plans["b"].placement
    assert stored.from_dict(json.loads(json.dumps(stored.to_dict(plans["b"])))) == replace(plans["b"], on_event=None)


def test_second_engines_of_a_surge_have_numbers_that_nobody_else_takes() -> None:
    nodes = named(cpu_node("a"), cpu_node("b"))
    whole = parsed("{chat: {model: m, replicas: 2}}", nodes)
    models = {"chat": model()}
    placement = place(whole.services, nodes, models)
    names = []
    for name in nodes:
        there = Running(plan_of(name, whole, nodes, models, placement).programs, surge=frozenset({"chat"}))
        (second,) = plan_of(name, whole, nodes, models, placement, there).programs
        names.append(second.name)
        # And when they have taken over, nothing restarts for their names.
        (kept,) = plan_of(name, whole, nodes, models, placement, Running((second,))).programs
        assert kept == second
    assert names == ["chat-2", "chat-3"]


sizes = st.sampled_from([24, 48, 80])
cpu_nodes = st.builds(lambda gib, cores: cpu_node("", gib, cores), st.integers(16, 256), st.integers(1, 32))
gpu_nodes = st.lists(sizes, min_size=1, max_size=4).map(lambda gpus: gpu_node("", *gpus))


@st.composite
def clusters(draw: st.DrawFn) -> tuple[dict[str, NodeFacts], dict[str, dict[str, object]], dict[str, ModelFacts]]:
    drawn = draw(st.lists(st.one_of(cpu_nodes, gpu_nodes), min_size=1, max_size=6))
    nodes = {f"n{i}": replace(node, name=f"n{i}") for i, node in enumerate(drawn)}
    services: dict[str, dict[str, object]] = {}
    models = {}
    for i in range(draw(st.integers(1, 6))):
        name = f"s{i}"
        written: dict[str, object] = {"model": "m", "replicas": draw(st.integers(1, 5))}
        if draw(st.booleans()):
            written["nodes"] = draw(st.lists(st.sampled_from(sorted(nodes)), min_size=1, unique=True))
        if draw(st.integers(0, 3)) == 0:
            written |= {"command": "x {uds}", "kind": "chat", "memory": f"{draw(st.integers(1, 40))}GiB"}
            del written["model"]
        services[name] = written
        models[name] = model(weights_gib=draw(st.integers(1, 30)))
    return nodes, services, models


def placed(
    nodes: Mapping[str, NodeFacts], services: Mapping[str, object], models: Mapping[str, ModelFacts],
    before: Placement = NOWHERE,
) -> Placement:  # fmt: skip
    try:
        return place(parsed(services, nodes).services, nodes, models, before)
    except PlanError:
        assume(False)
        raise


@settings(max_examples=60, deadline=None)
@given(clusters())
def test_nothing_is_given_out_twice_and_every_node_agrees(
    drawn: tuple[dict[str, NodeFacts], dict[str, dict[str, object]], dict[str, ModelFacts]],
) -> None:
    nodes, services, models = drawn
    vllm = {name: s for name, s in services.items() if "model" in s}  # plans of foreign engines need their programs
    assume(vllm)
    placement = placed(nodes, vllm, models)
    whole = parsed(vllm, nodes)
    every: Counter[str] = Counter()
    for name, node in nodes.items():
        plan = plan_of(name, whole, nodes, models, placement)
        every.update(p.name for p in plan.programs)
        assert gpus_have_room(plan.programs, node.gpus)
        assert sum(p.memory_bytes for p in plan.programs) <= node.host.memory_total
        bound = Counter(core for p in plan.programs for core in p.cores)
        assert all(times == 1 for times in bound.values())
        for service in plan.services:
            assert not service.replicas or name in (services[service.name].get("nodes") or nodes)
            assert (
                len(service.replicas) + sum(len(e.replicas) for e in service.elsewhere)
                == vllm[service.name]["replicas"]
            )
    assert every == Counter({f"{s}-{i}": 1 for s, own in vllm.items() for i in range(int(str(own["replicas"])))})


@settings(max_examples=100, deadline=None)
@given(clusters(), st.data())
def test_nothing_moves_without_need(
    drawn: tuple[dict[str, NodeFacts], dict[str, dict[str, object]], dict[str, ModelFacts]], data: st.DataObject
) -> None:
    nodes, services, models = drawn
    whole = placed(nodes, services, models)
    assert placed(nodes, services, models, whole) == whole
    gone = data.draw(st.sampled_from(sorted(services)))
    rest = {name: s for name, s in services.items() if name != gone}
    before = placed(nodes, rest, models)
    after = place(parsed(services, nodes).services, nodes, models, before)
    moved = {n for n, own in before.nodes.items() if after.nodes[n] != own}
    if moved:
        with pytest.raises(PlanError):
            place_beside(parsed(services, nodes).services, nodes, models, before)
