"""config -> facts -> plan -> render -> write -> supervise: the whole way, in one readable place.

Effects happen here only through the modules at the edges; what is decided is decided in `llmhost.plan`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from llmhost import balancing, deploy, foreign, nodes, ports, rollout, stopping
from llmhost.config import Config
from llmhost.diagnosis.preflight import require_startable
from llmhost.env import Progress, ensure_engine, find_engine
from llmhost.env.flashinfer import withdraw_unfit
from llmhost.errors import ConfigError, NotReadyError
from llmhost.facts import Gpu
from llmhost.gateway_address import GATEWAY_PROGRAM, METRICS_PROGRAM
from llmhost.homedir import claim, is_ours, require_access, require_claimable, require_writable
from llmhost.in_force import load_plan, select_rolling, select_services, with_needs, with_parts
from llmhost.machine import read_running, require_room_beside
from llmhost.models import pull_missing, read_models
from llmhost.outlook import changed
from llmhost.paths import Home
from llmhost.plan import Plan
from llmhost.plan.cpu import missing_bytes
from llmhost.plan.gpu import gpus_have_room
from llmhost.plan.groups import refuse_surge
from llmhost.plan.machine import Machine
from llmhost.plan.running import NOTHING, Running, beside
from llmhost.planning import Inputs, load_config, read_inputs
from llmhost.probe.certificate import check_certificate
from llmhost.probe.endpoint import check_endpoints
from llmhost.probe.gpus import read_gpus
from llmhost.spanning import prepare
from llmhost.stopped import after_start, not_stopped, read_stopped, write_stopped
from llmhost.supervise import daemon, lifecycle
from llmhost.supervise.lock import home_lock
from llmhost.supervise.planfile import read_plan
from llmhost.supervise.status import require_awake


@dataclass(frozen=True)
class Started:
    """The plan in force, and the programs that were asked for."""

    plan: Plan
    programs: tuple[str, ...]
    begun: tuple[str, ...] = ()
    """Of these, those that did not run before."""


def up(
    home: Home,
    services: tuple[str, ...],
    progress: Progress,
    *,
    surge: bool = False,
    rebalance: bool = False,
    insecure: bool = False,
) -> Started:
    """Make this machine serve what llmhost.yaml says; returns when everything is started, not when it is ready.

    ``services`` limits what is started to these; everything that runs and changed is restarted all the same: one after
    another where several serve the same, with ``surge`` beside the present one. With ``rebalance`` cores and memory are
    shared out anew among all. ``insecure`` is ``gateway.insecure`` of llmhost.yaml, for this once.
    """
    config = _take(home, services, insecure)
    pull_missing(home, config, with_needs({name: s.needs for name, s in config.services.items()}, services), progress)
    _build(home, config, progress)
    with _turn(home, "up"):  # from the beginning: what is asked for while we plan comes after us
        ask, there = read_inputs(home, insecure), read_running(home)
        _require_in_file(services, ask.config)
        services = with_needs({name: s.needs for name, s in ask.config.services.items()}, services)
        plan = ask.plan(NOTHING if rebalance else there)
        if surge:
            surging = frozenset(changed(home, plan, there, select_services(plan, services)))
            plan = ask.plan(replace(there, surge=surging))
        wanted = (GATEWAY_PROGRAM, *_programs(plan, services))
        _remember_start(home, plan, services)
        _deploy(home, ask, plan, there, wanted, progress)
    return Started(plan, wanted)


def reload(home: Home, progress: Progress, *, surge: bool = False) -> Started:
    """`up` for what was not stopped on purpose: that stays stopped. ``surge`` as there."""
    _build(home, _take(home, (), insecure=False), progress)
    with _turn(home, "reload"):
        ask, there = read_inputs(home, insecure=False), read_running(home)
        plan = ask.plan(there)
        if surge:
            surging = frozenset(changed(home, plan, there, plan.services))
            plan = ask.plan(replace(there, surge=surging))
        wanted = not_stopped(home, (GATEWAY_PROGRAM, *_programs(plan, ())))
        _deploy(home, ask, plan, there, wanted, progress)
    return Started(plan, wanted)


def _take(home: Home, services: tuple[str, ...], insecure: bool) -> Config:
    """llmhost.yaml, and its home is ours; nothing is made where that is refused: the home may be misspelt.

    What would make every start fail is told now, not after models of many GB are fetched.
    """
    require_claimable(home)
    config = load_config(home, insecure)
    if not config.services:
        raise ConfigError(
            f"{home.config_file} has no services", "write some under services:, or use `llmhost down` to stop what runs"
        )
    _require_in_file(services, config)
    config = nodes.own_config(home, config)
    claim(home)
    require_startable(home, config)
    foreign.require_commands(home, config)
    return config


def _build(home: Home, config: Config, progress: Progress) -> None:
    """Build the engine when it is not there; what can be refused is not refused after these minutes."""
    if foreign.needs_vllm(config) and find_engine(home, config.engine) is None:
        read_models(home, config)
        ports.require_of_config(home, config)
        ensure_engine(home, config.engine, progress)
    foreign.ensure_environments(home, config, progress)


def withdraw_kernels(home: Home, gpus: Sequence[Gpu], note: Callable[[str], None]) -> None:
    """No engine loads kernels that a bundle brought for other GPUs than these, which this machine has now."""
    try:
        withdraw_unfit(home, gpus)
    except OSError as e:
        note(f"{e.filename} has kernels for other GPUs than these: delete it")


def _deploy(home: Home, ask: Inputs, plan: Plan, there: Running, wanted: tuple[str, ...], progress: Progress) -> None:
    """Check what only this machine can tell, then bring it to the plan."""
    if ask.whole is not None:
        nodes.write_shared(home, ask.whole)
    withdraw_kernels(home, ask.machine.gpus, progress.note)
    prepare(home, ask.config.services, ask.machine.engine, ask.machine.secret)
    ports.require_of_config(home, ask.config)
    ports.require_of_node(home, plan)
    for endpoint in check_endpoints(ask.config, ask.machine.endpoints):
        progress.note(f"{endpoint} does not answer; it gets requests when it does")
    if plan.gateway.tls is not None:
        check_certificate(plan.gateway.tls.certificate, plan.gateway.tls.key, plan.gateway.tls.client_ca)
    fits = _fits(plan, ask.machine, there)
    rollout.apply(home, read_plan(home), plan, (*wanted, METRICS_PROGRAM), progress, fits)
    balancing.rebind(home)


@contextmanager
def _turn(home: Home, command: str) -> Iterator[None]:
    """The home's lock for a command that starts something; what a killed one left out of balancing is back then."""
    with home_lock(home, command):
        require_awake(home)
        require_writable(home)
        balancing.restore(home)
        yield


def _remember_start(home: Home, plan: Plan, services: tuple[str, ...]) -> None:
    every = (s.name for s in plan.services)
    services = with_parts(plan, services)
    alone = not daemon.is_running(home)
    write_stopped(home, after_start(read_stopped(home), services, every, alone=alone))


def _fits(plan: Plan, machine: Machine, there: Running) -> Callable[[Collection[str]], bool]:
    """Whether engines that run have room beside all of a plan."""
    new = {p.name: p for p in plan.programs}

    def fits(names: Collection[str]) -> bool:
        old = [p for p in there.programs if p.name in names and p.name not in new]
        every = (*new.values(), *old)
        return missing_bytes(every, machine.host) == 0 and gpus_have_room(every, machine.gpus)

    return fits


def down(home: Home, progress: stopping.Told) -> bool:
    """Stop everything of this home, engines first; False when nothing was running."""
    require_access(home)
    if not is_ours(home):
        return False
    with home_lock(home, "down"):
        found = stopping.stop_everything(home, progress)
    daemon.settle_unit(home)
    return found


def start(home: Home, services: tuple[str, ...], progress: stopping.Told) -> Started:
    """Start services, and the gateway, as the last `up` left them."""
    plan = load_plan(home)
    services = with_needs({s.name: s.needs for s in plan.services}, services)
    wanted = (GATEWAY_PROGRAM, *_programs(plan, services))
    with _turn(home, "start"):
        ports.require_of_plan(home, plan)
        _remember_start(home, plan, services)
        if not daemon.is_running(home):
            withdraw_kernels(home, read_gpus().gpus, progress.note)
        daemon.ensure_running(home)
        begun = lifecycle.start(home, (*wanted, METRICS_PROGRAM))
        balancing.rebind(home)
    return Started(plan, wanted, tuple(name for name in wanted if name in begun))


def stop(home: Home, services: tuple[str, ...], progress: stopping.Told) -> tuple[str, ...]:
    """Stop services (all of them, and then the gateway, when none is named), also on a full disk; those that ran."""
    plan = load_plan(home)
    names = _programs(plan, services)
    with home_lock(home, "stop"):
        require_awake(home)
        stopping.remember(home, plan, with_parts(plan, services), progress)
        if not daemon.is_running(home):
            return ()
        beside = () if services else _beside(home, plan)
        stopped = stopping.stop_engines(home, plan, (*names, *beside), progress)
        return stopped if services else (*stopped, *lifecycle.stop(home, (GATEWAY_PROGRAM, METRICS_PROGRAM)))


def _beside(home: Home, plan: Plan) -> tuple[str, ...]:
    """What runs and no name reaches: a change that was cut off started it."""
    known = {GATEWAY_PROGRAM, METRICS_PROGRAM, *(p.name for p in plan.programs)}
    return tuple(sorted(lifecycle.running(home) - known))


def restart(home: Home, services: tuple[str, ...], progress: stopping.Told) -> Started:
    """Stop services and start them again; the gateway goes on, it has nothing to restart for."""
    plan = load_plan(home)
    names = _programs(plan, services)
    with _turn(home, "restart"):
        ports.require_of_plan(home, plan)
        _remember_start(home, plan, services)
        daemon.ensure_running(home)
        stopping.stop_engines(home, plan, names, progress)
        lifecycle.start(home, (GATEWAY_PROGRAM, METRICS_PROGRAM, *names))
        balancing.rebind(home)
    return Started(plan, (GATEWAY_PROGRAM, *names))


def restart_rolling(home: Home, services: tuple[str, ...], progress: stopping.Told) -> Started:
    """Restart the engines of services one after another, while the others of the same service serve.

    Raises ConfigError for a service with one engine, and NotReadyError when nothing is running or an engine does not
    come back; the rest of them is left alone then.
    """
    plan = load_plan(home)
    chosen = select_rolling(plan, services)
    alone = [s.name for s in chosen if len(s.replicas) == 1 and not (s.endpoints or s.elsewhere)]
    if alone:
        raise ConfigError(
            f"{', '.join(alone)}: one replica only, so nobody would answer while it restarts",
            f"use `llmhost restart --surge {alone[0]}`, or write replicas: 2 and run `llmhost up`",
        )
    with _turn(home, "restart --rolling"):
        _require_live(home)
        _remember_start(home, plan, services)
        rollout.roll(home, plan, chosen, progress)
    return Started(plan, (GATEWAY_PROGRAM, *_programs(plan, services)))


def restart_surge(home: Home, services: tuple[str, ...], progress: stopping.Told) -> Started:
    """Start new engines of services beside the present ones, let them take over, then stop those.

    Raises PlanError when there is no room for both, and NotReadyError when a new one does not become ready; the present
    ones go on then.
    """
    with _turn(home, "restart --surge"):
        plan = deploy.with_secrets(home, load_plan(home))
        _require_live(home)
        chosen = frozenset(s.name for s in select_services(plan, services))
        foreign.require_movable(plan, chosen)
        refuse_surge(chosen, {s.name for s in plan.services if any(p.group for p in s.replicas)})
        there = replace(read_running(home), surge=chosen)
        moved = tuple(beside(s, there, home) if s.name in chosen else s for s in plan.services)
        new = replace(plan, services=moved)
        second = (p for s in moved if s.name in chosen for p in s.replicas)
        require_room_beside(home, plan.engine, chosen, (*there.programs, *second))
        wanted = (GATEWAY_PROGRAM, *_programs(new, services))
        _remember_start(home, plan, services)
        rollout.apply(home, plan, new, (*wanted, METRICS_PROGRAM), progress, lambda _: True)
    return Started(new, wanted)


def _require_live(home: Home) -> None:
    if not balancing.is_live(home):
        raise NotReadyError("the gateway is not running, so there is nobody to keep serving", "run `llmhost start`")


def _programs(plan: Plan, services: tuple[str, ...]) -> tuple[str, ...]:
    """The program names of these services, of all when none is named."""
    return tuple(r.name for s in select_services(plan, services) for r in s.replicas)


def _require_in_file(asked: Iterable[str], config: Config) -> None:
    for name in asked:
        if name not in config.services:
            raise ConfigError(f"there is no service {name}", f"llmhost.yaml has: {', '.join(config.services)}")
