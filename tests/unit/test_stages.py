"""What happens when in a change, computed: nothing is stopped or started here."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from llmhost.balancing import node_member
from llmhost.plan.types import ElsewherePlan, EndpointPlan, NodePlan, Plan, ServicePlan
from llmhost.stages import Before, Stages, heirs_of, stages
from llmhost.supervise.lifecycle import Actions
from tests.unit.gateway.plans import make_plan, make_service

HOME = Path("/srv/llmhost")


def service(name: str, *names: str, replicas: int = 1) -> ServicePlan:
    return make_service(HOME, name, "chat", names or (name,), replicas=replicas)


def before(*services: ServicePlan, dead: tuple[str, ...] = ()) -> Before:
    plan = make_plan(HOME, *services)
    there = [p for p in plan.programs if p.name not in dead]
    return Before(plan, frozenset(p.name for p in there), frozenset(p.socket for p in there))


def computed(there: Before, *services: ServicePlan, room: bool = True, **actions: tuple[str, ...]) -> Stages:
    plan: Plan = make_plan(HOME, *services)
    return stages(there, plan, Actions(**actions), lambda _: room)


CHAT, PAIR = service("chat", "gpt"), service("chat", "gpt", replicas=2)
SECOND = replace(CHAT, replicas=PAIR.replicas[1:])


def test_a_service_that_comes_or_goes_concerns_nobody_else() -> None:
    other = service("other")
    assert computed(before(CHAT), CHAT, other, add=("other-0",), start=("other-0",)) == Stages(start=("other-0",))
    assert computed(before(CHAT, other), CHAT, remove=("other-0",)) == Stages(leave_first=("other-0",))


def test_one_replica_restarts_at_once_and_several_take_turns() -> None:
    assert computed(before(CHAT), CHAT, restart=("chat-0",)) == Stages(at_once=("chat-0",))
    both = ("chat-0", "chat-1")
    assert computed(before(PAIR), PAIR, restart=both) == Stages(one_by_one=both)


def test_a_replica_that_does_not_serve_has_no_turn_to_wait_for() -> None:
    there = before(PAIR, dead=("chat-0",))
    assert computed(there, PAIR, restart=("chat-0", "chat-1")) == Stages(at_once=("chat-0",), one_by_one=("chat-1",))
    nobody = before(PAIR, dead=("chat-0", "chat-1"))
    assert computed(nobody, PAIR, restart=("chat-0", "chat-1")) == Stages(at_once=("chat-0", "chat-1"))


def test_a_second_replica_covers_the_first() -> None:
    done = computed(before(CHAT), PAIR, add=("chat-1",), start=("chat-1",), restart=("chat-0",))
    assert done == Stages(start=("chat-1",), one_by_one=("chat-0",))


def test_a_replica_that_is_not_wanted_any_more_covers_the_one_that_changes() -> None:
    done = computed(before(PAIR), CHAT, remove=("chat-1",), restart=("chat-0",))
    assert done == Stages(one_by_one=("chat-0",), leave_last=("chat-1",))
    assert computed(before(PAIR), CHAT, remove=("chat-1",)) == Stages(leave_first=("chat-1",))


def test_another_engine_takes_over_before_the_old_one_leaves() -> None:
    surge = computed(before(CHAT), SECOND, add=("chat-1",), start=("chat-1",), remove=("chat-0",))
    assert surge == Stages(start=("chat-1",), heirs=("chat-1",), leave_last=("chat-0",))
    renamed = computed(before(CHAT), service("new", "gpt"), add=("new-0",), start=("new-0",), remove=("chat-0",))
    assert renamed == Stages(start=("new-0",), heirs=("new-0",), leave_last=("chat-0",))


def test_who_takes_names_over_is_started_whatever_else_was_asked_for() -> None:
    there = before(CHAT)
    assert heirs_of(there, make_plan(HOME, service("new", "gpt", "more"))) == ("new-0",)
    needing = replace(service("new", "gpt"), needs=("db",))
    assert heirs_of(there, make_plan(HOME, needing, service("db"), service("other"))) == ("new-0", "db-0")
    assert heirs_of(there, make_plan(HOME, CHAT, service("new"))) == ()
    assert heirs_of(before(CHAT, dead=("chat-0",)), make_plan(HOME, service("new", "gpt"))) == ()


def test_a_name_that_moves_is_answered_by_the_old_service_until_the_new_one_is_ready() -> None:
    moved = (service("chat", "old"), service("next", "gpt"))
    done = computed(before(CHAT), *moved, add=("next-0",), start=("next-0",), restart=("chat-0",))
    assert done == Stages(start=("next-0",), heirs=("next-0",), after_switch=("chat-0",))


def test_without_room_the_old_engine_leaves_first() -> None:
    done = computed(
        before(CHAT), service("new", "gpt"), room=False, add=("new-0",), start=("new-0",), remove=("chat-0",)
    )
    assert done == Stages(leave_first=("chat-0",), start=("new-0",), cramped=("chat-0",))


def test_what_an_interrupted_change_left_is_still_waited_for() -> None:
    there = before(CHAT)
    loading = replace(there, running=there.running | {"new-0"})
    done = computed(loading, service("new", "gpt"), remove=("chat-0",))
    assert done == Stages(heirs=("new-0",), leave_last=("chat-0",))


def test_another_host_takes_over_before_the_engine_here_leaves() -> None:
    far = (EndpointPlan("http://10.0.0.2:8000", "10.0.0.2"),)
    done = computed(before(CHAT), replace(CHAT, replicas=(), endpoints=far), remove=("chat-0",))
    assert done == Stages(elsewhere=("chat",), leave_last=("chat-0",))


def test_another_node_takes_over_and_nobody_waits_for_it_when_the_old_engine_has_to_leave_first() -> None:
    moved = replace(CHAT, replicas=(), elsewhere=(ElsewherePlan("b", ("chat-0",)),))
    assert computed(before(CHAT), moved, remove=("chat-0",)) == Stages(elsewhere=("chat",), leave_last=("chat-0",))
    done = computed(
        before(CHAT), moved, service("new"), room=False, add=("new-0",), start=("new-0",), remove=("chat-0",)
    )
    assert done == Stages(leave_first=("chat-0",), start=("new-0",), cramped=("chat-0",))


HOSTS = ("10.0.0.8", "10.0.0.9")
ON_B = (ElsewherePlan("b", ("one",)),)
B, C = NodePlan("b", "10.0.0.2", 8001), NodePlan("c", "10.0.0.3", 8001)


def on(*nodes: NodePlan, here: int = 0) -> ServicePlan:
    """The service on other nodes, and replicas here."""
    replicas = CHAT.replicas if here else ()
    return replace(CHAT, replicas=replicas, elsewhere=tuple(ElsewherePlan(n.name, ("chat-9",)) for n in nodes))


def passing(there: ServicePlan, then: ServicePlan, *served: NodePlan, **actions: tuple[str, ...]) -> Stages:
    """A node without an engine of the service, while these nodes serve it."""
    plan = replace(make_plan(HOME, there), nodes=(B, C))
    members = frozenset(node_member("chat@nodes", n.member) for n in served)
    after = replace(make_plan(HOME, then), nodes=(B, C))
    return stages(Before(plan, frozenset(), members), after, Actions(**actions), lambda _: True)


def test_a_node_that_passes_requests_on_goes_on_with_the_former_one_until_the_next_one_serves() -> None:
    assert passing(on(B), on(C), B) == Stages(elsewhere=("chat",))
    assert passing(on(B), replace(on(C), name="talk"), B) == Stages(elsewhere=("talk",))
    assert passing(on(B), on(C), B, C) == passing(on(B), on(B, C), B) == passing(on(B), on(C)) == Stages()


def test_a_node_that_gets_a_service_goes_on_with_the_former_one_until_its_engine_serves() -> None:
    coming = {"add": ("chat-0",), "start": ("chat-0",)}
    assert passing(on(B), on(here=1), B, **coming) == Stages(start=("chat-0",), heirs=("chat-0",))


def test_nothing_waits_for_an_engine_beside_a_node_that_goes_on() -> None:
    coming = {"add": ("chat-0",), "start": ("chat-0",)}
    assert passing(on(B), on(B, here=1), B, **coming) == Stages(start=("chat-0",))
    assert passing(on(B), on(B, here=1), **coming) == Stages(start=("chat-0",))


def test_an_endpoint_goes_on_until_who_follows_it_serves() -> None:
    near, far = (replace(CHAT, replicas=(), endpoints=(EndpointPlan(f"http://{host}:8000", host),)) for host in HOSTS)
    there = replace(before(near), served=frozenset({"10.0.0.8:8000"}))
    coming = {"add": ("chat-0",), "start": ("chat-0",)}
    assert computed(there, CHAT, **coming) == Stages(start=("chat-0",), heirs=("chat-0",))
    assert computed(there, far) == Stages(elsewhere=("chat",))
    assert computed(there, replace(near, endpoints=near.endpoints + far.endpoints)) == Stages()
    assert computed(there, replace(near, replicas=CHAT.replicas), **coming) == Stages(start=("chat-0",))
    assert computed(replace(there, served=frozenset()), far) == Stages()


def test_nodes_that_exchange_services_each_start_what_they_get_and_wait_for_the_other() -> None:
    other = service("other")
    there, theirs = before(CHAT), replace(other, replicas=(), elsewhere=ON_B)
    there = Before(
        replace(there.plan, services=(CHAT, theirs), nodes=(B,)), there.running,
        there.served | {node_member("other@nodes", B.member)},
    )  # fmt: skip
    plan = replace(make_plan(HOME, replace(CHAT, replicas=(), elsewhere=ON_B), other), nodes=(B,))
    actions = Actions(add=("other-0",), start=("other-0",), remove=("chat-0",))
    assert stages(there, plan, actions, lambda _: True) == Stages(
        start=("other-0",), heirs=("other-0",), elsewhere=("chat",), leave_last=("chat-0",)
    )


def test_another_host_serves_while_the_engine_here_changes() -> None:
    service = replace(CHAT, endpoints=(EndpointPlan("http://10.0.0.2:8000", "10.0.0.2"),))
    there = before(service)
    assert computed(there, service, restart=("chat-0",)) == Stages(at_once=("chat-0",))
    up = replace(there, served=there.served | {"10.0.0.2:8000"})
    assert computed(up, service, restart=("chat-0",)) == Stages(one_by_one=("chat-0",))


def test_an_engine_that_nobody_asks_has_no_heir() -> None:
    done = computed(
        before(CHAT, dead=("chat-0",)), service("new", "gpt"), add=("new-0",), start=("new-0",), remove=("chat-0",)
    )
    assert done == Stages(leave_first=("chat-0",), start=("new-0",))


def test_the_gateway_is_no_engine() -> None:
    assert computed(before(CHAT), CHAT, restart=("gateway",)) == Stages()
    assert computed(before(CHAT), CHAT, start=("gateway",)) == Stages(start=("gateway",))
