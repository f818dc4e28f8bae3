"""Which compose file runs on which host: what ``--node`` says."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from llmhost.config import Config
from llmhost.config_mistakes import explain
from llmhost.config_nodes import is_loopback
from llmhost.errors import ConfigError

SYNTAX = "write --node NAME=[USER@]ADDRESS:FILE, such as --node a=root@10.0.0.1:llm/compose.yaml; IPv6 in brackets"
_SPEC = re.compile(
    r"(?P<name>[^=]*)=(?:(?P<user>[^@:\[\]/]*)@)?(?P<address>\[[^\]]*\]|[^:/\[\]]*):(?P<file>[^:].*)", re.DOTALL
)


@dataclass(frozen=True)
class Host:
    """A node that is to be, and the compose files that ran there, the later ones on top of the earlier."""

    name: str
    address: str
    user: str | None
    files: tuple[Path, ...]

    def to_dict(self) -> dict[str, Any]:
        """The entry below ``nodes:``."""
        return {"address": self.address, **({"user": self.user} if self.user else {})}


def parse_hosts(specs: Sequence[str]) -> list[Host]:
    """The hosts, in their order; one that is named again, at the same address, has several files.

    An IPv6 address stands in brackets. Raises ConfigError for what is not written so, a name or an address that a node
    cannot have, one node at two addresses and two at one.
    """
    found: dict[str, Host] = {}
    for spec in specs:
        host = _parsed(spec)
        there = found.get(host.name)
        if there and (there.address, there.user) != (host.address, host.user):
            raise ConfigError(
                f"--node {host.name} is {_login(there)} and {_login(host)}",
                "a node has one address: give the other a name of its own",
            )
        found[host.name] = Host(
            host.name, host.address, host.user, (*there.files, *host.files) if there else host.files
        )
    _check(found)
    return list(found.values())


def _parsed(spec: str) -> Host:
    match = _SPEC.fullmatch(spec)
    if match is None or not all(match[part] for part in ("name", "address")) or match["user"] == "":
        raise ConfigError(f"--node {spec}: cannot be read", SYNTAX)
    return Host(match["name"], match["address"].strip("[]"), match["user"], (Path(match["file"]).expanduser(),))


def _login(host: Host) -> str:
    return f"{host.user}@{host.address}" if host.user else host.address


def _check(hosts: Mapping[str, Host]) -> None:
    try:
        Config.model_validate({"nodes": {name: host.to_dict() for name, host in hosts.items()}})
    except ValidationError as e:
        raise explain(e, "--node", Config) from None
    for name, host in hosts.items():
        if is_loopback(host.address):
            raise ConfigError(
                f"--node {name}: {host.address} is this machine itself for whoever asks",
                "write the address at which the other nodes reach it",
            )
