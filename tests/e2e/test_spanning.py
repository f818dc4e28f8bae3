"""One model over two hosts with real vLLM: tensor parallel 2, each part in a network of its own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from tests.e2e.conftest import Installation
from tests.integration.nodes.homes import Homes
from tests.netns import Host, wait_for

CONFIG = """gateway: {{port: 8000}}
services:
  chat: {{model: {model}, env: {{OMP_NUM_THREADS: 1}}, args: {{enforce_eager: true, max_model_len: 1024}}{span}}}
"""
PATIENCE = 900.0


def add_with_engines(homes: Homes, name: str, engines: Path) -> Host:
    """One more host, with the engines of another home."""
    host = homes.add(name)
    shutil.rmtree(homes.home(host).engines)
    homes.home(host).engines.symlink_to(engines)
    return host


def spread(homes: Homes, engines: Path, model: Path) -> tuple[Host, Host]:
    """Two nodes with the engines of another home, and a model for both; it runs when this returns."""
    hosts = add_with_engines(homes, "a", engines), add_with_engines(homes, "b", engines)
    file = homes.home(hosts[0]).config_file
    file.write_text(CONFIG.format(model=model, span=""), encoding="utf-8")
    homes.run(hosts[0], "node", "add", "root@b")
    written = file.read_text(encoding="utf-8")
    file.write_text(written.replace("1024}}", "1024}, span: 2}"), encoding="utf-8")
    hosts[0].run(*hosts[0].llmhost("up", "--all-nodes"), patience=PATIENCE)
    return hosts


def ask(host: Host) -> str:
    """What it says through the gateway of a host, '' when it says nothing."""
    question = {"role": "user", "content": "What is the capital of France?"}
    body = json.dumps({"model": "chat", "messages": [question], "max_tokens": 20, "temperature": 0})
    url = "http://127.0.0.1:8000/v1/chat/completions"
    done = host.run("curl", "-s", "-m", "120", "-H", "Content-Type: application/json", "-d", body, url, ok=None)
    try:
        return str(json.loads(done.stdout)["choices"][0]["message"]["content"])
    except (ValueError, KeyError):
        return ""


def replica(homes: Homes, host: Host, name: str) -> dict[str, Any]:
    status = json.loads(homes.run(host, "status", "--json", ok=None))
    return next(r for s in status["services"] for r in s["replicas"] if r["name"] == name)


def check(homes: Homes, engines: Path, model: Path) -> None:
    a, b = spread(homes, engines, model)
    assert "Paris" in ask(a)
    assert "Paris" in ask(b)  # through the gateway of the node that has no API server
    log = homes.home(b).log_file("chat-rank1-0").read_text(encoding="utf-8", errors="replace")
    assert "world_size=2 rank=1" in log
    before = [replica(homes, a, "chat-0"), replica(homes, b, "chat-rank1-0")]
    b.run("kill", "-KILL", str(before[1]["engine_pid"]))
    wait_for(lambda: replica(homes, a, "chat-0")["state"] != "ready", PATIENCE)
    wait_for(lambda: "Paris" in ask(a), PATIENCE)
    after = [replica(homes, a, "chat-0"), replica(homes, b, "chat-rank1-0")]
    assert all(new["engine_pid"] != old["engine_pid"] for new, old in zip(after, before, strict=True))
    a.run(*a.llmhost("down", "--all-nodes"), patience=PATIENCE)


def test_one_model_over_two_hosts(installation: Installation, homes: Homes) -> None:
    check(homes, installation.home / "engines", installation.checkout / "llmhost/demo/chat")
