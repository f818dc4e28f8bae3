"""Config + facts -> Plan. Pure: the same input gives the same plan, so an unchanged service is never restarted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from llmhost import config as configuration
from llmhost.config import Config
from llmhost.config_nodes import is_ip, is_loopback
from llmhost.errors import GatewayError, PlanError
from llmhost.facts import ModelFacts
from llmhost.keys import ApiKey
from llmhost.plan import parts
from llmhost.plan.cpu import share_cpu
from llmhost.plan.foreign import addresses
from llmhost.plan.groups import find_groups, refuse_surge
from llmhost.plan.machine import Machine, Share
from llmhost.plan.memory import MIB
from llmhost.plan.placement import Part
from llmhost.plan.remedies import require_gpus
from llmhost.plan.running import NOTHING, Running
from llmhost.plan.services import foreign_service, limits, service_elsewhere, vllm_service
from llmhost.plan.types import EnginePlan, GatewayPlan, KeyPlan, Plan, ServicePlan, TlsPlan
from llmhost.plan.values import check_arguments


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
        service_elsewhere(name, s, machine, models.get(name)) if not s.replicas
        else foreign_service(name, s, machine, shares[name], known, once) if s.is_foreign
        else vllm_service(name, s, machine, models[name], shares[name])
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
    if not (machine.keys or gateway.insecure or is_loopback(gateway.host)) and is_ip(gateway.host):
        raise GatewayError(
            f"gateway.host: others can reach {gateway.host}, and there are no API keys",
            "make one with `llmhost keys add NAME`, or write `insecure: true` below gateway: to serve everybody",
        )
    tls = gateway.tls
    if tls is not None:
        paths = (None if p is None else str(machine.home.root / p) for p in (tls.certificate, tls.key, tls.client_ca))
    made = GatewayPlan(
        gateway.host, gateway.port, gateway.max_body_mib * MIB,
        key_limits=limits(gateway.limits),
        insecure=gateway.insecure,
        tls=None if tls is None else TlsPlan(*paths),  # type: ignore[arg-type]
    )  # fmt: skip
    return with_keys(made, machine.keys)


def with_keys(gateway: GatewayPlan, keys: Sequence[ApiKey]) -> GatewayPlan:
    """The gateway with these keys: it stays locked when all of them are revoked."""
    made = tuple(
        KeyPlan(
            key.name, key.user, key.digest, key.services, key.expires,
            limits(key).or_else(gateway.key_limits),
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
