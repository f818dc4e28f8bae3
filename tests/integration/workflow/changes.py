"""Every kind of change that an operator makes to a running home, for a steady client to live through.

The tests ask that nothing is lost; `benchmarks/zero_loss.py` counts, and writes the table in docs/operations.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from tests.certificates import Certificates, shown_serial
from tests.integration.workflow.conftest import Installed, home_in, short_directory, wait_for
from tests.ports import free_port
from tests.steady import Steady

ASKED = "gpt-4"
"""The name that the client asks for through every change."""


class State(NamedTuple):
    """What a change must not touch, and two things of which it must."""

    base: tuple[int, int]
    """supervisord and the gateway."""
    engines: dict[str, Any]
    files: dict[Path, int]
    """When each file below `conf/` was written."""


@dataclass
class Scene:
    """A home, and what some changes need beside it."""

    installed: Installed
    folder: Path
    open_until_end: ExitStack
    port: int = field(default_factory=free_port)
    """For a service that is to have one of its own."""

    @cached_property
    def certificates(self) -> Certificates:
        return Certificates(self.folder)

    @cached_property
    def host(self) -> Installed:
        """Another host: a home that serves the same model behind a gateway of its own, which wants a key."""
        made = self.open_until_end.enter_context(home_in(self.folder, "other"))
        made.write(f"far: {{model: {made.model()}, served_as: [{ASKED}]}}")
        made.run("up")
        file = self.installed.home.root / "other.key"
        file.write_text(made.run("keys", "add", "first").stdout, encoding="utf-8")
        file.chmod(0o600)
        return made

    def write(self, services: str, gateway: str = "") -> None:
        """llmhost.yaml, with what words in capitals stand for."""
        write(self.installed, self._filled(services), self.port, self._filled(gateway))

    def _filled(self, text: str) -> str:
        words: dict[str, Callable[[], str]] = {
            "OTHER_HOST": lambda: f"[{{url: 'http://127.0.0.1:{self.host.port}', key_file: other.key}}]",
            "CLIENT_CA": lambda: str(self.certificates.ca),
            "{CERTIFICATE": lambda: f"{{certificate: {self.certificates.certificate}, key: {self.certificates.key}",
        }
        for word, value in words.items():
            if word in text:
                text = text.replace(word, value())
        return text

    def state(self) -> State:
        """Processes, and what they read."""
        pids = self.installed.pids()
        files = {p: p.stat().st_mtime_ns for p in self.installed.home.conf.rglob("*") if p.is_file()}
        return State((pids.pop("supervisor"), pids.pop("gateway")), pids, files)


@contextmanager
def scene(engines: Path | None = None) -> Iterator[Scene]:
    """An empty home with the fake engine, or with those of another home."""
    with short_directory() as folder, ExitStack() as stack:
        yield Scene(stack.enter_context(home_in(folder, engines=engines)), folder, stack)


Act = Callable[[Scene, Steady], None]


@dataclass(frozen=True)
class Change:
    """``before`` and ``after`` are the value of ``services:``; MODEL and EMBED stand for model directories."""

    name: str
    before: str
    after: str | None = None
    """None: llmhost.yaml stays as it is."""
    command: tuple[str, ...] = ("up",)
    status: int = 0
    """Exit status of the command."""
    answers: str = ""
    """A program that answers after the change, and not before it."""
    gateway: str = ""
    """More of ``gateway:``, as YAML."""
    gateway_after: str | None = None
    keys: bool = False
    """There are two API keys, and the client has one of them."""
    act: Act | None = None
    """What is done in the place of a command of the home."""
    shown: str = ""
    """What is done, in words; by default the command."""
    idle: bool = False
    """The home is as before afterwards."""

    def make(self, scene: Scene, client: Steady) -> None:
        """What the operator does; returns when it is done."""
        if self.act is not None:
            self.act(scene, client)
            return
        if self.after is not None or self.gateway_after is not None:
            after = self.before if self.after is None else self.after
            scene.write(after, self.gateway if self.gateway_after is None else self.gateway_after)
        scene.installed.run(*self.command, ok=self.status)


def live_through(scene: Scene, change: Change, client: Steady) -> Steady:
    """Bring about what is there before the change, and let the client ask before, while and after it is made."""
    scene.write(change.before, change.gateway)
    scene.installed.run("up")
    if change.keys:
        client.headers = _bearer(scene.installed.run("keys", "add", "me").stdout)
        scene.installed.run("keys", "add", "another")
    if "CERTIFICATE" in change.gateway:
        client.tls = scene.certificates.client("steady")
    before = scene.state()
    with client.asking():
        client.wait_for_more()
        assert change.answers not in client.answered_by
        change.make(scene, client)
        client.wait_for_more()
        if change.answers:
            client.wait_for_answer_of(change.answers)
    after = scene.state()
    assert after.base == before.base
    assert change.status or (after == before) is change.idle, "nothing was changed at all"
    if change.keys:
        scene.installed.run("keys", "reset", "--yes")
    return client


def lose_nothing(change: Change) -> None:
    """The test of a change, with the fake engine."""
    with scene() as there:
        client = live_through(there, change, Steady(there.installed.port, ASKED))
    assert client.lost == []
    assert client.streams > 10


def _bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key.strip()}"}


def _change_nothing(scene: Scene, client: Steady) -> None:
    client.wait_for_more(100)


def _add_key(scene: Scene, client: Steady) -> None:
    scene.installed.run("keys", "add", "new")


def _revoke_key(scene: Scene, client: Steady) -> None:
    scene.installed.run("keys", "revoke", "another")


def _rotate_key(scene: Scene, client: Steady) -> None:
    """The client asks with the old key until it has the new one."""
    new = scene.installed.run("keys", "rotate", "me", "--grace", "1h").stdout
    client.wait_for_more()
    client.headers = _bearer(new)


def _renew_certificate(scene: Scene, client: Steady) -> None:
    number = scene.certificates.issue(scene.certificates.certificate, scene.certificates.key)
    wait_for(lambda: shown_serial(scene.installed.port, scene.certificates.client()) == number)


CHAT = "chat: {model: MODEL, served_as: [gpt-4]ARGS}\n"


def chat(more: str = "") -> str:
    return CHAT.replace("ARGS", f", {more}" if more else "")


MOVED = chat("env: {A: b}").replace("gpt-4", "old") + chat().replace("chat:", "next:")
MORE = chat("replicas: 2, port: PORT").replace("gpt-4", "gpt-4, gpt-5")
OTHER = "embedding: {model: EMBED}\n"
DEFAULT = chat("replicas: 2, default: true").replace("gpt-4", "gpt-4, gpt-5")
FAR = "endpoints: OTHER_HOST"
SLOW = "env: {FAKE_ENGINE: --start-delay 3}"
"""A real engine is slow by itself, and does not know it."""
TLS = ", tls: {CERTIFICATE}"
CLIENTS = ", tls: {CERTIFICATE, client_ca: CLIENT_CA}"
"""Only clients with a certificate; ours has one all the time."""
STICKY = chat("replicas: 2, sticky: {header: x-session}")

NOTHING = Change("nothing", chat(), act=_change_nothing, shown="–", idle=True)
"""What the others are compared with."""
ADD_KEY = Change("add a key", chat(), keys=True, act=_add_key, shown="`keys add`")
REVOKE_KEY = Change("revoke another key", chat(), keys=True, act=_revoke_key, shown="`keys revoke`")
ROTATE_KEY = Change("rotate the client's key", chat(), keys=True, act=_rotate_key, shown="`keys rotate --grace 1h`")
NEW_CERTIFICATE = Change(
    "another certificate", chat(), gateway=TLS, act=_renew_certificate, shown="the files are replaced"
)

OF_ENGINES = (
    Change("add a service", chat(), chat() + OTHER),
    Change("remove a service", chat() + OTHER, chat()),
    Change("rename a service", chat(), chat().replace("chat:", "assistant:"), answers="assistant-0"),
    Change("move a name to another model", chat(), MOVED, answers="next-0"),
    Change("more names, another port", chat("replicas: 2"), MORE),
    Change("1 replica → 3", chat(), chat("replicas: 3"), answers="chat-2"),
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
OF_GATEWAY = (
    ADD_KEY,
    REVOKE_KEY,
    ROTATE_KEY,
    Change("other limits of keys", chat(), gateway_after=", limits: {requests_per_minute: 60000}", keys=True),
    Change("requests at once of keys", chat(), gateway_after=", limits: {concurrent_requests: 500}", keys=True),
    Change("other limits of a service", chat(), chat("limits: {concurrent_requests: 500, requests_per_minute: 60000}")),
    Change("one more name, and the default of its kind", chat("replicas: 2"), DEFAULT),
    NEW_CERTIFICATE,
    Change("ask clients for certificates", chat(), gateway=TLS, gateway_after=CLIENTS),
    Change("do not ask clients for certificates any more", chat(), gateway=CLIENTS, gateway_after=TLS),
    Change("requests of a session go to one replica", chat("replicas: 2"), STICKY),
    Change("requests of a prompt go to one replica", STICKY, chat("replicas: 2, sticky: prefix")),
    Change("requests go to any replica again", STICKY, chat("replicas: 2")),
    Change("add an endpoint on another host", chat(), chat(FAR), answers="far-0"),
    Change("remove an endpoint on another host", chat(FAR), chat()),
    Change("move a service to another host", chat(), chat(f"kind: chat, replicas: 0, {FAR}"), answers="far-0"),
    Change(
        "move a service back from another host", chat(f"kind: chat, replicas: 0, {FAR}"), chat(SLOW), answers="chat-0"
    ),
)
CHANGES = (*OF_ENGINES, *OF_GATEWAY)


def write(installed: Installed, services: str, port: int, gateway: str = "") -> None:
    """llmhost.yaml for the fake engine."""
    replace: dict[str, Callable[[], str]] = {
        "MODEL": installed.model,
        "EMBED": lambda: installed.model("embed", "BertModel"),
        "NEXT": lambda: installed.model("next"),
        "PORT": lambda: str(port),
    }
    for word, value in replace.items():
        services = services.replace(word, value())
    installed.write(services, gateway)


CHANGES = (*OF_ENGINES, *OF_GATEWAY)
