"""Config + facts -> Plan. Pure: the same input gives the same plan, so an unchanged service is never restarted."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from llmhost import config as configuration
from llmhost.config import Config, Service, served_names
from llmhost.config_gateway import KeyLimits
from llmhost.config_requests import ServiceLimits
from llmhost.errors import GatewayError, PlanError
from llmhost.facts import EndpointFacts, EngineFacts, ForeignFacts, Gpu, HostFacts, ModelFacts, PortFacts, Tools
from llmhost.keys import ApiKey
from llmhost.paths import Home
from llmhost.plan import parts
from llmhost.plan.args import flag_name, vllm_arguments
from llmhost.plan.caches import cache_directory, cache_environment, cache_key
from llmhost.plan.choices import chosen_arguments, make_choices
from llmhost.plan.cpu import CpuShare, share_cpu
from llmhost.plan.foreign import Address, Filling, addresses, foreign_plan, label, listens_on, thread_environment
from llmhost.plan.groups import NO_GROUPS, Groups, find_groups, refuse_surge
from llmhost.plan.placement import Part
from llmhost.plan.remedies import require_gpus
from llmhost.plan.running import NOTHING, Running, program_mark
from llmhost.plan.shapes import GpuShare
from llmhost.plan.types import (
    Choice,
    EndpointPlan,
    EnginePlan,
    GatewayPlan,
    KeyPlan,
    Limits,
    Plan,
    ProgramPlan,
    ServicePlan,
    StickyPlan,
    TlsPlan,
)
from llmhost.plan.values import check_arguments

MIB = 2**20

Share = CpuShare | GpuShare
"""What one engine process gets."""

QUIET_PATHS = "/health,/metrics"
"""Polled all the time; left out of the engine's access log."""


@dataclass(frozen=True)
class Machine:
    """Everything the plan knows about where it runs."""

    home: Home
    host: HostFacts
    tools: Tools
    engine: EngineFacts
    keys: tuple[ApiKey, ...] = ()
    """The API keys of the home, revoked ones included."""
    endpoints: Mapping[str, tuple[EndpointFacts, ...]] = field(default_factory=dict)
    """Of each service, in the order of its endpoints in llmhost.yaml."""
    gpus: tuple[Gpu, ...] = ()
    """For an engine that computes on them."""
    foreign: Mapping[str, ForeignFacts] = field(default_factory=dict)
    """Of each service with a command."""
    ports: PortFacts = field(default_factory=PortFacts)
    part: Part | None = None
    """What this node does of the whole; None in a home without nodes."""
    interface: str = ""
    """The network interface that has this node's address; only where a model spans nodes."""
    secret: str = field(default="", repr=False)
    """What the nodes share; only where parts of a model must know each other."""
    groups: Groups = NO_GROUPS
    """Made by `make_plan`."""


def make_plan(config: Config, machine: Machine, models: Mapping[str, ModelFacts], running: Running = NOTHING) -> Plan:
    """The plan for a configuration on a machine; ``models`` holds the facts of each service's model by service name.

    In a home with nodes that is the configuration as this one carries it out (`Part.of`), with all models. What runs
    keeps its name and its share where that still fits. Raises PlanError (wrong or unknown vLLM flags, not enough
    memory) and HomeError (a socket path too long).
    """
    if machine.part:
        running = replace(running, slots=machine.part.slots)
        refuse_surge(running.surge, machine.part.spans.ranks)
    check_arguments(config.services, models, machine.engine)
    shares: Mapping[str, Mapping[str, Share]] = (
        require_gpus(config.services, machine.gpus, models, running)
        if machine.engine.device == "cuda"
        else share_cpu(config.services, machine.host, models, running)
    )
    programs = [program for own in shares.values() for program in own]
    found = find_groups(config.services, programs, machine.part, machine.engine, machine.interface, machine.secret)
    machine = replace(machine, groups=found)
    known = addresses(config, shares, machine.home, machine.ports)
    once = {name: known[program] for name, own in shares.items() for program in own if program in known}
    services = tuple(
        _elsewhere(name, s, machine, models.get(name)) if not s.replicas
        else _foreign(name, s, machine, shares[name], known, once) if s.is_foreign
        else _service(name, s, machine, models[name], shares[name])
        for name, s in config.services.items() if s.replicas or not parts.is_part(name, machine.part)
    )  # fmt: skip
    if machine.part:
        services = tuple(_of_part(s, services, machine.part) for s in services)
    also = (config.services, machine.engine, machine.home, machine.groups)
    services = tuple(each for s in services for each in parts.with_ray(s, *also))
    _refuse_ourselves(config, machine)
    machine.home.check_socket_paths(tuple(p.name for s in services for p in s.replicas))
    _check_defaults(services)
    engine = machine.engine
    return Plan(
        home=str(machine.home.root),
        tools=machine.tools,
        engine=EnginePlan(engine.name, engine.python, engine.device, engine.vllm_version),
        gateway=_gateway(config.gateway, machine),
        services=services,
        on_event=config.on_event,
        **_of_nodes(machine.part),
    )


def _of_nodes(part: Part | None) -> dict[str, Any]:
    """Fields of a plan."""
    return {} if part is None else {"node": part.node, "nodes": part.nodes, "placement": part.placement.digest}


def _of_part(service: ServicePlan, services: Sequence[ServicePlan], part: Part) -> ServicePlan:
    """With who else runs it. What it needs is waited for where that is on this node."""
    here = {s.name for s in services if s.replicas}
    needs = tuple(name for name in service.needs if name in here)
    if parts.is_part(service.name, part):
        return parts.as_part(service, part)
    return replace(service, elsewhere=part.elsewhere(service.name), needs=needs)


def _gateway(gateway: configuration.Gateway, machine: Machine) -> GatewayPlan:
    if not (machine.keys or gateway.insecure or is_loopback(gateway.host)) and _is_address(gateway.host):
        raise GatewayError(
            f"gateway.host: others can reach {gateway.host}, and there are no API keys",
            "make one with `llmhost keys add NAME`, or write `insecure: true` below gateway: to serve everybody",
        )
    tls = gateway.tls
    if tls is not None:
        paths = (None if p is None else str(machine.home.root / p) for p in (tls.certificate, tls.key, tls.client_ca))
    made = GatewayPlan(
        gateway.host, gateway.port, gateway.max_body_mib * MIB,
        key_limits=_limits(gateway.limits),
        insecure=gateway.insecure,
        tls=None if tls is None else TlsPlan(*paths),  # type: ignore[arg-type]
    )  # fmt: skip
    return with_keys(made, machine.keys)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address; a name that is no address counts as one that others can."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _is_address(host: str) -> bool:
    """What is none is refused with better words when it is rendered."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def with_keys(gateway: GatewayPlan, keys: Sequence[ApiKey]) -> GatewayPlan:
    """The gateway with these keys: it stays locked when all of them are revoked."""
    made = tuple(
        KeyPlan(
            key.name, key.user, key.digest, key.services, key.expires,
            _limits(key).or_else(gateway.key_limits),
        )
        for key in keys if key.revoked is None
    )  # fmt: skip
    return replace(gateway, locked=bool(keys), keys=made)


def _check_defaults(services: Sequence[ServicePlan]) -> None:
    seen: dict[str, str] = {}
    for service in (s for s in services if s.default):
        if service.kind in seen:
            raise PlanError(
                f"services.{service.name}.default: {seen[service.kind]} is the default of kind {service.kind} already",
                "let one of them be the default",
            )
        seen[service.kind] = service.name


def _service(
    name: str, service: Service, machine: Machine, model: ModelFacts, shares: Mapping[str, Share]
) -> ServicePlan:
    names = served_names(name, service)
    kind = service.kind or model.kind
    arguments = vllm_arguments(name, service.args, machine.engine.flags)
    _check_parsers(name, service, machine.engine)
    choices = make_choices(service, kind, model, machine.engine)
    replicas = tuple(
        _program(program, service, machine, model, names, arguments, share, choices)
        for program, share in shares.items()
    )
    return ServicePlan(
        name=name,
        kind=kind,
        kind_reason="written in llmhost.yaml" if service.kind else model.kind_reason,
        model=service.model,
        model_path=model.path,
        served_as=names,
        port=service.port,
        start_timeout=service.start_timeout,
        stop_timeout=service.stop_timeout,
        replicas=replicas,
        limits=_limits(service.limits),
        default=service.default,
        endpoints=_endpoints(name, service, machine),
        sticky=_sticky(service),
        hang_timeout=service.hang_timeout,
        max_restarts=service.max_restarts,
        choices=choices,
        needs=tuple(service.needs),
    )


def _foreign(
    name: str,
    service: Service,
    machine: Machine,
    shares: Mapping[str, Share],
    known: Mapping[str, Address],
    once: Mapping[str, Address],
) -> ServicePlan:
    """Another engine than vLLM; ``once`` holds the addresses that other services can name."""
    facts = machine.foreign[name]
    replicas = tuple(
        _foreign_program(program, service, machine, facts, share, known[program], once)
        for program, share in shares.items()
    )
    return ServicePlan(
        name=name,
        kind=service.kind or "none",
        kind_reason="written in llmhost.yaml" if service.kind else "it has no kind, so it is not routed",
        model=label(service),
        model_path=facts.model_dir,
        served_as=served_names(name, service),
        port=service.port,
        start_timeout=service.start_timeout,
        stop_timeout=service.stop_timeout,
        replicas=replicas,
        limits=_limits(service.limits),
        default=service.default,
        sticky=_sticky(service),
        hang_timeout=service.hang_timeout,
        max_restarts=service.max_restarts,
        needs=tuple(service.needs),
        foreign=foreign_plan(service, facts),
    )


def _foreign_program(
    name: str,
    service: Service,
    machine: Machine,
    facts: ForeignFacts,
    share: Share,
    own: Address,
    once: Mapping[str, Address],
) -> ProgramPlan:
    filling = Filling(machine.home, facts, own, share.gpus, once)
    _, *words = service.command
    return ProgramPlan(
        name=name,
        argv=(facts.program, *map(filling.text, words)),
        env={
            "LLMHOST_PROGRAM": program_mark(machine.home.root, name),
            "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
            "CUDA_VISIBLE_DEVICES": ",".join(map(str, share.gpus)),
            "PYTHONUNBUFFERED": "1",
            **thread_environment(service, share.cores, share.threads),
            **{key: filling.text(value) for key, value in service.env.items()},
        },
        socket=listens_on(service, own),
        gpus=share.gpus,
        gpu_memory_bytes=share.gpu_memory_bytes,
        cores=share.cores,
        memory_bytes=share.memory_bytes,
        kv_cache_bytes=0,
        threads=share.threads,
        ports=own.ports,
    )


def _limits(limits: ServiceLimits | KeyLimits | ApiKey) -> Limits:
    size = limits.max_body_mib
    return Limits(
        limits.requests_per_minute, limits.concurrent_requests, None if size is None else max(1, round(size * MIB))
    )


def _elsewhere(name: str, service: Service, machine: Machine, model: ModelFacts | None) -> ServicePlan:
    """A service that other hosts serve alone. Nothing is known of it but what is written, and what other nodes know."""
    kind = service.kind or ("none" if service.is_foreign else model.kind if model else "chat")
    return ServicePlan(
        name=name,
        kind=kind,  # without nodes it is written down: `Service` insists
        kind_reason=model.kind_reason if model and not service.kind else "written in llmhost.yaml",
        model=label(service) if service.is_foreign else service.model,
        model_path="",
        served_as=served_names(name, service),
        port=service.port,
        start_timeout=service.start_timeout,
        stop_timeout=service.stop_timeout,
        replicas=(),
        limits=_limits(service.limits),
        default=service.default,
        endpoints=_endpoints(name, service, machine),
        sticky=_sticky(service),
        needs=tuple(service.needs),
        foreign=foreign_plan(service, ForeignFacts("")) if service.is_foreign else None,
    )


def _endpoints(name: str, service: Service, machine: Machine) -> tuple[EndpointPlan, ...]:
    known = machine.endpoints.get(name, ())
    return tuple(
        EndpointPlan(e.url, facts.address, e.key_file, facts.key, facts.ca_file)
        for e, facts in zip(service.endpoints, known, strict=True)
    )


def _sticky(service: Service) -> StickyPlan | None:
    sticky = service.sticky
    return None if sticky is None else StickyPlan(sticky.header and sticky.header.lower(), sticky.prefix)


def _refuse_ourselves(config: Config, machine: Machine) -> None:
    """A gateway that is its own endpoint would send requests round in a circle."""
    ports = {config.gateway.port, *(s.port for s in config.services.values())}
    for name, service in config.services.items():
        for endpoint, facts in zip(service.endpoints, machine.endpoints.get(name, ()), strict=True):
            if facts.ours and int(endpoint.url.rpartition(":")[2]) in ports:
                raise PlanError(
                    f"services.{name}.endpoints: {endpoint.url} is this gateway itself",
                    "write the address of another host, or another server's port on this one",
                )


def _program(
    name: str,
    service: Service,
    machine: Machine,
    model: ModelFacts,
    names: tuple[str, ...],
    arguments: tuple[str, ...],
    share: Share,
    choices: tuple[Choice, ...],
) -> ProgramPlan:
    group = machine.groups.of(name)
    socket = "" if group and group.rank else str(machine.home.engine_socket(name))
    more = machine.groups.arguments(name, service, model, machine.engine.device)
    inferred = _inferred_arguments(service, machine, model, share, choices, more)
    served = ("--served-model-name", *names, "--uds", socket)
    where = (machine.engine, machine.home, machine.groups)
    argv = parts.command(name, service, *where, model.path, served, len(share.gpus), (*inferred, *arguments))
    env = {**_environment(machine, name, share), **service.env, **parts.environment(name, service, *where)}
    return ProgramPlan(
        name=name,
        argv=argv,
        env=env,
        socket=socket,
        group=group,
        gpus=share.gpus,
        gpu_memory_bytes=share.gpu_memory_bytes,
        cores=share.cores,
        memory_bytes=share.memory_bytes,
        kv_cache_bytes=share.kv_cache_bytes,
        threads=share.threads,
    )


def _inferred_arguments(
    service: Service,
    machine: Machine,
    model: ModelFacts,
    share: Share,
    choices: tuple[Choice, ...],
    more: Mapping[str, str],
) -> tuple[str, ...]:
    """Flags that llmhost adds: only those that the installed vLLM has and that the user did not write."""
    wanted: dict[str, str | None] = {}
    if (service.kind or model.kind) != "chat":
        wanted["runner"] = "pooling"
    wanted |= chosen_arguments(choices, machine.engine)
    wanted |= share.arguments
    wanted |= more
    wanted["shutdown_timeout"] = str(int(service.stop_timeout))
    # The gateway's access log has every request, with its service and its time.
    wanted["disable_uvicorn_access_log"] = None
    wanted["disable_access_log_for_endpoints"] = QUIET_PATHS
    written = {flag_name(key) for key in service.args}
    flags = machine.engine.flags
    return tuple(
        word
        for flag, value in wanted.items()
        if flag in flags and flag not in written
        for word in (f"--{flag.replace('_', '-')}", value)
        if word is not None
    )


def _environment(machine: Machine, program: str, share: Share) -> dict[str, str]:
    """The engine's environment: its mark, caches inside the home, nothing that phones out."""
    cache = cache_directory(machine.home, cache_key(machine.engine, machine.gpus))
    return {
        "LLMHOST_PROGRAM": program_mark(machine.home.root, program),
        **cache_environment(cache, machine.engine.device),
        # Models are directories here; without this a hub is asked for files that do not exist in them.
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        # Progress bars go to a log file, where each step of one is more text: one in ten seconds is enough.
        "TQDM_MININTERVAL": "10",
        **share.environment,
    }


def _check_parsers(name: str, service: Service, engine: EngineFacts) -> None:
    """Refuse a parser name that the installed vLLM does not register, unless a plugin brings its own."""
    args = {flag_name(key): value for key, value in service.args.items()}
    known = {"tool_call_parser": engine.tool_call_parsers, "reasoning_parser": engine.reasoning_parsers}
    for key, names in known.items():
        value = args.get(key)
        plugin = "tool_parser_plugin" if key == "tool_call_parser" else "reasoning_parser_plugin"
        if value is not None and names and value not in names and not args.get(plugin):
            raise PlanError(
                f"services.{name}.args.{key}: vLLM {engine.vllm_version} has no parser {value!r}",
                f"it has: {', '.join(names)}",
            )
