"""From the plan in force to the next one without losing a request: what happens when is computed first, then done.

While engines change, the gateway's clusters hold the engines of both plans; its routes are switched once, when whoever
is to answer a name can answer it. An engine is stopped only when it gets no more requests and has finished those that
it had. The next plan is the plan in force when all of that is done: after an error or Ctrl-C, `up` goes on from there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import takewhile

from llmhost import balancing, deploy, readiness, writer
from llmhost.errors import NotReadyError
from llmhost.gateway_address import GATEWAY_PROGRAM
from llmhost.paths import Home
from llmhost.plan import Plan, ServicePlan
from llmhost.plan.running import service_of
from llmhost.plan.starting import start_seconds, start_seconds_elsewhere
from llmhost.stages import Before, Stages, followers, heirs_of, members_on_nodes, others_of, stages
from llmhost.stopped import not_stopped
from llmhost.stopping import Told, drain, noting, waiting
from llmhost.supervise import daemon, lifecycle
from llmhost.supervise.lifecycle import Actions
from llmhost.supervise.states import ProgramState
from llmhost.writer import FileChange

STARTING = ("queued", "loading", "backoff")
"""States of programs that hold the start lock of their GPUs, or will want it."""


@dataclass
class Rollout:
    """One change of a home, while its gateway serves. `run` does it; every error leaves engines that can serve."""

    home: Home
    before: Before
    plan: Plan
    actions: Actions
    told: Told
    fits: Callable[[Collection[str]], bool]
    stages: Stages = field(init=False)

    def __post_init__(self) -> None:
        self.stages = stages(self.before, self.plan, self.actions, self.fits)

    def run(self) -> None:
        """The whole change; returns when everything is started, and what takes over from others is ready.

        Raises NotReadyError when an engine that must take over does not become ready, GatewayError, SupervisorError.
        """
        try:
            self._change()
        except BaseException:  # Ctrl-C, too: whatever is healthy gets requests again; what has stopped is not
            with noting(self.told):
                for plan in (self.before.plan, self.plan):
                    balancing.put_back(self.home, plan.services, {p.socket for p in plan.programs})
            raise

    def _change(self) -> None:
        stages = self.stages
        self._warn()
        self._write_union()
        early = bool(stages.cramped) and self._others_follow()
        if early:
            self._switch()
        self._leave(stages.leave_first)
        self._renew(stages.at_once)
        lifecycle.renew(self.home, self.actions.refresh, then_start=False)
        lifecycle.take_over(self.home, self.actions.add)
        lifecycle.start(self.home, stages.start)
        self._await_heirs()
        for program in stages.one_by_one:
            self._replace(program)
        if not early:
            self._switch()
        self._renew(stages.after_switch)
        self._leave(stages.leave_last)
        self._finish()

    def _warn(self) -> None:
        alone = [p for p in (*self.stages.at_once, *self.stages.after_switch) if self.before.serves(p)]
        if alone:
            self.told.note(f"restarting {', '.join(alone)}: 503 until ready again (--surge or replicas: 2 avoid that)")

    def _write_union(self) -> None:
        """Clusters that hold the engines of both plans; routes and listeners stay as they are."""
        leaving = set(self.stages.leave_first) - set(self.stages.cramped)  # those serve until the routes are switched
        out = balancing.sockets(self.before.plan, leaving) | self._unproven()
        deploy.write_united(self.home, self.plan, out, balancing.await_clusters)

    def _unproven(self) -> frozenset[str]:
        """Heirs of which the gateway would only see that they listen: those that have no path for it to look at, and
        those beside engines that are looked at in another way."""
        former = {s.name: s.foreign for s in self.before.plan.services}
        unproven = {
            s.name for s in self.plan.services
            if s.foreign != former.get(s.name, s.foreign) or (s.foreign and not s.foreign.looked_at)
        }  # fmt: skip
        return balancing.sockets(self.plan, [p for p in self.stages.heirs if service_of(p) in unproven])

    def _leave(self, programs: tuple[str, ...]) -> None:
        self._drain(self.before.plan, programs)
        lifecycle.retire(self.home, programs, waiting(self.told))

    def _renew(self, programs: tuple[str, ...]) -> None:
        self._drain(self.before.plan, programs)
        lifecycle.renew(self.home, programs, waiting(self.told))
        deploy.renew_members(self.home, self.plan, balancing.sockets(self.plan, programs))
        balancing.put_back(self.home, self.plan.services, balancing.sockets(self.plan, programs))

    def _await_heirs(self) -> None:
        # Own engines first: a node that gives something in return waits for them, as this one does for those there.
        if self.stages.heirs:
            await_serving(self.home, self.plan, self.stages.heirs, self.told)
        for service in (s for s in self.plan.services if s.name in self.stages.elsewhere):
            self._await_elsewhere(service)

    def _await_elsewhere(self, service: ServicePlan) -> None:
        """Another node may just be starting it; endpoints are started by somebody else, and answer or do not."""
        starting = start_seconds_elsewhere(self.plan, service) + readiness.START_MARGIN
        step = f"wait for another host to serve {service.name}"
        self.told.started(step)
        seconds = starting if service.elsewhere else balancing.SECONDS
        if not self._is_served_elsewhere(service, seconds):
            raise NotReadyError(
                f"no other host that serves {service.name} answers; what ran before goes on",
                "see `llmhost status` on that host",
            )
        self.told.finished(step, "ready")

    def _leaving(self, service: ServicePlan) -> frozenset[str]:
        """The members of the plan in force that the next one does not have."""
        former = next((s for s in self.before.plan.services if s.name == service.name), None)
        gone = others_of(self.before.plan, former) - others_of(self.plan, service) if former else frozenset()
        return frozenset(p.socket for p in self.before.plan.programs) | gone

    def _replace(self, program: str) -> None:
        service = _owner(self.plan, program)
        others = members_on_nodes(self.plan, service) & self.before.served
        if others:
            self._await_turn(service, others)
        replace_engine(self.home, self.plan, program, self.told, self._renew_one)

    def _await_turn(self, service: ServicePlan, others: frozenset[str]) -> None:
        """Other nodes may be replacing theirs, too: one after another, so all of them must serve. Who comes later in
        llmhost.yaml looks later, so that two do not begin in the same moment. Those that do not come back are not
        waited for without end."""
        ahead = takewhile(lambda node: node.name != self.plan.node, self.plan.nodes)
        rank = sum(e.node == node.name for node in ahead for e in service.elsewhere)
        turn = start_seconds_elsewhere(self.plan, service) + readiness.START_MARGIN
        deadline, waits = time.monotonic() + turn * len(service.elsewhere), False
        while time.monotonic() < deadline:
            if others <= balancing.served(self.home):
                time.sleep(balancing.ALL_NODES_SECONDS * rank)
                if others <= balancing.served(self.home):
                    return
            if not waits:
                self.told.note(f"another node replaces its engine of {service.name}; this one comes after it")
                waits = True
            time.sleep(balancing.POLL_SECONDS)
        time.sleep(balancing.ALL_NODES_SECONDS * rank)

    def _renew_one(self, home: Home, programs: Sequence[str]) -> None:
        lifecycle.renew(home, programs)
        deploy.renew_members(home, self.plan, balancing.sockets(self.plan, programs))

    def _others_follow(self) -> bool:
        """Whether other hosts alone take over what has no room here, and serve already; else it is told."""
        found = (s for p in self.stages.cramped for s in followers(p, self.before.plan, self.plan))
        following = {s.name: s for s in found}.values()
        ready = all(not s.replicas and self._is_served_elsewhere(s, balancing.SECONDS) for s in following)
        if not ready:
            cramped = ", ".join(self.stages.cramped)
            self.told.note(f"no memory for {cramped} beside what takes over: 503 until that is ready")
        return ready

    def _is_served_elsewhere(self, service: ServicePlan, seconds: float) -> bool:
        return balancing.await_others_served(self.home, service.name, self._leaving(service), seconds)

    def _switch(self) -> None:
        """Routes, listeners and whatever else the gateway reads, when all gateways can do without what leaves."""
        stages = self.stages
        if self.plan.peers and (stages.leave_last or stages.after_switch or stages.cramped):
            time.sleep(balancing.ALL_NODES_SECONDS)
        deploy.write_routes(self.home, self.plan)
        if GATEWAY_PROGRAM in self.actions.restart:  # what it was just given may need it, as another address does
            self.told.note("the gateway itself has to restart: connections are cut")
            lifecycle.renew(self.home, (GATEWAY_PROGRAM,))
        balancing.await_files(self.home)

    def _finish(self) -> None:
        """Clusters of the new plan only, which is in force from now on; files that nothing renders any more go."""
        deploy.write_alone(self.home, self.plan, balancing.await_clusters)

    def _drain(self, plan: Plan, programs: Collection[str]) -> None:
        drain(self.home, plan, programs, self.told)


def apply(
    home: Home,
    before: Plan | None,
    plan: Plan,
    wanted: Collection[str],
    told: Told,
    fits: Callable[[Collection[str]], bool],
) -> None:
    """Bring a home from the plan in force to the next one; see `Rollout.run`.

    While the gateway does not serve there is nothing to lose, and everything is changed at once. Raises GatewayError
    when Envoy refuses the new configuration: nothing has changed then.
    """
    _tell_removed(home, before, plan, told)
    serving = before is not None and daemon.is_running(home) and balancing.is_live(home)
    with deploy.present_changes(home, plan) as changes:
        if any(change.path.startswith(deploy.FOLDER) for change in changes):
            deploy.validate(home, plan)
        writer.apply(home, [c for c in changes if not (serving and _comes_later(c))])
    if before is None or not serving:
        daemon.ensure_running(home)
        lifecycle.converge(home, wanted)
        return
    there = Before(before, lifecycle.running(home), balancing.served(home))
    heirs = not_stopped(home, heirs_of(there, plan))
    actions = lifecycle.pending(home, dict.fromkeys((*wanted, *heirs)))
    Rollout(home, there, plan, actions, told, fits).run()


def _tell_removed(home: Home, before: Plan | None, plan: Plan, told: Told) -> None:
    """A service that is no longer in llmhost.yaml is stopped: somebody may have misspelt it."""
    there, known = lifecycle.running(home), {s.name for s in plan.services}
    for service in before.services if before else ():
        if service.name not in known and any(p.name in there for p in service.replicas):
            told.note(f"stopping {service.name}: it is no longer in llmhost.yaml")


def _comes_later(change: FileChange) -> bool:
    return change.new is None or change.path.startswith(deploy.FOLDER) or change.path == "conf/plan.json"


def roll(home: Home, plan: Plan, services: Iterable[ServicePlan], told: Told) -> None:
    """Restart engines one after another; those that do not serve go first, so that more serve while the others do."""
    for service in services:
        served = balancing.served_of(home, service.name)
        for program in sorted(service.replicas, key=lambda p: p.socket in served):
            replace_engine(home, plan, program.name, told, _restart)


def _restart(home: Home, programs: Sequence[str]) -> None:
    lifecycle.restart(home, programs)


def replace_engine(
    home: Home, plan: Plan, program: str, told: Told, again: Callable[[Home, Sequence[str]], None]
) -> None:
    """Stop one engine of several and start it again, while the others serve: nobody who asks the service notices.

    ``again`` stops and starts it. Raises NotReadyError when no other engine of the service serves in time (then this
    one goes on), or when this one does not become ready again.
    """
    service = _owner(plan, program)
    _await_other(home, plan, service, program)
    own = balancing.sockets(plan, {program})
    step = f"replace {program}"
    told.started(step)
    try:
        drain(home, plan, {program}, told)
        again(home, (program,))
        _await_ready(home, plan, program)
    finally:
        balancing.put_back(home, [service], own)
    balancing.await_served(home, plan, {program})
    told.finished(step, "ready")


def _owner(plan: Plan, program: str) -> ServicePlan:
    return next(s for s in plan.services if any(p.name == program for p in s.replicas))


def start_limit(home: Home, plan: Plan, programs: Collection[str]) -> float:
    """Seconds in which these programs should be ready, after what else is just starting on their GPUs."""
    there = lifecycle.states(home, [p.name for p in plan.programs]).values()
    starting = {s.name for s in there if s.state in STARTING}
    return start_seconds(plan, starting | set(programs)) + readiness.START_MARGIN


def _await_other(home: Home, plan: Plan, service: ServicePlan, program: str) -> None:
    """Somebody else must serve; engines that are just starting are waited for, failed ones are not."""
    own = {p.socket for p in service.replicas if p.name == program}
    others = [p.name for p in service.replicas if p.name != program]
    deadline = time.monotonic() + start_limit(home, plan, others)
    while True:
        states = lifecycle.states(home, others).values()
        if _serves_beside(home, service, own, states):
            return
        hopeless = all(s.state in ("failed", "stopped") for s in states)
        if hopeless or time.monotonic() > deadline:
            raise NotReadyError(
                f"no other engine of {service.name} serves, so {program} is left as it is",
                f"see `llmhost status` and `llmhost logs {service.name}`",
            )
        time.sleep(balancing.POLL_SECONDS)


def _serves_beside(home: Home, service: ServicePlan, own: Collection[str], others: Iterable[ProgramState]) -> bool:
    """Whether somebody does what an engine does; the gateway does not know helpers, their guards do.

    The gateway may only know of one that is just starting that it listens, see `llmhost.gateway.elsewhere.united`.
    """
    if not service.routed:
        return any(s.state == "ready" for s in others)
    starting = {s.name for s in others if s.state in STARTING}
    unproven = {p.socket for p in service.replicas if p.name in starting}
    return bool(balancing.served_of(home, service.name) - set(own) - unproven)


def _await_ready(home: Home, plan: Plan, program: str) -> None:
    states = lifecycle.wait_ready(home, (program,), start_limit(home, plan, (program,)))
    if states[program].state != "ready":
        raise readiness.not_ready(home, states.values(), "the others of its service go on")


def await_serving(home: Home, plan: Plan, programs: Sequence[str], told: Told) -> None:
    """Wait until new engines are ready and get requests; raises NotReadyError when one does not."""
    step = f"start {', '.join(programs)} beside what runs"
    told.started(step)
    states = lifecycle.wait_ready(home, programs, start_limit(home, plan, programs))
    if any(s.state != "ready" for s in states.values()):
        raise readiness.not_ready(home, states.values(), "what ran before goes on")
    balancing.put_back(home, plan.services, balancing.sockets(plan, programs))
    balancing.await_served(home, plan, programs)
    told.finished(step, "ready")
