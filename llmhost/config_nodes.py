"""The part of llmhost.yaml about several machines: ``nodes:``, and which of them a service may run on.

The same file is on every node; which of them a home is stands in a file of its own (`llmhost.paths.Home.node_file`).
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping

from pydantic import Field, field_validator

from llmhost.config_engine import Section
from llmhost.config_mistakes import Refusal

NODE_NAME = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?")
NAME_LENGTH = 40

PORT_BESIDE = 443
"""Nodes reach each other's gateways at ``gateway.port`` and so much more (8443) unless ``gateway_port`` is written."""

ANYWHERE = ("0.0.0.0", "::")
LOOPBACK_NAMES = ("localhost", "localhost.localdomain", "ip6-localhost", "ip6-loopback")


class Node(Section):
    """A machine that runs its part of the services."""

    address: str = Field(min_length=1)
    """IP address or host name at which the other nodes reach it."""
    ssh: str | None = Field(default=None, pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.:%-]*$")
    """Host for ssh where that is not the address: a name in known_hosts, a Host of ~/.ssh/config."""
    user: str | None = Field(default=None, pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*\$?$")
    """Who logs in there over ssh; default: as ssh is configured."""
    home: str | None = None
    """Absolute path of $LLMHOST_HOME there; default: the same path as here."""
    ssh_port: int = Field(default=22, ge=1, le=65535)
    """Port of its ssh server."""
    gateway_port: int | None = Field(default=None, ge=1, le=65535)
    """Port on which its gateway listens for those of other nodes (TLS); default: gateway.port + 443."""

    @field_validator("address")
    @classmethod
    def _reachable(cls, address: str) -> str:
        plain = address.strip("[]")
        if not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?", plain) and not is_ip(plain):
            raise ValueError(f"{address!r} is neither an IP address nor the name of a host")
        if plain in ANYWHERE:
            raise ValueError(f"{address} is no address that others could reach")
        return plain

    @field_validator("home")
    @classmethod
    def _absolute(cls, home: str | None) -> str | None:
        if home is not None and not home.startswith("/"):
            raise ValueError(f"{home!r} must be an absolute path: a ~ would be that of somebody else")
        return home


def gateway_port(node: Node, main: int) -> int:
    """Where its gateway listens for those of other nodes; ``main`` is ``gateway.port``."""
    return node.gateway_port or main + PORT_BESIDE


def check_node_names(nodes: object) -> None:
    """Refuse names that could not be names of files and hosts."""
    for name in nodes if isinstance(nodes, Mapping) else ():
        if not isinstance(name, str) or not NODE_NAME.fullmatch(name) or len(name) > NAME_LENGTH:
            raise Refusal(
                f"{name!r} cannot be the name of a node",
                f"use a-z, 0-9 and '-' between them, up to {NAME_LENGTH} characters",
            )


def check_nodes(nodes: Mapping[str, Node], main: int, taken: Mapping[str, int]) -> None:
    """Refuse addresses that two nodes have, loopback beside real ones, and ports that there are not or that the gateway
    listens on already (``taken``, by key)."""
    owners: dict[str, str] = {}
    for name, node in nodes.items():
        key = node.address.lower().rstrip(".")
        if key in owners:
            raise Refusal(
                f"nodes.{name}.address: {node.address} is the address of {owners[key]} already",
                "give each node the address at which the others reach it",
            )
        owners[key] = name
        port = gateway_port(node, main)
        if port > 65535:
            raise Refusal(f"nodes.{name}: gateway.port + {PORT_BESIDE} is no port", "write gateway_port: for this node")
        owner = next((key for key, number in taken.items() if number == port), None)
        if owner:
            raise Refusal(
                f"nodes.{name}.gateway_port: {port} is {owner} already",
                f"write another one; without it, it is gateway.port + {PORT_BESIDE}",
            )
    _refuse_loopback(nodes)


def _refuse_loopback(nodes: Mapping[str, Node]) -> None:
    """All nodes on 127.x.y.z are homes of one machine, for a trial; one of them beside others is a mistake."""
    loopback = [name for name, node in nodes.items() if is_loopback(node.address)]
    named = [name for name in loopback if not is_ip(nodes[name].address)]
    wrong = named or loopback
    if len(nodes) > 1 and wrong and (named or len(loopback) < len(nodes)):
        raise Refusal(
            f"nodes.{wrong[0]}.address: {nodes[wrong[0]].address} is this machine itself for whoever asks",
            "write the address at which the other nodes reach it",
        )


def is_loopback(address: str) -> bool:
    """Whether an address, or a name that is always one, reaches only the machine that asks."""
    return ipaddress.ip_address(address).is_loopback if is_ip(address) else address.lower() in LOOPBACK_NAMES


def is_ip(text: str) -> bool:
    """Whether it is an IP address, and no name."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def check_places(name: str, written: list[str], nodes: Mapping[str, Node]) -> None:
    """Refuse nodes of a service that there are not."""
    unknown = [node for node in written if node not in nodes]
    if unknown:
        raise Refusal(
            f"services.{name}.nodes: there is no node {unknown[0]}",
            f"under nodes: there is {', '.join(nodes) or 'nothing yet'}",
        )
