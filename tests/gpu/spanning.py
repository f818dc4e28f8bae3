"""One model on two GPUs: tensor parallel by vLLM itself and by Ray, and over two network namespaces as two nodes.

Needs a host with two GPUs, and root, iproute2 and util-linux for the namespaces. Each has a home with one of the GPUs
(a program that does nothing takes the other one), a name and shared memory of its own: NCCL and vLLM see two hosts,
and use the network between them. With ``--cpu`` only the namespaces are rehearsed. Standard library only.
"""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

ADDRESSES = {"a": "10.78.0.1", "b": "10.78.0.2"}
PROGRAMS = {"a": "chat-0", "b": "chat-rank1-0"}
PATIENCE = 600.0
TOKENS, STREAMS, ROUNDS = 256, 32, 3
"""Tokens of an answer, requests at the same time, and how often speeds are measured."""

NO_MULTICAST: dict[str, Any] = {
    "env": {
        "NCCL_NVLS_ENABLE": "0",
        "NVSHMEM_DISABLE_NVLS": "1",
        "TORCH_SYMM_MEM_DISABLE_MULTICAST": "1",
        "VLLM_ALLREDUCE_USE_SYMM_MEM": "0",
    },
    "args": {"compilation_config": {"pass_config": {"fuse_allreduce_rms": False, "fuse_gemm_comms": False}}},
}
"""Of a service: vLLM without the multicast of NVLink, which virtual machines that share a switch must leave alone."""

INSIDE = 'hostname "$0" && mount -t tmpfs tmpfs /dev/shm && exec "$@"'

JOIN = """
import json, shutil, sys
from pathlib import Path
from llmhost import config, node_identity
from llmhost.machine import node_facts
from llmhost.paths import Home
from llmhost.probe.node_facts import node_to_json
homes = {name: Home(Path(root)) for name, root in json.loads(sys.argv[1]).items()}
first = homes["a"]
for name, home in homes.items():
    node_identity.ensure(first, name)
    home.marker.touch()
    home.node_file.write_text(name)
    facts, machine = node_facts(home, config.load(home.config_file), name)
    first.node_facts_file(name).write_text(json.dumps(node_to_json(facts, machine)))
other = homes["b"]
other.node_tls.mkdir(parents=True, exist_ok=True)
for file in (*node_identity.files_of(first, "b"), *first.nodes.glob("*.json")):
    shutil.copy(file, other.root / file.relative_to(first.root))
"""
"""What `llmhost node add` does, without ssh; run by the interpreter of llmhost."""

ASK = """
import sys, urllib.request
request = urllib.request.Request(sys.argv[1], sys.argv[2].encode(), {"Content-Type": "application/json"})
print(urllib.request.urlopen(request, timeout=300).read().decode())
"""


class Host(Protocol):
    """What is used of `report.Host`."""

    out: Path
    home: Path
    cpu: bool
    port: int
    llmhost: list[str]

    def run(self, *args: str, check: bool = True, timeout: float = 3600) -> subprocess.CompletedProcess[str]: ...

    def json(self, *args: str) -> Any: ...

    def interpreter(self) -> str: ...

    def demo(self) -> Path: ...


def question() -> str:
    said = {"role": "user", "content": "What is the capital of France?"}
    return json.dumps({"model": "chat", "messages": [said], "max_tokens": 20, "temperature": 0})


def on_one_host(host: Host, write_config: Any, executor: str) -> dict[str, Any]:
    """Tensor parallel 2, with the demo model: seconds until ready, and what it answers."""
    service = {"model": str(host.demo() / "chat"), "gpus": 2, "executor": executor, **NO_MULTICAST}
    write_config(host, {"chat": service})
    began = time.monotonic()
    try:
        host.run("up")
        seconds = time.monotonic() - began
        said = _run([host.interpreter(), "-c", ASK, f"http://127.0.0.1:{host.port}/v1/chat/completions", question()])
    finally:
        host.run("down", check=False)
    return {"seconds": round(seconds, 1), **_judged(said)}


def speed(host: Host, write_config: Any, model: Path, gpus: int, executor: str) -> dict[str, Any]:
    """Seconds until a model without weights is ready, and tokens per second, of one request and of many together."""
    args = {"max_model_len": 8192, "load_format": "dummy", "tool_call_parser": None, "reasoning_parser": None}
    service = {"model": str(model), "kind": "chat", "gpus": gpus if gpus > 1 else [0], "executor": executor}
    write_config(host, {"chat": {**service, **NO_MULTICAST, "args": {**NO_MULTICAST["args"], **args}}})
    began = time.monotonic()
    try:
        host.run("up")
        seconds = time.monotonic() - began
        _tokens_per_second(host, 0, STREAMS)
        found = {
            count: [_tokens_per_second(host, number, count) for number in range(1, ROUNDS + 1)]
            for count in (1, STREAMS)
        }
    finally:
        host.run("down", check=False)
    rates = {str(count): round(statistics.median(each), 1) for count, each in found.items()}
    return {"ok": True, "seconds": round(seconds, 1), "tokens_per_second": rates}


def _tokens_per_second(host: Host, seed: int, count: int) -> float:
    """Of as many requests at once, each with a prompt of its own (or the prefix cache answers)."""

    def ask(number: int) -> None:
        prompt = [1000 + (seed * 7919 + number * 104729 + at * 31) % 100_000 for at in range(128)]
        body = {"model": "chat", "prompt": prompt, "max_tokens": TOKENS, "ignore_eos": True, "temperature": 0}
        request = urllib.request.Request(
            f"http://127.0.0.1:{host.port}/v1/completions",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=300) as answer:
            used = json.load(answer)["usage"]["completion_tokens"]
        if used != TOKENS:
            raise RuntimeError(f"{used} tokens instead of {TOKENS}")

    began = time.monotonic()
    with ThreadPoolExecutor(max_workers=count) as pool:
        list(pool.map(ask, range(count)))
    return count * TOKENS / (time.monotonic() - began)


def on_two_nodes(host: Host, executor: str = "mp", **args: int) -> dict[str, Any]:
    """The same over two namespaces, as a pipeline or as ``args`` say, and seconds until it is back after a kill."""
    homes = _homes(host, executor, args)
    with namespaces():
        _run([host.interpreter(), "-c", JOIN, json.dumps({name: str(home) for name, home in homes.items()})])
        began = time.monotonic()
        try:
            for name in homes:
                _inside(host, homes, name, "up", "--no-wait")
            _await(host, homes)
            seconds = time.monotonic() - began
            said = {name: _judged(_asked(host, name)) for name in homes}
            part = _replica(host, homes, "b")["engine_pid"]
            began = time.monotonic()
            _run(["kill", "-KILL", str(part)])
            _await(host, homes, but=part)
            again = time.monotonic() - began
            said["after a kill"] = _judged(_asked(host, "a"))
        finally:
            for name, home in homes.items():
                _inside(host, homes, name, "down", check=False)
                kept = "-".join(("logs", executor, *args, name))
                shutil.copytree(home / "logs", host.out / kept, dirs_exist_ok=True)
    good = all(answer["ok"] for answer in said.values())
    return {"seconds": round(seconds, 1), "again": round(again, 1), "ok": good, "answers": said}


@contextmanager
def namespaces() -> Iterator[None]:
    """Two hosts with a cable between them."""
    for name in ADDRESSES:
        subprocess.run(["ip", "netns", "delete", f"llmhost-{name}"], capture_output=True, check=False)
        _run(["ip", "netns", "add", f"llmhost-{name}"])
    try:
        ends = ("name", "eth0", "netns", "llmhost-b")
        _run(["ip", "-n", "llmhost-a", "link", "add", "eth0", "type", "veth", "peer", *ends])
        for name, address in ADDRESSES.items():
            _run(["ip", "-n", f"llmhost-{name}", "address", "add", f"{address}/24", "dev", "eth0"])
            for device in ("lo", "eth0"):
                _run(["ip", "-n", f"llmhost-{name}", "link", "set", device, "up"])
        yield
    finally:
        for name in ADDRESSES:
            subprocess.run(["ip", "netns", "delete", f"llmhost-{name}"], capture_output=True, check=False)


def _homes(host: Host, executor: str, args: dict[str, int]) -> dict[str, Path]:
    """Short paths, with the engines and caches of the home that is measured."""
    nodes = {name: {"address": address} for name, address in ADDRESSES.items()}
    chat: dict[str, Any] = {"model": str(host.demo() / "chat"), "span": 2}
    chat |= {"args": {"enforce_eager": True, "max_model_len": 1024}} if host.cpu else {"gpus": 2, **NO_MULTICAST}
    chat |= {"executor": executor, "args": {**chat["args"], **args}}
    idle = {"command": ["sleep", "infinity"], "gpus": [0], "nodes": ["b"]}
    services = {"chat": chat} if host.cpu else {"idle": idle, "chat": chat}
    known = json.loads(host.run("config", "show", "--no-defaults", "--json").stdout)
    text = {"engine": known.get("engine", {}), "nodes": nodes, "gateway": {"port": 8000}, "services": services}
    homes = {name: host.home.parent / f"llmhost-{name}" for name in ADDRESSES}
    for home in homes.values():
        shutil.rmtree(home, ignore_errors=True)
        home.mkdir(parents=True)
        for shared in ("engines", "cache"):
            (host.home / shared).mkdir(exist_ok=True)
            (home / shared).symlink_to(host.home / shared)
        (home / "llmhost.yaml").write_text(json.dumps(text, indent=1))
    return homes


def _inside(
    host: Host, homes: dict[str, Path], name: str, *args: str, check: bool = True
) -> subprocess.CompletedProcess[str]:
    argv = [*_entered(name), *host.llmhost, "--home", str(homes[name]), *args]
    done = subprocess.run(argv, text=True, capture_output=True, check=False, timeout=PATIENCE)
    if check and done.returncode:
        raise RuntimeError(f"{' '.join(argv)}: {(done.stderr or done.stdout).strip()[-600:]}")
    return done


def _entered(name: str) -> list[str]:
    """What runs a command in a namespace, as on a host of its own."""
    space = f"llmhost-{name}"
    return ["ip", "netns", "exec", space, "unshare", "--uts", "--mount", "sh", "-c", INSIDE, space]


def _replica(host: Host, homes: dict[str, Path], name: str) -> dict[str, Any]:
    status = json.loads(_inside(host, homes, name, "status", "--json", check=False).stdout)
    found = (r for s in status["services"] for r in s["replicas"] if r["name"] == PROGRAMS[name])
    return dict(next(found))


def _await(host: Host, homes: dict[str, Path], but: int = 0) -> None:
    """Until both parts are ready, with another process than `but`."""
    deadline = time.monotonic() + PATIENCE
    while True:
        found = {name: _replica(host, homes, name) for name in homes}
        if all(r["state"] == "ready" and r["engine_pid"] != but for r in found.values()):
            return
        if any(r["state"] == "failed" for r in found.values()) or time.monotonic() > deadline:
            raise RuntimeError("; ".join(f"{r['name']} is {r['state']}: {r['error']}" for r in found.values()))
        time.sleep(1)


def _asked(host: Host, name: str) -> str:
    deadline = time.monotonic() + 60  # the gateway finds out a moment after the guard
    argv = [*_entered(name), host.interpreter(), "-c", ASK]
    while True:
        done = subprocess.run(
            [*argv, "http://127.0.0.1:8000/v1/chat/completions", question()],
            text=True,
            capture_output=True,
            check=False,
        )
        if done.returncode == 0 or time.monotonic() > deadline:
            return done.stdout
        time.sleep(1)


def _judged(said: str) -> dict[str, Any]:
    try:
        text = str(json.loads(said)["choices"][0]["message"]["content"])
    except (ValueError, KeyError):
        text = ""
    return {"ok": "Paris" in text, "text": text[:80]}


def _run(argv: Sequence[str]) -> str:
    done = subprocess.run(argv, text=True, capture_output=True, check=False, timeout=PATIENCE)
    if done.returncode:
        raise RuntimeError(f"{argv[0]}: {(done.stderr or done.stdout).strip()[-600:]}")
    return done.stdout
