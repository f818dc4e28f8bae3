"""One model on two GPUs: tensor parallel by vLLM itself and by Ray, and over two network namespaces as two nodes.

Needs a host with two GPUs, and root and iproute2 for the namespaces. Each namespace has a home with one of the GPUs: a
program that does nothing takes the other one. With ``--cpu`` only the namespaces are rehearsed. Standard library only.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

ADDRESSES = {"a": "10.78.0.1", "b": "10.78.0.2"}
PROGRAMS = {"a": "chat-0", "b": "chat-rank1-0"}
PATIENCE = 1800.0

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
    service = {"model": str(host.demo() / "chat"), "gpus": 2, "executor": executor}
    write_config(host, {"chat": service})
    began = time.monotonic()
    try:
        host.run("up")
        seconds = time.monotonic() - began
        said = _run([host.interpreter(), "-c", ASK, f"http://127.0.0.1:{host.port}/v1/chat/completions", question()])
    finally:
        host.run("down", check=False)
    return {"seconds": round(seconds, 1), **_judged(said)}


def on_two_nodes(host: Host) -> dict[str, Any]:
    """The same over two namespaces; then a part is killed: seconds until it answers again."""
    homes = _homes(host)
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
            for name in homes:
                _inside(host, homes, name, "down", check=False)
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


def _homes(host: Host) -> dict[str, Path]:
    """Short paths, with the engines of the home that is measured."""
    nodes = {name: {"address": address} for name, address in ADDRESSES.items()}
    chat: dict[str, Any] = {"model": str(host.demo() / "chat"), "span": 2}
    chat |= {"args": {"enforce_eager": True, "max_model_len": 1024}} if host.cpu else {"gpus": 2}
    idle = {"command": ["sleep", "infinity"], "gpus": [0], "nodes": ["b"]}
    services = {"chat": chat} if host.cpu else {"idle": idle, "chat": chat}
    known = json.loads(host.run("config", "show", "--no-defaults", "--json").stdout)
    text = {"engine": known.get("engine", {}), "nodes": nodes, "gateway": {"port": 8000}, "services": services}
    homes = {name: host.home.parent / f"llmhost-{name}" for name in ADDRESSES}
    for home in homes.values():
        shutil.rmtree(home, ignore_errors=True)
        home.mkdir(parents=True)
        (home / "engines").symlink_to(host.home / "engines")
        (home / "llmhost.yaml").write_text(json.dumps(text, indent=1))
    return homes


def _inside(
    host: Host, homes: dict[str, Path], name: str, *args: str, check: bool = True
) -> subprocess.CompletedProcess[str]:
    argv = ["ip", "netns", "exec", f"llmhost-{name}", *host.llmhost, "--home", str(homes[name]), *args]
    done = subprocess.run(argv, text=True, capture_output=True, check=False, timeout=PATIENCE)
    if check and done.returncode:
        raise RuntimeError(f"{' '.join(argv)}: {(done.stderr or done.stdout).strip()[-600:]}")
    return done


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
    argv = ["ip", "netns", "exec", f"llmhost-{name}", host.interpreter(), "-c", ASK]
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
