"""The programs of a model whose parts are several: the command and the variables of each. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from llmhost.config import Service
from llmhost.facts import EngineFacts
from llmhost.paths import Home
from llmhost.plan.groups import Groups
from llmhost.plan.placement import Part
from llmhost.plan.ray import cluster_address, token_environment, with_cluster, worker_command
from llmhost.plan.types import ServicePlan

API_SERVER = ("-m", "vllm.entrypoints.openai.api_server", "--model")
HEADLESS = ("-m", "vllm.entrypoints.cli.main", "serve")
"""For ranks without an API server: only ``vllm serve`` has ``--headless``."""


def command(
    program: str,
    service: Service,
    engine: EngineFacts,
    home: Home,
    groups: Groups,
    model: str,
    served: tuple[str, ...],
    gpus: int,
    words: tuple[str, ...],
) -> tuple[str, ...]:
    """vLLM with its API server (``served`` says under which names and where), or what runs a part of another rank."""
    group = groups.of(program)
    if group is None or group.rank == 0:
        return (engine.python, *API_SERVER, model, *served, *words)
    if service.executor == "mp":
        return (engine.python, *HEADLESS, model, "--headless", *words)
    first, head = groups.first_ports[group.name], group.addresses[0]
    return worker_command(engine.python, home, groups.address(program), head, first, gpus)


def environment(program: str, service: Service, engine: EngineFacts, home: Home, groups: Groups) -> dict[str, str]:
    """What is added for parts of a model, and for a model that Ray starts."""
    env = groups.environment(program, service, engine.device, home)
    if service.executor == "ray":
        group = groups.of(program)
        head, name = (group.addresses[0], group.name) if group else (groups.address(program), program)
        address = cluster_address(head, groups.first_ports[name])
        env = {"VLLM_HOST_IP": groups.address(program), **env, **token_environment(home), "RAY_ADDRESS": address}
    return env


def is_part(service: str, part: Part | None) -> bool:
    """Whether it is one of the ranks that have no API server."""
    return part is not None and service in part.spans.ranks and part.spans.ranks[service].rank > 0


def as_part(service: ServicePlan, part: Part) -> ServicePlan:
    """A rank without API server: nobody asks it, and it waits for rank 0 alone."""
    of = part.spans.ranks[service.name].service
    said = f"a part of {of}, which nobody asks"
    return replace(service, kind="none", kind_reason=said, served_as=(), needs=(), part_of=of)


def with_ray(
    service: ServicePlan, services: Mapping[str, Service], engine: EngineFacts, home: Home, groups: Groups
) -> tuple[ServicePlan, ...]:
    """With its Ray before it, where one starts its workers."""
    if services[service.name].executor != "ray" or not service.replicas or service.part_of:
        return (service,)
    return with_cluster(service, groups, engine.python, home)
