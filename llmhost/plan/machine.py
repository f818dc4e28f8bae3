"""What a plan knows of where it runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from llmhost.facts import EndpointFacts, EngineFacts, ForeignFacts, Gpu, HostFacts, PortFacts, Tools
from llmhost.keys import ApiKey
from llmhost.paths import Home
from llmhost.plan.cpu import CpuShare
from llmhost.plan.groups import NO_GROUPS, Groups
from llmhost.plan.placement import Part
from llmhost.plan.shapes import GpuShare

Share = CpuShare | GpuShare
"""What one engine process gets."""


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
