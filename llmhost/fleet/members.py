"""The nodes of llmhost.yaml as this home uses them: itself directly, the others over ssh."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

from llmhost import config as configuration
from llmhost.config import Config, Node
from llmhost.errors import NodeError
from llmhost.fleet import acting
from llmhost.paths import Home
from llmhost.probe.node_facts import own_name
from llmhost.run import Talk, capture
from llmhost.ssh import Link, Target
from llmhost.supervise.units import owner

ROOTS_SOCKETS = Path("/run/llmhost-ssh")
PROGRAM = "app/bin/llmhost"
"""The llmhost of a node, below its home: what other nodes call, whoever installed it."""


@dataclass(frozen=True)
class Member:
    """A node; ``link`` is None for the one that this home is."""

    name: str
    address: str
    root: Path
    """Its home."""
    link: Link | None

    @property
    def here(self) -> bool:
        return self.link is None

    def command(self, words: tuple[str, ...]) -> tuple[str, ...]:
        """The whole command line there for ``llmhost WORDS``."""
        program = (sys.executable, "-P", "-m", "llmhost") if self.here else (str(self.root / PROGRAM),)
        command = (*program, "--home", str(self.root), *words)
        if self.here and words[0] in acting.BY_ROOT:
            return command
        return acting.as_owner(self.root, command, words[0])

    def connect(self) -> None:
        """Log in; raises SshError."""
        if self.link is not None:
            self.link.connect()

    def ask(self, *words: str, given: str | None = None, timeout: float = 60) -> str:
        """Run ``llmhost WORDS`` there; returns the JSON that it printed. Raises SshError, here CommandError."""
        command = self.command(words)
        run = self.link.run if self.link is not None else capture
        return without_greeting(run(command, given=given, timeout=timeout).stdout)

    def talk(self, *words: str) -> Talk:
        """Start ``llmhost WORDS`` there and read what it says as it comes."""
        return self.link.talk(self.command(words)) if self.link else Talk(self.command(words))


def without_greeting(text: str) -> str:
    """What was printed, from where JSON begins: some hosts greet whoever logs in."""
    lines = text.splitlines(keepends=True)
    return "".join(lines[next((i for i, line in enumerate(lines) if line.startswith("{")), 0) :])


def members(home: Home, config: Config | None = None) -> tuple[Member, ...]:
    """All nodes, in the order of llmhost.yaml.

    Raises ConfigError, NodeError where there are none, and HomeError when this home does not say which of them it is.
    """
    config = config or configuration.load(home.config_file)
    if not config.nodes:
        raise NodeError(
            f"{home.config_file} has no nodes: this machine is alone", "`llmhost node add user@host` adds another one"
        )
    own = own_name(home, config.nodes)
    return tuple(_member(home, name, node, own) for name, node in config.nodes.items())


def _member(home: Home, name: str, node: Node, own: str) -> Member:
    if name == own:
        return Member(name, node.address, home.root, None)
    return Member(name, node.address, Path(node.home or home.root), Link(target_of(node), sockets(home)))


def sockets(home: Home) -> Path:
    """Where connections are kept. Root follows no links of an account that the home was given to."""
    return ROOTS_SOCKETS if os.geteuid() == 0 and owner(home) != "root" else home.run_ssh


def target_of(node: Node) -> Target:
    """How ssh reaches a node."""
    return Target(node.ssh or node.address, node.user, None if node.ssh_port == 22 else node.ssh_port)
