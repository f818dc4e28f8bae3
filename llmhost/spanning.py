"""What models that span nodes, or that Ray starts, find on this machine: an interface, a secret, Ray itself."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from llmhost import node_identity
from llmhost.config import Service
from llmhost.config_engine import unmet
from llmhost.config_span import OLDEST_RAY, RAY
from llmhost.errors import EngineError, HomeError, NodeError
from llmhost.facts import EngineFacts
from llmhost.paths import SOCKET_PATH_LIMIT, Home
from llmhost.plan import ray
from llmhost.plan.placement import Part
from llmhost.probe.interface import interface_of
from llmhost.probe.interpreters import installed

RAY_SOCKET = len("/session_2026-01-31_12-00-00_123456_1234567/sockets/plasma_store")
"""Bytes that the paths of Ray's sockets add to its directory."""


@dataclass(frozen=True)
class Common:
    """What the plan must know."""

    interface: str = ""
    secret: str = ""


def read_common(home: Home, services: Mapping[str, Service], part: Part | None) -> Common:
    """Changes nothing but for a secret that a home without nodes does not have yet, and Ray needs.

    Raises NodeError when no interface has the address of this node, HomeError for a secret that cannot be read.
    """
    here = [name for name, s in services.items() if s.replicas]
    spans = part is not None and any(name in part.spans.ranks for name in here)
    if part is None or not spans:
        return Common(secret=_secret(home) if any(services[n].executor == "ray" for n in here) else "")
    address = next(node.address for node in part.nodes if node.name == part.node)
    interface = interface_of(address)
    if not interface:
        raise NodeError(
            f"no network interface of this machine has {address}, the address of node {part.node}",
            "parts of a model on other nodes must reach this one directly: write the address that it has itself",
        )
    return Common(interface, _secret(home))


def _require_ray(engine: EngineFacts, service: str) -> None:
    """Ray is there, and knows tokens: an older one would let anybody in who reaches it."""
    there = Path(ray.ray_program(engine.python)).exists()
    version = installed(Path(engine.python).parent.parent.glob("lib/python3*/site-packages")).get("ray", "")
    old = unmet([f"ray>={OLDEST_RAY}"], {"ray": version}) if version else ()
    if old or not there:
        raise EngineError(
            f"services.{service}.executor: the engine {engine.name} has "
            + (f"Ray {version}, which knows no tokens" if old else "no Ray"),
            f"install it into the engine: `uv pip install --python {engine.python} {RAY}`; or leave executor out",
        )


def _require_short(home: Home) -> None:
    excess = len(os.fsencode(home.ray_directory(65535))) + RAY_SOCKET - SOCKET_PATH_LIMIT
    if excess > 0:
        raise HomeError(
            f"home {home.root} is {excess} bytes too long for Ray: its sockets would not fit",
            "use a shorter one, or leave executor out",
        )


def _secret(home: Home) -> str:
    node_identity.ensure_secret(home)
    return node_identity.read_secret(home)


def prepare(home: Home, services: Mapping[str, Service], engine: EngineFacts, secret: str) -> None:
    """Before a start: Ray is there where it is wanted, and so is its token. Raises EngineError, HomeError."""
    wanting = [name for name, s in services.items() if s.replicas and s.executor == "ray"]
    if not wanting:
        return
    _require_ray(engine, wanting[0])
    _require_short(home)
    node_identity.write_secret(home.ray_token_file, ray.token(secret))
