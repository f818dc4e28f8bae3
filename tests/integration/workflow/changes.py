"""Every kind of change that an operator makes to a running home, for a steady client to live through.

The table in docs/operations.md names the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tests.integration.workflow.conftest import Installed

ASKED = "gpt-4"
"""The name that the client asks for through every change."""


@dataclass(frozen=True)
class Change:
    """``before`` and ``after`` are the value of ``services:``; MODEL and EMBED stand for model directories."""

    name: str
    before: str
    after: str | None
    """None: llmhost.yaml stays as it is."""
    command: tuple[str, ...] = ("up",)
    status: int = 0
    """Exit status of the command."""


CHAT = "chat: {model: MODEL, served_as: [gpt-4]ARGS}\n"


def chat(more: str = "") -> str:
    return CHAT.replace("ARGS", f", {more}" if more else "")


MOVED = chat("env: {A: b}").replace("gpt-4", "old") + chat().replace("chat:", "next:")
MORE = chat("replicas: 2, port: PORT").replace("gpt-4", "gpt-4, gpt-5")
OTHER = "embedding: {model: EMBED}\n"

CHANGES = (
    Change("add a service", chat(), chat() + OTHER),
    Change("remove a service", chat() + OTHER, chat()),
    Change("rename a service", chat(), chat().replace("chat:", "assistant:")),
    Change("move a name to another model", chat(), MOVED),
    Change("more names, another port", chat("replicas: 2"), MORE),
    Change("1 replica → 3", chat(), chat("replicas: 3")),
    Change("3 replicas → 1", chat("replicas: 3"), chat()),
    Change("1 replica → 2, and an edit", chat(), chat("replicas: 2, env: {A: b}")),
    Change("2 replicas → 1, and an edit", chat("replicas: 2"), chat("env: {A: b}")),
    Change("edit a service with 3 replicas", chat("replicas: 3"), chat("replicas: 3, env: {A: b}")),
    Change("edit a service with 1 replica", chat(), chat("env: {A: b}"), ("up", "--surge")),
    Change("another model, 1 replica", chat(), chat().replace("MODEL", "NEXT"), ("up", "--surge")),
    Change("restart, 2 replicas", chat("replicas: 2"), None, ("restart", "--rolling", "chat")),
    Change("restart, 1 replica", chat(), None, ("restart", "--surge", "chat")),
    Change(
        "an edit with which no engine starts, 2 replicas",
        chat("replicas: 2"),
        chat("replicas: 2, env: {FAKE_ENGINE: --exit-early 1}"),
        status=3,
    ),
    Change(
        "an edit with which no engine starts, 1 replica",
        chat(),
        chat("env: {FAKE_ENGINE: --exit-early 1}"),
        ("up", "--surge"),
        status=3,
    ),
)


def write(installed: Installed, services: str, port: int) -> None:
    """llmhost.yaml for the fake engine."""
    replace: dict[str, Callable[[], str]] = {
        "MODEL": installed.model,
        "EMBED": lambda: installed.model("embed", "BertModel"),
        "NEXT": lambda: installed.model("next"),
        "PORT": lambda: str(port),
    }
    for word, value in replace.items():
        services = services.replace(word, value())
    installed.write(services)
