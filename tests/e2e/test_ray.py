"""Ray from a package index, for real: a cluster over two hosts, its programs supervised, with token authentication.

vLLM on the CPU takes no Ray, so a program that puts an actor on every (pretended) GPU stands for it. Its commands, its
guards and its token are those of the plan.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llmhost import node_identity, writer
from llmhost.config_span import RAY
from llmhost.env.uv import find_uv
from llmhost.paths import Home
from llmhost.plan import ray
from llmhost.plan.groups import Groups
from llmhost.plan.spans import CLUSTER
from llmhost.plan.types import EnginePlan, GatewayPlan, GroupPlan, Plan, ProgramPlan, ServicePlan
from llmhost.probe.tools import find_tools
from llmhost.render import render
from tests import netns
from tests.netns import Host, Network, wait_for

FAKE = Path(__file__).parents[1] / "fakes/ray_engine.py"
FIRST = 20480
SECRET = "a secret of the nodes, as long as it must be"
PATIENCE = 300.0


class Cluster:
    """Two hosts, a home on each; a has Ray's head and what asks it, b has a worker."""

    def __init__(self, network: Network, python: str) -> None:
        self.python = python
        self.a, self.b = network.add("a"), network.add("b")
        addresses = (self.a.address, self.b.address)
        secret = "0123456789abcdef0123456789abcdef"
        self.groups = [
            GroupPlan("chat-0", rank, ("a", "b"), addresses, FIRST, 0, "plan", secret, cluster_port=FIRST + CLUSTER)
            for rank in (0, 1)
        ]
        for host, services in ((self.a, self._head()), (self.b, self._worker())):
            self._write(host, services)

    def home(self, host: Host) -> Home:
        return Home(host.root / "h")

    def _head(self) -> tuple[ServicePlan, ...]:
        home, address = self.home(self.a), ray.cluster_address(self.a.address, FIRST)
        env = {**ray.token_environment(home), "RAY_ADDRESS": address, "LLMHOST_PROGRAM": f"{home.root}:chat-0"}
        socket = str(home.engine_socket("chat-0"))
        argv = (self.python, str(FAKE), "--gpus", "2", "--uds", socket)
        program = ProgramPlan("chat-0", argv, env, socket, (0,), (), 0, 0, group=self.groups[0])
        groups = Groups({"chat-0": self.groups[0]}, {"chat-0": FIRST}, "eth0")
        return ray.with_cluster(_service("chat", "chat", program), groups, self.python, home)

    def _worker(self) -> tuple[ServicePlan, ...]:
        home, name = self.home(self.b), "chat-rank1-0"
        argv = ray.worker_command(self.python, home, self.b.address, self.a.address, FIRST, 1)
        env = {**ray.token_environment(home), "LLMHOST_PROGRAM": f"{home.root}:{name}"}
        return (_service("chat-rank1", "none", ProgramPlan(name, argv, env, "", (0,), (), 0, 0, group=self.groups[1])),)

    def _write(self, host: Host, services: tuple[ServicePlan, ...]) -> None:
        home = self.home(host)
        home.root.mkdir()
        home.marker.touch()
        node_identity.write_secret(home.ray_token_file, ray.token(SECRET))
        without = tuple(replace(s, replicas=tuple(replace(p, gpus=()) for p in s.replicas)) for s in services)
        engine, gateway = EnginePlan("default", self.python, "cuda", "0"), GatewayPlan("127.0.0.1", 8000, 2**20)
        plan = Plan(str(home.root), find_tools(), engine, gateway, without)
        writer.apply(home, writer.changes(home, render(plan)))

    def llmhost(self, host: Host, *words: str, ok: int | None = 0) -> str:
        return host.run(
            sys.executable, "-P", "-m", "llmhost", "--home", str(self.home(host).root), *words, ok=ok
        ).stdout

    def replicas(self, host: Host) -> dict[str, dict[str, Any]]:
        status = json.loads(self.llmhost(host, "status", "--json", ok=None))
        return {r["name"]: r for s in status["services"] for r in s["replicas"]}

    def ready(self) -> bool:
        every = {**self.replicas(self.a), **self.replicas(self.b)}
        return len(every) == 3 and {r["state"] for r in every.values()} == {"ready"}

    def ray(self, host: Host, *words: str, ok: int | None = 0, **env: str) -> str:
        known = {**ray.token_environment(self.home(host)), **env}
        told = [f"{name}={value}" for name, value in known.items()]
        done = host.run("env", *told, ray.ray_program(self.python), *words, ok=ok)
        return done.stdout + done.stderr

    def members(self) -> int:
        """Active nodes, as `ray status` has them; 0 while nobody answers it."""
        said = self.ray(self.a, "status", "--address", ray.cluster_address(self.a.address, FIRST), ok=None)
        return said.partition("Active:")[2].partition("Pending:")[0].count(" node_")

    def logs(self) -> str:
        homes = (self.home(self.a), self.home(self.b))
        return "\n".join(f"{f}\n{f.read_text()[-3000:]}" for h in homes for f in sorted(h.logs.glob("chat*.log")))


def _service(name: str, kind: Any, program: ProgramPlan) -> ServicePlan:
    names = (name,) if kind != "none" else ()
    return ServicePlan(name, kind, "", "fake", "", names, None, PATIENCE, 10, (program,))


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    root = Path(tempfile.mkdtemp(prefix="lr", dir="/tmp"))
    try:
        netns.require()
        python = str(root / "env/bin/python")
        for command in (["venv", "-q", str(root / "env")], ["pip", "install", "-q", "--python", python, RAY]):
            subprocess.run([find_uv(), *command], check=True, timeout=600)
        with netns.network(root) as network:
            yield Cluster(network, python)
    except netns.CannotRun as e:
        pytest.skip(str(e))
    finally:
        shutil.rmtree(root, ignore_errors=True)


def test_a_cluster_over_two_hosts(cluster: Cluster) -> None:
    cluster.llmhost(cluster.b, "start", "--no-wait")
    cluster.llmhost(cluster.a, "start", "--no-wait")
    try:
        wait_for(cluster.ready, PATIENCE)
        assert f"workers on {cluster.a.address} {cluster.b.address}" in cluster.logs()
        wait_for(lambda: cluster.members() == 2, PATIENCE)
        # Nobody gets in without the token.
        for wrong in ({"RAY_AUTH_TOKEN": "0" * 64}, {"RAY_AUTH_MODE": "disabled"}):
            address = ray.cluster_address(cluster.a.address, FIRST)
            said = cluster.ray(cluster.b, "status", "--address", address, ok=None, **wrong)
            assert "Active:" not in said, said
        assert oct(cluster.home(cluster.a).ray_token_file.stat().st_mode)[-3:] == "600"
        # A worker dies: all parts end, and come again as one.
        before = {**cluster.replicas(cluster.a), **cluster.replicas(cluster.b)}
        os.kill(_outside(cluster.b, before["chat-rank1-0"]["engine_pid"]), signal.SIGKILL)
        wait_for(lambda: cluster.replicas(cluster.a)["chat-0"]["restarts"] == 1, PATIENCE)
        wait_for(lambda: cluster.ready() and cluster.members() == 2, PATIENCE)
        after = {**cluster.replicas(cluster.a), **cluster.replicas(cluster.b)}
        for name in ("chat-0", "chat-rank1-0"):
            assert after[name]["engine_pid"] != before[name]["engine_pid"]
        assert after["chat-ray-0"]["engine_pid"] == before["chat-ray-0"]["engine_pid"]
        assert "node b: the engine was killed by SIGKILL" in cluster.home(cluster.a).log_file("chat-0").read_text()
        cluster.llmhost(cluster.b, "stop", "chat-rank1")
        wait_for(lambda: cluster.members() == 1, PATIENCE)
        cluster.llmhost(cluster.b, "start", "chat-rank1", "--no-wait")
        wait_for(lambda: cluster.ready() and cluster.members() == 2, PATIENCE)
    except BaseException:
        print(cluster.logs())
        raise
    finally:
        for host in (cluster.b, cluster.a):
            cluster.llmhost(host, "down", ok=None)


def _outside(host: Host, pid: int) -> int:
    """The id that a process of a host has here."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                numbers = next(x for x in (entry / "status").read_text().splitlines() if x.startswith("NSpid:")).split()
                root = os.readlink(entry / "ns/pid")
            except (OSError, StopIteration):
                continue
            if numbers[-1] == str(pid) and len(numbers) > 2 and root == os.readlink(f"/proc/{host._first}/ns/pid"):
                return int(entry.name)
    raise AssertionError(f"{host.name} has no process {pid}")
