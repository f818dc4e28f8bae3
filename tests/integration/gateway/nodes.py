"""Gateways of several nodes on one machine, each with a home of its own."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import httpx

from llmhost import node_identity
from llmhost.paths import Home
from llmhost.plan.types import ElsewherePlan, NodePlan, Plan, ProgramPlan, ServicePlan
from tests.integration.gateway.running import Gateway
from tests.integration.gateway.stub import Stub
from tests.ports import free_port
from tests.unit.gateway.plans import make_service

CHAT = "/v1/chat/completions"


@dataclass
class NodeGateway(Gateway):
    """The gateway of one node; services are given as all nodes have them: name -> node of each replica."""

    name: str = ""
    nodes: tuple[NodePlan, ...] = ()

    def plan(self, *services: ServicePlan) -> Plan:
        here = replace(next(n for n in self.nodes if n.name == self.name), listen="127.0.0.1", mark="m")
        nodes = tuple(here if n.name == self.name else n for n in self.nodes)
        return replace(super().plan(*services), node=self.name, nodes=nodes)

    def service(self, name: str, places: str, **more: object) -> ServicePlan:
        """``places``: the node of each replica, a letter each."""
        made = make_service(self.root, name, replicas=len(places))
        own = tuple(r for r, place in zip(made.replicas, places, strict=True) if place == self.name)
        others = {p: tuple(f"{name}-{i}" for i, at in enumerate(places) if at == p) for p in places if p != self.name}
        elsewhere = tuple(ElsewherePlan(node, others[node]) for node in sorted(others))
        return replace(made, replicas=own, elsewhere=elsewhere, **more)  # type: ignore[arg-type]

    def ask(self, model: str = "chat", **headers: str) -> httpx.Response:
        with self.client() as client:
            return client.post(CHAT, json={"model": model}, headers=headers)

    def answering(self, times: int = 40, model: str = "chat") -> set[str]:
        """Who answers; every answer is one."""
        with self.client() as client:
            answers = [client.post(CHAT, json={"model": model}) for _ in range(times)]
        assert {a.status_code for a in answers} == {200}, [a.text for a in answers if a.status_code != 200][:1]
        return {a.json()["stub"] for a in answers}


@dataclass
class Nodes:
    """Some nodes on one machine, each with a home of its own."""

    gateways: dict[str, NodeGateway]
    stack: ExitStack

    def start(self, name: str = "chat", places: str = "ab", **more: object) -> dict[str, Stub]:
        """A service on all gateways, with stubs as its engines; returns these."""
        stubs = {}
        for gateway in self.gateways.values():
            service = gateway.service(name, places, **more)
            for replica in service.replicas:
                stubs[replica.name] = self.engine(replica)
            gateway.start(service)
        for gateway in self.gateways.values():
            alone = set(places) == {gateway.name}
            gateway.wait_healthy(**({name: len(places)} if alone else {f"{name}@nodes": len(set(places))}))
        return stubs

    def engine(self, replica: ProgramPlan) -> Stub:
        """A stub in the place of an engine; it may be stopped before the end."""
        stub = Stub(Path(replica.socket), replica.name)
        stub.start()
        self.stack.callback(lambda: stub.stop() if stub.running else None)
        return stub

    def __getitem__(self, name: str) -> NodeGateway:
        return self.gateways[name]


@contextmanager
def some_nodes(names: str = "abc") -> Iterator[Nodes]:
    """Nodes that know each other, not yet started."""
    folder = Path(tempfile.mkdtemp(prefix="lh", dir="/tmp"))
    known = tuple(NodePlan(name, "127.0.0.1", free_port()) for name in names)
    first = Home(folder / names[0])
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder)
        made = {n.name: NodeGateway(folder / n.name, name=n.name, nodes=known) for n in known}
        for name, gateway in made.items():
            node_identity.ensure(first, name)
            stack.enter_context(gateway)
            if gateway.home != first:
                gateway.home.node_tls.mkdir(parents=True)
                for file in node_identity.files_of(first, name):
                    shutil.copy(file, gateway.root / file.relative_to(first.root))
        yield Nodes(made, stack)
