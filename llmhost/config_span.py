"""The part of llmhost.yaml about a model that spans nodes: ``span:`` and ``executor:`` of a service."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Protocol

from pydantic import BeforeValidator, Field

from llmhost.config_engine import Section
from llmhost.config_mistakes import Refusal

LARGEST = 64
"""Nodes of one replica."""
OLDEST_RAY = "2.52"
"""The first with token authentication; release notes of Ray 2.52."""
RAY = "ray==2.60.0"
"""What an engine gets where nothing else is written: nodes of one cluster must have the same."""


class Span(Section):
    """How one replica of a service is spread over nodes."""

    nodes: int | None = Field(default=None, ge=2, le=LARGEST)
    """Nodes of each replica, with equal parts; default: as few as its `gpus` need."""
    port: int | None = Field(default=None, ge=1024, le=65535 - LARGEST)
    """First of the ports at which its parts find each other; default: one that follows from its name."""


class Spanning(Protocol):
    """What is looked at of a service."""

    @property
    def span(self) -> Span | None: ...

    @property
    def executor(self) -> str: ...

    @property
    def nodes(self) -> list[str]: ...

    @property
    def is_foreign(self) -> bool: ...


def _as_span(value: object) -> object:
    return {"nodes": value} if isinstance(value, int) and not isinstance(value, bool) else value


SpanOrWidth = Annotated[Span | None, BeforeValidator(_as_span, json_schema_input_type=Span | int | None)]
"""``span: 2`` for ``span: {nodes: 2}``."""


def part_name(service: str, rank: int) -> str:
    """The service that the parts of a rank run as, on nodes beside that of rank 0, which keeps the name."""
    return f"{service}-rank{rank}" if rank else service


def cluster_name(service: str) -> str:
    """The service that Ray's head runs as."""
    return f"{service}-ray"


def check_spans(services: Mapping[str, Spanning], nodes: Mapping[str, object]) -> None:
    """Refuse spans over nodes that there are not, and names that parts would have."""
    for name, service in services.items():
        if service.is_foreign and (service.span or service.executor != "mp"):
            raise Refusal(f"services.{name}: span and executor are for models of vLLM", "leave them out")
        wanted = (service.span and service.span.nodes) or 0
        may = service.nodes or list(nodes)
        if wanted > len(may):
            raise Refusal(
                f"services.{name}.span: {wanted} nodes for each replica, and it may run on {len(may)}",
                "write fewer, or more nodes under nodes:",
            )
        ranks = wanted or (len(may) if nodes else 1)
        own = [part_name(name, rank) for rank in range(1, ranks)]
        own += [cluster_name(name)] if service.executor == "ray" else []
        for taken in (n for n in own if n in services):
            if wanted or service.executor == "ray":
                raise Refusal(f"services.{taken}: parts of {name} are called so", "give it another name")
