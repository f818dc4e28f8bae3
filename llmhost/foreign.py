"""What services with a command of their own find on this machine: their program, its environment, a model, ports."""

from __future__ import annotations

import os
import shutil
import socket
import zlib
from collections.abc import Callable, Collection, Iterator

from llmhost.config import Config, Service
from llmhost.config_foreign import Environment, fill
from llmhost.env import Progress
from llmhost.env.environments import ensure_environment, find_environment
from llmhost.errors import ConfigError, EngineError, LlmhostError, ModelError, PlanError
from llmhost.facts import EngineFacts, ForeignFacts, PortFacts
from llmhost.gateway.foreign import require_routed_paths
from llmhost.paths import Home, in_user_home
from llmhost.plan import Plan, ServicePlan
from llmhost.plan.foreign import LOOPBACK, own_ports
from llmhost.probe.gpus import read_gpus
from llmhost.probe.model import models_directory, resolve_model
from llmhost.supervise import lifecycle
from llmhost.supervise.planfile import read_plan

FIRST_PORT, LAST_PORT = 20_000, 32_000
"""Ports for engines: above what servers usually take, below what the kernel gives to clients (from 32768 on)."""
SPARE_PORTS = 8


def needs_vllm(config: Config) -> bool:
    """False when every service brings an engine of its own, or runs on other nodes."""
    own = [s for s in config.services.values() if s.replicas or not config.nodes]
    return not config.services or any(not service.is_foreign for service in own)


def without_vllm(config: Config) -> EngineFacts | None:
    """What stands for an engine where nobody needs vLLM: only what the services are planned for, GPUs or the CPU.

    None where somebody does.
    """
    if needs_vllm(config):
        return None
    device = config.engine.device
    if device == "auto":
        device = "cuda" if any(not gpu.mig for gpu in read_gpus().gpus) else "cpu"
    return EngineFacts("none", "", device, "", {}, (), ())


def ensure_environments(home: Home, config: Config, progress: Progress) -> None:
    """Build what services need and what is not there; see `ensure_environment`."""
    for name, environment in dict(_environments(config)).items():
        ensure_environment(home, name, environment, progress)


def has_environments(home: Home, config: Config) -> bool:
    """Whether `ensure_environments` has nothing to do."""
    return all(find_environment(home, *found) for found in _environments(config))


def _environments(config: Config) -> Iterator[tuple[str, Environment]]:
    for name, service in config.services.items():
        if service.replicas and (found := _environment(config, name, service)):
            yield found


def _environment(config: Config, name: str, service: Service) -> tuple[str, Environment] | None:
    """The environment of a service, with its name."""
    written = service.environment
    if written is None:
        return None
    return (written.shared, config.environments[written.shared]) if written.shared else (name, written)


def require_commands(home: Home, config: Config) -> None:
    """What can be said of commands before anything is built or fetched.

    Raises ConfigError for a program that is not there (unless it is still to be installed) and for a file that is
    missing, GatewayError for paths that are not routed.
    """
    for name, service in config.services.items():
        if not service.is_foreign:
            continue
        require_routed_paths(name, service.kind or "none", service.paths)
        if not service.replicas:  # on another node
            continue
        found = _environment(config, name, service)
        place = find_environment(home, *found) if found else None
        if place or not found:
            _program(home, name, service, str(place or ""))


def read_foreign(home: Home, config: Config) -> dict[str, ForeignFacts]:
    """By service. Raises EngineError for an environment that is not built, ConfigError for a program that is not
    there, ModelError for a model that is not."""
    return {name: _read(home, config, name, s) for name, s in config.services.items() if s.is_foreign and s.replicas}


def _read(home: Home, config: Config, name: str, service: Service) -> ForeignFacts:
    bin_directory = ""
    if found := _environment(config, name, service):
        place = find_environment(home, *found)
        if place is None:
            raise EngineError(f"the environment {found[0]} is not built yet", "build it with `llmhost setup`")
        bin_directory = str(place)
    program = _program(home, name, service, bin_directory)
    return ForeignFacts(program, bin_directory, _model_dir(home, config, name, service))


def _program(home: Home, name: str, service: Service, bin_directory: str) -> str:
    """The absolute path of the first word; what stands in its environment comes first."""
    word = fill(service.command[0], _only_home(home))
    if "/" in word:
        path = home.root / in_user_home(f"services.{name}.command", word)
        if not os.access(path, os.X_OK) or path.is_dir():
            raise ConfigError(f"services.{name}.command: {path} is no program that can be run", "see `ls -l` of it")
        return str(path)
    written = service.env.get("PATH")
    path_variable = os.environ.get("PATH", os.defpath) if written is None else fill(written, _only_home(home))
    found = shutil.which(word, path=os.pathsep.join(filter(None, (bin_directory, path_variable))))
    if found is None:
        where = f"in {bin_directory} or on PATH" if bin_directory else "on PATH"
        raise ConfigError(
            f"services.{name}.command: there is no program {word} {where}",
            "install it, write its path, or name the package that has it under environment: {requirements: […]}",
        )
    return os.path.abspath(found)


def _only_home(home: Home) -> Callable[[str], str]:
    """What stands for placeholders before there is a plan."""
    return lambda placeholder: str(home.root) if placeholder == "home" else ""


def _model_dir(home: Home, config: Config, name: str, service: Service) -> str:
    if service.model_dir is None:
        return ""
    try:
        path = resolve_model(service.model_dir, models_directory(home, config), home.root)
    except LlmhostError as e:
        raise type(e)(f"services.{name}.model_dir: {e.message}", e.hint) from e
    if not path.is_dir():
        raise ModelError(f"services.{name}.model_dir: {path} is no directory", "write one, or hf:owner/name")
    return str(path)


def read_ports(home: Home, config: Config) -> PortFacts:
    """The ports of the plan in force that its programs have or can have again, and free ones."""
    plan = read_plan(home)
    ours = [p for p in plan.programs if p.ports] if plan else []
    running = _running(home) if ours else frozenset()
    held = {p.name: dict(p.ports) for p in ours if p.name in running or all(map(_is_free, p.ports.values()))}
    taken = {port for ports in held.values() for port in ports.values()}
    foreign = [s for s in config.services.values() if s.is_foreign]
    if not foreign:
        return PortFacts(held)
    # For each replica, twice: in a surge its successor runs beside it.
    count = sum(2 * s.replicas * len(own_ports(s)) for s in foreign) + SPARE_PORTS
    free = (port for port in _candidates(home) if port not in taken and _is_free(port))
    return PortFacts(held, tuple(port for port, _ in zip(free, range(count), strict=False)))


def _running(home: Home) -> frozenset[str]:
    """Programs that have their ports; one that does not start may wait for somebody else to leave them."""
    names = lifecycle.running(home)
    states = lifecycle.states(home, names).values() if names else ()
    return frozenset(state.name for state in states if state.state not in ("queued", "backoff"))


def _candidates(home: Home) -> Iterator[int]:
    """All ports for engines; each home begins elsewhere, so that two on a machine are rarely in each other's way."""
    size = LAST_PORT - FIRST_PORT
    begin = zlib.crc32(os.fsencode(home.root)) % size
    return (FIRST_PORT + (begin + i) % size for i in range(size))


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


def require_movable(plan: Plan, chosen: Collection[str]) -> None:
    """Raise PlanError for services whose second engines, at other addresses, could not take over from the first.

    Those would need ports, which only a new plan has; others know the address of the first; and nobody moves those who
    ask a helper.
    """
    for service in (s for s in plan.services if s.name in chosen):
        if not service.routed:
            raise PlanError(
                f"{service.name} is a helper, and who asks it would go on asking the first one", "leave --surge out"
            )
        if any(replica.ports for replica in service.replicas):
            raise PlanError(
                f"{service.name} listens on a TCP port, so no second one can start beside it",
                "let it listen on {uds} where it can, or leave --surge out",
            )
        told = _told_of(plan, service)
        if told:
            raise PlanError(
                f"{told} was given the socket of {service.name}, and a second one has another",
                "run `llmhost up --surge` after a change of it, or leave --surge out",
            )


def _told_of(plan: Plan, service: ServicePlan) -> str:
    """The first program of another service in whose command or environment a socket of this one stands, or ''."""
    sockets = [p.socket for p in service.replicas if p.socket]
    others = (p for s in plan.services if s.name != service.name and s.foreign for p in s.replicas)
    texts = ((p.name, (*p.argv, *p.env.values())) for p in others)
    return next((name for name, found in texts if any(s in text for s in sockets for text in found)), "")
