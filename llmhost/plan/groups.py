"""The parts of a model that spans nodes: what their guards know of each other, and what vLLM is told. Pure."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from llmhost.config import Service
from llmhost.errors import PlanError
from llmhost.facts import Device, EngineFacts, ModelFacts
from llmhost.paths import Home
from llmhost.plan.placement import Part
from llmhost.plan.running import number_of, service_of
from llmhost.plan.spans import CLUSTER, GUARD, MASTER, cpu_sizes, first_ports
from llmhost.plan.types import GroupPlan

COMMON = ("model", "args", "env", "gpus", "span", "executor", "concurrency", "kind")
"""Of a service: what its parts must agree about."""

MULTI_NODE = ("nnodes", "node_rank", "master_addr", "master_port")


@dataclass(frozen=True)
class Groups:
    """Those that programs of this node belong to."""

    groups: Mapping[str, GroupPlan] = field(default_factory=dict)
    """By program."""
    first_ports: Mapping[str, int] = field(default_factory=dict)
    """The first port of each group, and of each cluster of Ray, by the program of rank 0."""
    interface: str = ""
    """The network interface that has the address of this node."""

    def of(self, program: str) -> GroupPlan | None:
        """None for a program that spans nothing."""
        return self.groups.get(program)

    def address(self, program: str) -> str:
        """Of this node, for a program of its."""
        group = self.of(program)
        return group.addresses[group.rank] if group else "127.0.0.1"

    def arguments(self, program: str, service: Service, model: ModelFacts, device: Device) -> dict[str, str]:
        """vLLM's flags for a part."""
        group = self.of(program)
        if service.executor == "ray":
            return {"distributed_executor_backend": "ray"}
        if group is None:
            return {}
        sizes = cpu_sizes(service, model) if device == "cpu" else (1, 1)
        names = ("tensor_parallel_size", "pipeline_parallel_size")
        split = {name: str(size) for name, size in zip(names, sizes, strict=True) if size > 1}
        values = (len(group.nodes), group.rank, group.addresses[0], group.master_port)
        return {**split, **dict(zip(MULTI_NODE, map(str, values), strict=True))}

    def environment(self, program: str, service: Service, device: Device, home: Home) -> dict[str, str]:
        """Variables for a part: by which address and interface the others reach it."""
        group = self.of(program)
        if group is None:
            return {}
        env = {"VLLM_HOST_IP": self.address(program)}
        if service.executor == "mp" or group.rank:  # vLLM hands NCCL's from rank 0 on to all workers of Ray
            env |= self.interfaces
        if device == "cpu":
            # Which cores a worker is bound to is reckoned from its rank among all, as if they were on one machine.
            env["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
            if group.rank:
                paths = (str(home.vllm_metadata), service.env.get("PYTHONPATH", ""))
                env["PYTHONPATH"] = ":".join(filter(None, paths))
        return env

    @property
    def interfaces(self) -> dict[str, str]:
        """For what looks for an interface by itself: Gloo and NCCL (there ``=`` is for the whole name)."""
        name = self.interface
        return {"GLOO_SOCKET_IFNAME": name, "NCCL_SOCKET_IFNAME": f"={name}"} if name else {}


NO_GROUPS = Groups()


def find_groups(
    services: Mapping[str, Service],
    programs: Iterable[str],
    part: Part | None,
    engine: EngineFacts,
    interface: str,
    secret: str,
) -> Groups:
    """The groups of the programs of a node; ``secret`` is what all nodes share.

    Raises PlanError for what this vLLM cannot do.
    """
    ports = first_ports(_replicas(services, part), services)
    groups = {}
    for program in programs:
        service = services[service_of(program)]
        _check(service_of(program), service, engine)
        rank = part.spans.ranks.get(service_of(program)) if part else None
        if part is None or rank is None:
            continue
        name = f"{rank.service}-{number_of(program)}"
        hosts = part.hosts(rank.service, number_of(program))
        addresses = tuple(node.address for node in hosts)
        _check_ray(rank.service, service, addresses)
        groups[program] = GroupPlan(
            name=name,
            rank=rank.rank,
            nodes=tuple(node.name for node in hosts),
            addresses=addresses,
            port=ports[name] + GUARD,
            master_port=0 if service.executor == "ray" else ports[name] + MASTER,
            cluster_port=ports[name] + CLUSTER if service.executor == "ray" else 0,
            digest=_digest(service, addresses, ports[name], engine),
            secret=derived(secret, f"group {name}"),
            vllm=engine.vllm_version,
        )
    return Groups(groups, ports, interface)


def _replicas(services: Mapping[str, Service], part: Part | None) -> dict[str, int]:
    """Of every model whose parts need ports, on all nodes, in the order of llmhost.yaml."""
    ranks = part.spans.ranks if part else {}
    heads = (
        n for n, s in services.items() if (n in ranks and not ranks[n].rank) or (s.executor == "ray" and n not in ranks)
    )
    return {name: len(part.placement.nodes.get(name, ())) if part else services[name].replicas for name in heads}


def _check(name: str, service: Service, engine: EngineFacts) -> None:
    if service.executor == "ray" and engine.device == "cpu":
        raise PlanError(
            f"services.{name}.executor: vLLM on the CPU takes no Ray", "leave it out: vLLM starts its workers by itself"
        )
    if service.span and service.span.nodes and service.executor == "mp" and "nnodes" not in engine.flags:
        raise PlanError(
            f"services.{name}: vLLM {engine.vllm_version} cannot run a model on several nodes by itself",
            "write executor: ray, or install a newer vLLM",
        )


def _check_ray(name: str, service: Service, addresses: tuple[str, ...]) -> None:
    """Ray is told where it is as ``host:port``, without brackets."""
    wrong = next((a for a in addresses if ":" in a), None)
    if service.executor == "ray" and wrong:
        raise PlanError(
            f"services.{name}.executor: its Ray would have to be reached over IPv6 ({wrong})",
            "leave it out: vLLM starts its workers by itself; or write IPv4 addresses of these nodes",
        )


def refuse_surge(services: Iterable[str], spanning: Collection[str]) -> None:
    """Second engines of a model that spans nodes would have to start on all of them at once: PlanError."""
    for name in services:
        if name in spanning:
            raise PlanError(
                f"{name} spans nodes, and cannot start beside itself",
                "leave --surge out; with replicas: 2 one of them serves while the other restarts",
            )


def _digest(service: Service, addresses: tuple[str, ...], port: int, engine: EngineFacts) -> str:
    said = service.model_dump(mode="json", include=set(COMMON))
    text = json.dumps([said, addresses, port, engine.vllm_version, engine.device], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def derived(secret: str, purpose: str) -> str:
    """A secret for one purpose, from the one that all nodes share: it tells nothing of that one."""
    return hmac.digest(secret.encode(), purpose.encode(), "sha256").hex()
