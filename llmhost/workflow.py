"""config -> facts -> plan -> render -> write -> supervise: the whole way, in one readable place.

Effects happen here only through the modules at the edges; what is decided is decided in `llmhost.plan`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from llmhost import config as configuration
from llmhost import writer
from llmhost.config import Config
from llmhost.env import Progress, ensure_engine, find_engine
from llmhost.errors import ConfigError, EngineError, GatewayError, LlmhostError, NotReadyError
from llmhost.facts import EngineFacts, ModelFacts
from llmhost.gateway import gateway_versions, render_gateway
from llmhost.gateway_address import ACCESS_LOG, GATEWAY_PROGRAM
from llmhost.homedir import claim, is_ours
from llmhost.paths import Home
from llmhost.plan import Plan, ServicePlan
from llmhost.plan.args import vllm_arguments
from llmhost.plan.build import Machine, make_plan
from llmhost.probe.gateway import read_gateway
from llmhost.probe.host import port_owner, read_host
from llmhost.probe.model import read_model, resolve_model
from llmhost.probe.tools import find_tools
from llmhost.render import render
from llmhost.stopped import after_start, after_stop, read_stopped, write_stopped
from llmhost.supervise import daemon, lifecycle
from llmhost.supervise.lock import home_lock
from llmhost.supervise.planfile import read_plan
from llmhost.supervise.states import ProgramState
from llmhost.supervise.status import read_status
from llmhost.templates import template_environment

START_MARGIN = 60.0
"""Seconds beyond ``start_timeout``: a program may wait for the start lock of another."""

GATEWAY_SECONDS = 20.0
"""Seconds for Envoy to take up new files and to find new engines healthy."""
GATEWAY_POLL_SECONDS = 0.1

SETTLED = ("ready", "failed", "stopped")
"""States that a starting program does not leave by itself."""


@dataclass(frozen=True)
class Started:
    """The plan in force, and the programs that were asked for."""

    plan: Plan
    programs: tuple[str, ...]


def setup(home: Home, progress: Progress) -> EngineFacts:
    """Build the engine that llmhost.yaml asks for (the default one when there is no llmhost.yaml yet)."""
    claim(home)
    config = configuration.load(home.config_file) if home.config_file.exists() else Config()
    return ensure_engine(home, config.engine, progress)


def up(home: Home, services: tuple[str, ...], progress: Progress) -> Started:
    """Make this machine serve what llmhost.yaml says; returns when everything is started, not when it is ready.

    ``services`` limits what is started to these; everything that runs and changed is restarted all the same.
    """
    claim(home)
    with home_lock(home, "up"):  # from the beginning: what is asked for while we plan comes after us
        plan = _plan_with_engine(home, services, progress)
        wanted = (GATEWAY_PROGRAM, *_programs(plan, services))
        _check_ports(home, plan)
        writer.apply(home, writer.changes(home, render(plan)))
        _remember_start(home, plan, services)
        daemon.ensure_running(home)
        lifecycle.converge(home, wanted)
    return Started(plan, wanted)


def reload(home: Home, progress: Progress) -> Started:
    """`up` for what was not stopped on purpose: that stays stopped."""
    claim(home)
    with home_lock(home, "reload"):
        plan = _plan_with_engine(home, (), progress)
        _check_ports(home, plan)
        writer.apply(home, writer.changes(home, render(plan)))
        daemon.ensure_running(home)
        wanted = not_stopped(home, (GATEWAY_PROGRAM, *_programs(plan, ())))
        lifecycle.converge(home, wanted)
    return Started(plan, wanted)


def _plan_with_engine(home: Home, services: tuple[str, ...], progress: Progress) -> Plan:
    """The plan for llmhost.yaml, which must have these services; builds the engine when it is not there."""
    config = configuration.load(home.config_file)
    _require_known(services, config.services)
    models = read_models(home, config)
    engine = ensure_engine(home, config.engine, progress)
    return make_plan(config, _machine(home, engine), models)


def not_stopped(home: Home, programs: Iterable[str]) -> tuple[str, ...]:
    """Those of these programs that nobody stopped on purpose."""
    stopped = read_stopped(home)

    def wanted(program: str) -> bool:
        return not stopped.gateway if program == GATEWAY_PROGRAM else service_of(program) not in stopped.services

    return tuple(filter(wanted, programs))


def service_of(program: str) -> str:
    """The service that an engine's program belongs to."""
    return program.rpartition("-")[0]


def _remember_start(home: Home, plan: Plan, services: tuple[str, ...]) -> None:
    every = (s.name for s in plan.services)
    alone = not daemon.is_running(home)
    write_stopped(home, after_start(read_stopped(home), services, every, alone=alone))


def await_ready(home: Home, started: Started, timeout: float | None, on_change: Callable[[ProgramState], None]) -> None:
    """Wait until every program that was asked for is ready or has failed.

    ``timeout`` in seconds; by default as long as the slowest service may take. Raises NotReadyError naming those that
    are not ready, with their causes.
    """
    longest = max((s.start_timeout for s in started.plan.services), default=0) + START_MARGIN
    deadline = time.monotonic() + (longest if timeout is None else timeout)
    pending, last = set(started.programs), dict[str, ProgramState]()
    while pending:
        last |= lifecycle.wait_ready(home, pending, deadline - time.monotonic(), on_change)
        settled = {name for name in pending if last[name].state in SETTLED}
        if not settled:
            break
        pending -= settled
    _require_ready(last)
    _await_gateway(home, started)


def _await_gateway(home: Home, started: Started) -> None:
    """Wait until Envoy has taken up its files and sends requests to every engine that was started.

    It checks the engines by itself, so it can be a second behind their guards; a client would get 503 in between.
    """
    versions = gateway_versions(render_gateway(started.plan))
    sockets = {r.socket for r in started.plan.programs if r.name in started.programs}
    deadline = time.monotonic() + GATEWAY_SECONDS
    while True:
        state = read_gateway(home.gateway_admin_socket)
        served = frozenset[str]().union(*state.healthy.values())
        if state.serves(versions) and sockets <= served:
            return
        if time.monotonic() > deadline:
            raise GatewayError(
                f"the gateway does not serve {', '.join(sorted(sockets - served)) or 'its new configuration'}"
                + (f": {'; '.join(state.errors)}" if state.errors else ""),
                "see `llmhost logs gateway`",
            )
        time.sleep(GATEWAY_POLL_SECONDS)


def _require_ready(states: Mapping[str, ProgramState]) -> None:
    missing = [s for s in states.values() if s.state != "ready"]
    if missing:
        causes = "; ".join(f"{s.name} is {s.state}" + (f" ({s.error})" if s.error else "") for s in missing)
        service = missing[0].name.rpartition("-")[0] or missing[0].name
        raise NotReadyError(causes, f"see `llmhost logs {service}` and `llmhost status`")


def down(home: Home, on_progress: lifecycle.Progress) -> bool:
    """Stop everything of this home; False when nothing was running."""
    if not is_ours(home):
        return False
    with home_lock(home, "down"):
        found = daemon.shutdown(home, on_progress)
    daemon.settle_unit(home)
    return found


def start(home: Home, services: tuple[str, ...]) -> Started:
    """Start services, and the gateway, as the last `up` left them."""
    plan = load_plan(home)
    wanted = (GATEWAY_PROGRAM, *_programs(plan, services))
    with home_lock(home, "start"):
        _remember_start(home, plan, services)
        daemon.ensure_running(home)
        lifecycle.start(home, wanted)
    return Started(plan, wanted)


def stop(home: Home, services: tuple[str, ...], on_progress: lifecycle.Progress) -> tuple[str, ...]:
    """Stop services (all of them, and the gateway, when none is named); the programs that ran."""
    plan = load_plan(home)
    names = _programs(plan, services)
    with home_lock(home, "stop"):
        write_stopped(home, after_stop(read_stopped(home), services, (s.name for s in plan.services)))
        if not daemon.is_running(home):
            return ()
        return lifecycle.stop(home, names if services else (*names, GATEWAY_PROGRAM), on_progress)


def restart(home: Home, services: tuple[str, ...], on_progress: lifecycle.Progress) -> Started:
    """Stop services and start them again; the gateway goes on, it has nothing to restart for."""
    plan = load_plan(home)
    names = _programs(plan, services)
    with home_lock(home, "restart"):
        _remember_start(home, plan, services)
        daemon.ensure_running(home)
        lifecycle.restart(home, names, on_progress)
        lifecycle.start(home, (GATEWAY_PROGRAM,))
    return Started(plan, (GATEWAY_PROGRAM, *names))


def load_plan(home: Home) -> Plan:
    """The plan in force; raises NotReadyError before the first `up`."""
    plan = read_plan(home)
    if plan is None:
        raise NotReadyError(f"nothing has been brought up in {home.root} yet", "run `llmhost up`")
    return plan


def select_services(plan: Plan, names: tuple[str, ...]) -> tuple[ServicePlan, ...]:
    """The services of these names, all when none is given; raises ConfigError for one that is not in the plan."""
    _require_known(names, [s.name for s in plan.services])
    return tuple(s for s in plan.services if not names or s.name in names)


def log_files(home: Home, names: tuple[str, ...]) -> dict[str, Path]:
    """The log file of each program, of all services and the gateway when none is named.

    A service that has the name of one of our own logs hides it.
    """
    plan = load_plan(home)
    own = [n for n in (GATEWAY_PROGRAM, ACCESS_LOG, "supervisord") if plan.service(n) is None]
    engines = select_services(plan, tuple(n for n in names if n not in own))
    if names and not set(names) - set(own):
        engines = ()
    chosen = [r.name for s in engines for r in s.replicas] + [n for n in own if n in (names or (GATEWAY_PROGRAM,))]
    return {name: home.log_file(name) for name in chosen}


def make_home_plan(home: Home) -> Plan:
    """The plan for a home whose engine is built; changes nothing. Raises EngineError when it is not."""
    config = configuration.load(home.config_file)
    models = read_models(home, config)
    engine = find_engine(home, config.engine)
    if engine is None:
        raise EngineError(
            f"the engine {config.engine.name} is not built yet, so vLLM's flags are not known",
            "build it with `llmhost setup`",
        )
    return make_plan(config, _machine(home, engine), models)


def validate_arguments(home: Home, config: Config) -> bool:
    """Check the flags under ``args:`` against the engine; False when there is no engine to check against."""
    engine = find_engine(home, config.engine)
    if engine is None:
        return False
    for name, service in config.services.items():
        vllm_arguments(name, service.args, engine.flags)
    return True


def write_config(home: Home, *, demo: bool, port: int = 8000) -> bool:
    """Write a commented llmhost.yaml; False (and nothing is touched) when there is one already."""
    claim(home)
    if home.config_file.exists():
        return False
    template = template_environment().get_template("llmhost.yaml.j2")
    writer.replace_file(home.config_file, template.render(home=home.root, demo=demo, port=port), mode=0o600)
    return True


def require_demo_config(home: Home, port: int) -> None:
    """Write the demo's llmhost.yaml, or make sure that the one that is there is the demo's."""
    if write_config(home, demo=True, port=port):
        return
    config = configuration.load(home.config_file)
    if not any(service.model.startswith("demo:") for service in config.services.values()):
        raise ConfigError(
            f"{home.config_file} exists and is not the demo",
            "run `llmhost up` for it, or give the demo a home of its own with --home",
        )


def read_models(home: Home, config: Config) -> dict[str, ModelFacts]:
    """The facts of every service's model by service name; raises ModelError naming the service."""
    models_dir = Path(config.models_dir).expanduser() if config.models_dir else home.models
    facts: dict[str, ModelFacts] = {}
    for name, service in config.services.items():
        try:
            facts[name] = read_model(resolve_model(service.model, models_dir, home.root), service.kind)
        except LlmhostError as e:
            raise type(e)(f"services.{name}.model: {e.message}", e.hint) from e
    return facts


def _machine(home: Home, engine: EngineFacts) -> Machine:
    return Machine(home, read_host(), find_tools(), engine)


def _programs(plan: Plan, services: tuple[str, ...]) -> tuple[str, ...]:
    """The program names of these services, of all when none is named."""
    return tuple(r.name for s in select_services(plan, services) for r in s.replicas)


def _require_known(asked: Iterable[str], known: Collection[str]) -> None:
    for name in asked:
        if name not in known:
            raise ConfigError(f"there is no service {name}", f"llmhost.yaml has: {', '.join(known) or 'none'}")


def _check_ports(home: Home, plan: Plan) -> None:
    """Refuse a port that somebody else listens on, by name; our own gateway may go on listening on its ports."""
    ours = _ports_in_force(home)
    for key, port in _ports(plan).items():
        owner = None if (plan.gateway.host, port) in ours else port_owner(plan.gateway.host, port)
        if owner is not None:
            raise GatewayError(
                f"port {port} on {plan.gateway.host} is in use by {owner}",
                f"stop it, or write another {key} in llmhost.yaml",
            )


def _ports(plan: Plan) -> dict[str, int]:
    """The ports that the gateway listens on, by their key in llmhost.yaml."""
    own = {f"services.{s.name}.port": s.port for s in plan.services if s.port is not None}
    return {"gateway.port": plan.gateway.port, **own}


def _ports_in_force(home: Home) -> set[tuple[str, int]]:
    """Where our running gateway listens."""
    status = read_status(home)
    plan = read_plan(home)
    if plan is None or status.gateway.pid is None:
        return set()
    return {(plan.gateway.host, port) for port in _ports(plan).values()}
