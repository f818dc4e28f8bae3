"""Asks a running gateway, through Envoy's admin socket, what it has taken up and which engines it sends requests to."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any
from urllib.parse import quote

TIMEOUT = 5.0
"""Seconds that the admin socket may take for one answer."""

WARMING = "cluster_manager.warming_clusters"
STATS = f"version_text$|^{WARMING}$"

NOTHING: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True)
class GatewayState:
    """What a gateway says of itself; all empty when it does not run."""

    live: bool = False
    """It has read its first configuration and serves."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """The version in force of each watched file, by its name without suffix (``lds``, ``cds``, ``rds``, …)."""
    listeners: Mapping[str, int] = field(default_factory=dict)
    """The TCP ports of the listeners that accept connections, by name."""
    errors: tuple[str, ...] = ()
    """Why a listener could not be brought up, in Envoy's words (``… cannot bind … Address already in use``)."""
    healthy: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """The members that get requests, by service; a service without a ready engine has an empty set.

    A member is a unix socket or ``address:port``.
    """
    active: Mapping[str, int] = field(default_factory=dict)
    """How many requests each member is working on."""
    warming: int = 0
    """Clusters that wait for the first health checks of their members; those of before serve meanwhile."""

    def serves(self, versions: Mapping[str, str], listeners: Mapping[str, int] = NOTHING) -> bool:
        """Whether it serves, and serves these versions (`llmhost.gateway.gateway_versions`) at these ports."""
        bound = "gateway" in self.listeners and listeners.items() <= self.listeners.items()
        return self.knows(versions) and bound and not self.errors

    def knows(self, versions: Mapping[str, str]) -> bool:
        """Whether these versions are in force, whatever it could not bind."""
        if not self.live or ("cds" in versions and self.warming):
            return False
        return all(self.versions.get(name) == version for name, version in versions.items())


def read_gateway(admin_socket: Path) -> GatewayState:
    """The state of the gateway with this admin socket; never raises for one that does not run or is just starting."""
    try:
        members = json.loads(_get(admin_socket, "/clusters?format=json"))
        stats = json.loads(_get(admin_socket, f"/stats?format=json&filter={quote(STATS)}"))
        return GatewayState(
            live=_get(admin_socket, "/ready").strip() == "LIVE",
            versions=_versions(stats),
            listeners=_listeners(json.loads(_get(admin_socket, "/listeners?format=json"))),
            errors=_errors(
                json.loads(_get(admin_socket, "/config_dump?resource=dynamic_listeners&mask=error_state.details"))
            ),
            healthy={name: frozenset(_name(h) for h in hosts if _served(h)) for name, hosts in _hosts(members)},
            active={_name(h): _active(h) for _, hosts in _hosts(members) for h in hosts},
            warming=sum(int(s["value"]) for s in stats["stats"] if s.get("name") == WARMING),
        )
    except (OSError, http.client.HTTPException, ValueError):
        return GatewayState()


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("gateway", timeout=TIMEOUT)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        try:
            self.sock.connect(str(self._path))
        except OSError:
            self.close()
            raise


def _get(path: Path, target: str) -> str:
    connection = _UnixConnection(path)
    try:
        connection.request("GET", target)
        return connection.getresponse().read().decode("utf-8", "replace")
    finally:
        connection.close()


def _versions(stats: Any) -> dict[str, str]:
    """Envoy names them cluster.<service>, cluster_manager.cds, listener_manager.lds, http.<listener>.rds.<listener>."""
    found: dict[str, str] = {}
    for stat in stats["stats"]:
        parts = str(stat.get("name", "")).removesuffix(".version_text").split(".")
        if parts[0] == "cluster":
            found[f"eds-{parts[1]}"] = str(stat["value"])
        elif parts[-1] in ("cds", "lds"):
            found[parts[-1]] = str(stat["value"])
        elif parts[-2:-1] == ["rds"]:
            found["rds" if parts[-1] == "gateway" else f"rds-{parts[-1]}"] = str(stat["value"])
    return found


def _listeners(answer: Any) -> dict[str, int]:
    found = ((e["name"], e["local_address"].get("socket_address")) for e in answer.get("listener_statuses", ()))
    return {str(name): int(place["port_value"]) for name, place in found if place}


def _errors(dump: Any) -> tuple[str, ...]:
    # Envoy may list a failed listener twice, once without its name.
    details = (entry.get("error_state", {}).get("details") for entry in dump.get("configs", ()))
    return tuple(dict.fromkeys(str(text) for text in details if text))


def _hosts(answer: Any) -> list[tuple[str, list[Any]]]:
    return [(str(c["name"]), list(c.get("host_statuses", ()))) for c in answer.get("cluster_statuses", ())]


def _name(host: Any) -> str:
    address = host["address"]
    if "pipe" in address:
        return str(address["pipe"]["path"])
    place = address["socket_address"]
    return f"{place['address']}:{place['port_value']}"


def _served(host: Any) -> bool:
    """Envoy tells only the flags that are set."""
    status = dict(host["health_status"])
    return status.pop("eds_health_status", "HEALTHY") == "HEALTHY" and not any(status.values())


def _active(host: Any) -> int:
    return next((int(s.get("value", 0)) for s in host.get("stats", ()) if s["name"] == "rq_active"), 0)
