"""The text of a unit. Pure: what is true of this machine comes in as data."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from llmhost.errors import RenderError
from llmhost.templates import template_environment

TEMPLATE = "llmhost.service.j2"


@dataclass(frozen=True)
class UnitPlan:
    """What llmhost.service.j2 needs; paths are absolute, times in seconds."""

    name: str
    scope: str
    """``system``, or ``user`` for a user's own manager."""
    home: str
    account: str
    python: str
    supervisord_script: str
    supervisord_conf: str
    start_seconds: int
    stop_seconds: int
    mounts: tuple[str, ...]
    """Directories that must be mounted first."""
    writable: tuple[str, ...]
    """What the services may write; ``-`` in front: if it exists."""
    private_tmp: bool
    needs_network: bool
    """The gateway listens on an address that the network brings."""
    modprobe: tuple[str, ...] = ()
    """nvidia-modprobe, where it exists."""
    growing_pauses: bool = False
    """systemd has RestartSteps= (254 and newer)."""
    linger: bool = False
    """Lingering was switched on for this unit."""

    @property
    def llmhost(self) -> tuple[str, ...]:
        """The command line of llmhost for this home."""
        return (self.python, "-P", "-m", "llmhost", "--home", self.home)

    @property
    def supervisord(self) -> tuple[str, ...]:
        """supervisord in the foreground: systemd is its parent, and sees at once when it ends."""
        return (self.python, "-P", self.supervisord_script, "-n", "-c", self.supervisord_conf)


def render_unit(plan: UnitPlan) -> str:
    """The unit; raises RenderError for a path that a unit cannot hold."""
    environment = template_environment()
    environment.filters.update(json=json.dumps, specifiers=specifiers, words=quote_words, command=quote_command)
    return environment.get_template(TEMPLATE).render(unit=plan)


def specifiers(text: str) -> str:
    """A value that is taken as it stands to the end of its line, but for ``%`` (systemd.unit(5))."""
    if not text.isprintable() or text != text.strip() or text.endswith("\\"):
        raise RenderError(f"a systemd unit cannot hold {text!r}", "use a path of plain characters")
    return text.replace("%", "%%")


def quote_words(words: Sequence[str]) -> str:
    """Words of a list, such as ReadWritePaths=."""
    return " ".join(_quote(word) for word in words)


def quote_command(words: Sequence[str]) -> str:
    """A command line, where ``$`` begins a variable (systemd.service(5))."""
    return quote_words([word.replace("$", "$$") for word in words])


def _quote(word: str) -> str:
    plain = specifiers(word)
    if all(c.isalnum() or c in "-_./:=+,@%$*" for c in plain):
        return plain
    escaped = plain.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
