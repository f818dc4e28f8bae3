"""What happens when in a change from the plan in force to the next one; pure."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

from llmhost import balancing
from llmhost.gateway.peers import cluster_name
from llmhost.gateway_address import GATEWAY_PROGRAM
from llmhost.in_force import with_needs
from llmhost.plan import Plan, ServicePlan
from llmhost.plan.running import service_of
from llmhost.supervise.lifecycle import Actions


@dataclass(frozen=True)
class Stages:
    """Names of programs, in the order of what happens to them; each stage waits for the one before."""

    leave_first: tuple[str, ...] = ()
    """Drained and stopped: nobody takes their place, or there is no room for both."""
    at_once: tuple[str, ...] = ()
    """Changed, and nobody else serves for them (or they do not serve): drained, started again, all together."""
    start: tuple[str, ...] = ()
    """Wanted and not running, as they are or new."""
    heirs: tuple[str, ...] = ()
    """Of `start`: they take over names that are being served, so they must be ready before the routes are switched."""
    elsewhere: tuple[str, ...] = ()
    """Services without an engine here, for names that are being served: other hosts must answer to them first."""
    one_by_one: tuple[str, ...] = ()
    """Changed, with others of their service that serve meanwhile."""
    after_switch: tuple[str, ...] = ()
    """Like `at_once`, but until the routes are switched they answer to names that heirs take over."""
    leave_last: tuple[str, ...] = ()
    """They serve until the routes are switched, then they are drained and stopped."""
    cramped: tuple[str, ...] = ()
    """Of `leave_first`: they would have left last if there were memory for them and for who takes their place."""


@dataclass(frozen=True)
class Before:
    """What is there when a change begins."""

    plan: Plan
    running: frozenset[str]
    """Programs that run."""
    served: frozenset[str]
    """Members that get requests."""

    @property
    def in_force(self) -> frozenset[str]:
        """Programs of the plan that run."""
        return frozenset(p.name for p in self.plan.programs) & self.running

    def serves(self, program: str) -> bool:
        return bool(balancing.sockets(self.plan, {program}) & self.served)


def stages(before: Before, plan: Plan, actions: Actions, fits: Callable[[Collection[str]], bool]) -> Stages:
    """Compute what happens when; pure. ``fits`` tells whether these old programs have room beside all of the plan."""
    ours = {p.name for p in plan.programs} | {p.name for p in before.plan.programs}
    changed = [p for p in actions.restart if p in ours]
    taken = _taken_over(before, plan)
    heirs, elsewhere = _heirs(taken, before, plan, actions.start), _moved_away(taken, plan)
    removed = [p for p in actions.remove if p in before.running]
    last = [p for p in removed if _is_followed(p, before, plan, {*heirs, *changed})]
    cramped = tuple(last) if last and not fits(last) else ()
    if cramped:
        heirs, elsewhere, last = (), (), []
    first = [p for p in actions.remove if p not in last]
    coming = {*actions.start, *changed, *last}
    covered = [p for p in changed if before.serves(p) and _has_others(p, before, plan, coming)]
    alone = [p for p in actions.restart if p not in covered and p != GATEWAY_PROGRAM]
    late = [p for p in alone if before.serves(p) and _is_followed(p, before, plan, heirs)]
    return Stages(
        leave_first=tuple(first),
        at_once=tuple(p for p in alone if p not in late),
        after_switch=tuple(late),
        start=actions.start,
        heirs=heirs,
        elsewhere=elsewhere,
        one_by_one=tuple(covered),
        leave_last=tuple(last),
        cramped=cramped,
    )


def _answered(before: Before) -> set[str]:
    """The names that engines here answer to now."""
    return {n for s in before.plan.services if any(before.serves(p.name) for p in s.replicas) for n in s.served_as}


def _answered_elsewhere(before: Before) -> set[str]:
    """The names that other hosts alone answer to now, for this one's gateway."""
    alone = [s for s in before.plan.services if not any(before.serves(p.name) for p in s.replicas)]
    return {n for s in alone if members_elsewhere(before.plan, s) & before.served for n in s.served_as}


def _taken_over(before: Before, plan: Plan) -> frozenset[str]:
    """Services for names that engines here answer to now, or other hosts of which none goes on with them."""
    here, elsewhere = _answered(before), _answered_elsewhere(before)
    return frozenset(
        s.name
        for s in plan.services
        if here & set(s.served_as) or (elsewhere & set(s.served_as) and not members_elsewhere(plan, s) & before.served)
    )


def heirs_of(before: Before, plan: Plan) -> tuple[str, ...]:
    """Programs of services that have no engine in force and take names over, and of what these need: whatever else is
    wanted, they are. Not those of which parts run on other nodes: these would have to be asked for there."""
    owners = [s for s in _new_owners(_taken_over(before, plan), before, plan) if not any(p.group for p in s.replicas)]
    if not owners:
        return ()
    names = with_needs({s.name: s.needs for s in plan.services}, tuple(s.name for s in owners))
    return tuple(p.name for s in plan.services if s.name in names for p in s.replicas)


def _heirs(taken: Collection[str], before: Before, plan: Plan, starting: Collection[str]) -> tuple[str, ...]:
    coming = {
        *starting,
        *before.running,
    } - before.in_force  # what runs and is not in force is left of an interrupted change
    return tuple(p.name for s in _new_owners(taken, before, plan) for p in s.replicas if p.name in coming)


def _new_owners(taken: Collection[str], before: Before, plan: Plan) -> list[ServicePlan]:
    return [s for s in plan.services if s.name in taken and not before.in_force & {p.name for p in s.replicas}]


def _moved_away(taken: Collection[str], plan: Plan) -> tuple[str, ...]:
    return tuple(s.name for s in plan.services if s.name in taken and (s.endpoints or s.elsewhere) and not s.replicas)


def followers(program: str, before: Plan, plan: Plan) -> tuple[ServicePlan, ...]:
    """The services that answer to names of a program's service in the next plan."""
    old = _owner(before, program)
    return tuple(s for s in plan.services if old and set(old.served_as) & set(s.served_as))


def _is_followed(program: str, before: Before, plan: Plan, coming: Collection[str]) -> bool:
    """Whether programs that come, or other hosts alone, answer to a name of this one."""
    following = followers(program, before.plan, plan)
    return any(not s.replicas or any(p.name in coming for p in s.replicas) for s in following)


def _has_others(program: str, before: Before, plan: Plan, coming: Collection[str]) -> bool:
    """Whether other engines of its service serve, or will when they are ready."""
    service = _owner(plan, program)
    mates = {p.name for p in service.replicas} if service else set()
    leaving = {p for p in coming if service and service_of(p) == service.name}
    elsewhere = members_elsewhere(plan, service) if service else set()
    return bool(elsewhere & before.served) or any(
        p in coming or before.serves(p) for p in (mates | leaving) - {program}
    )


def members_elsewhere(plan: Plan, service: ServicePlan) -> set[str]:
    """Other hosts that serve it, as they are told among all members that get requests."""
    spread = (balancing.node_member(cluster_name(service.name), member) for member in others_of(plan, service))
    return {*(e.member for e in service.endpoints), *spread}


def members_on_nodes(plan: Plan, service: ServicePlan) -> frozenset[str]:
    """The same, without servers that are no nodes."""
    of_service = cluster_name(service.name)
    return frozenset(balancing.node_member(of_service, member) for member in _nodes_of(plan, service))


def others_of(plan: Plan, service: ServicePlan) -> frozenset[str]:
    """Other hosts that serve it, nodes and endpoints, as the gateway calls them."""
    return _nodes_of(plan, service) | {e.member for e in service.endpoints}


def _nodes_of(plan: Plan, service: ServicePlan) -> frozenset[str]:
    nodes = {n.name: n.member for n in plan.nodes}
    return frozenset(nodes[e.node] for e in service.elsewhere)


def _owner(plan: Plan, program: str) -> ServicePlan | None:
    return next((s for s in plan.services if any(p.name == program for p in s.replicas)), None)
