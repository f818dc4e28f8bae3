"""Plans for tests of the gateway, without the way from a configuration to a plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path

from llmhost.facts import Kind, Tools
from llmhost.paths import Home
from llmhost.plan.types import EnginePlan, GatewayPlan, Plan, ProgramPlan, ServicePlan


def make_service(
    home: Path,
    name: str,
    kind: Kind = "chat",
    served_as: tuple[str, ...] = (),
    *,
    port: int | None = None,
    replicas: int = 1,
    argv: tuple[str, ...] = ("python",),
) -> ServicePlan:
    """A service whose engines listen below ``home``."""
    programs = (f"{name}-{index}" for index in range(replicas))
    return ServicePlan(
        name=name,
        kind=kind,
        kind_reason="for the test",
        model=f"demo:{kind}",
        model_path=f"/models/{kind}",
        served_as=served_as or (name,),
        port=port,
        start_timeout=60,
        stop_timeout=5,
        replicas=tuple(_program(p, str(Home(home).engine_socket(p)), argv) for p in programs),
    )


def _program(name: str, socket: str, argv: tuple[str, ...]) -> ProgramPlan:
    environment: Mapping[str, str] = {}
    return ProgramPlan(name, argv, environment, socket, gpus=(), cores=(), memory_bytes=0, kv_cache_bytes=0)


def make_plan(
    home: Path, *services: ServicePlan, host: str = "127.0.0.1", port: int = 8000, max_body_bytes: int = 2**20,
    envoy: str = "/opt/envoy",
) -> Plan:  # fmt: skip
    """A plan with these services."""
    tools = Tools(**{f.name: envoy if f.name == "envoy" else f"/opt/{f.name}" for f in fields(Tools)})
    engine = EnginePlan("default", "/engine/bin/python", "cpu", "0.32.0")
    return Plan(str(home), tools, engine, GatewayPlan(host, port, max_body_bytes), services)
