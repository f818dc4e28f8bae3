"""Whole rendered trees. Renew them with LLMHOST_GOLDEN=write and read the difference in review."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from llmhost import config
from llmhost.facts import ForeignFacts, PortFacts
from llmhost.plan.build import make_plan
from llmhost.plan.machine import Machine
from llmhost.render import render
from tests.samples import machine, model

HERE = Path(__file__).parent

CASES = {
    "demo": (
        """
        services:
          chat: {model: demo:chat, served_as: demo-chat, args: {max_model_len: 2048, enforce_eager: true,
                 enable_auto_tool_choice: true, tool_call_parser: hermes, reasoning_parser: qwen3}}
          embedding: {model: demo:embed, served_as: demo-embed, args: {enforce_eager: true}}
          rerank: {model: demo:rerank, served_as: demo-rerank, args: {enforce_eager: true}}
        """,
        {"chat": model(), "embedding": model("embed"), "rerank": model("rerank")},
        2,
    ),
    "odd": (
        """
        gateway: {host: 0.0.0.0, port: 9000, max_body_mib: 1, insecure: true, limits: {requests_per_minute: 60},
                  tls: {certificate: tls/server.pem, key: /etc/ssl/private/key.pem, client_ca: tls/ca.pem}}
        services:
          chat: {model: /m, served_as: ["通义 50% ; # \\"q\\" 'a'", gpt-4], replicas: 2, port: 9001, stop_timeout: 300,
                 default: true, limits: {requests_per_minute: 90, concurrent_requests: 4, max_body_mib: 0.5},
                 args: {hf_overrides: {a: [1, "x ; y"]}}, env: {ODD: "a ; b # c % d 'e' \\"f\\"\\n通义",
                 TOKEN: hush-hush}}
        """,
        {"chat": model(path="/data/models/通义 千问")},
        8,
    ),
    "foreign": (
        """
        services:
          chat: {model: demo:chat, needs: tei}
          controller: {command: "python -m fastchat.serve.controller --port {port}", ready: /test_connection}
          worker:
            command: [python, -m, fastchat.serve.model_worker, --model-path, "{model_dir}", --port, "{port}",
                      --worker-address, "http://127.0.0.1:{port}", --controller-address,
                      "http://127.0.0.1:{controller.port}", --note, "{{50% ; # 'a'}}"]
            needs: controller
            model_dir: /data/m
            env: {HOME_OF: "{home}", OLD: '; "x"'}
          tei:
            command: text-embeddings-router --hostname 127.0.0.1 --port {port} --prometheus-port {port:metrics}
            kind: embed
            served_as: [bge, gte]
            port: 8001
            replicas: 2
            paths: {/v1/embeddings: /embed, /v1/rerank: /rerank}
            model_name: 'BAAI/"bge" 中'
            ready: {path: /health, timeout: 5}
            health: {path: /embed, body: {inputs: 你好}, timeout: 20}
            cores: 2
            memory: 3GiB
          api:
            command: [uvicorn, "server:app", --uds, "{uds}"]
            kind: chat
            needs: [controller, worker]
        """,
        {"chat": model()},
        8,
    ),
    "empty": ("services: {}", {}, 4),
}

FOREIGN = {
    "controller": ForeignFacts(
        "/srv/llmhost/environments/fastchat/b/bin/python", "/srv/llmhost/environments/fastchat/b/bin"
    ),
    "worker": ForeignFacts(
        "/srv/llmhost/environments/fastchat/b/bin/python", "/srv/llmhost/environments/fastchat/b/bin", "/data/m"
    ),
    "tei": ForeignFacts("/usr/local/bin/text-embeddings-router"),
    "api": ForeignFacts("/srv/llmhost/environments/fastchat/b/bin/python", "/srv/llmhost/environments/fastchat/b/bin"),
}
PORTS = PortFacts({"worker-0": {"port": 21002}}, tuple(range(20_000, 20_020)))


def machine_with_all(cores: int, root: str = "/srv/llmhost") -> Machine:
    """One where the foreign engines of the cases are, too."""
    return replace(machine(cores=cores, root=root), foreign=FOREIGN, ports=PORTS)


@pytest.mark.parametrize("name", CASES)
def test_the_rendered_tree(name: str) -> None:
    text, models, cores = CASES[name]
    files = render(make_plan(config.parse(text), machine_with_all(cores), models))
    folder = HERE / name
    if os.environ.get("LLMHOST_GOLDEN") == "write":
        for stale in folder.rglob("*"):
            if stale.is_file():
                stale.unlink()
        for file in files:
            (folder / file.path).parent.mkdir(parents=True, exist_ok=True)
            (folder / file.path).write_text(file.text, encoding="utf-8")
    expected = {str(p.relative_to(folder)): p.read_text(encoding="utf-8") for p in folder.rglob("*") if p.is_file()}
    assert {f.path: f.text for f in files} == expected
    assert {f.mode for f in files} == {0o600}


def test_the_same_plan_gives_the_same_bytes() -> None:
    text, models, _ = CASES["odd"]
    assert render(make_plan(config.parse(text), machine(), models)) == render(
        make_plan(config.parse(text), machine(), models)
    )


def test_a_secret_is_in_the_file_of_the_guard_only() -> None:
    text, models, _ = CASES["odd"]
    files = render(make_plan(config.parse(text), machine(), models))
    assert {f.path for f in files if "hush-hush" in f.text} == {"conf/guard/chat-0.json", "conf/guard/chat-1.json"}


def test_only_what_changed_gets_another_fingerprint() -> None:
    text, models, cores = CASES["demo"]
    before = _sections(text, models, cores)
    after = _sections(text.replace("served_as: demo-rerank", "served_as: other"), models, cores)
    assert {name for name in before if before[name] != after[name]} == {"program:rerank-0"}


def _sections(text: str, models: dict, cores: int) -> dict[str, str]:
    plan = make_plan(config.parse(text), machine(cores=cores), models)
    conf = next(f.text for f in render(plan) if f.path == "conf/supervisord.conf")
    return {part.split("]")[0]: part for part in conf.split("\n[")[1:]}


def test_envs_of_two_plans_differ_only_in_the_guards_file() -> None:
    text, models, cores = CASES["demo"]
    plan = make_plan(config.parse(text), machine(cores=cores), models)
    program = plan.services[0].replicas[0]
    other = replace(program, env={**program.env, "A": "1"})
    changed = replace(plan, services=(replace(plan.services[0], replicas=(other,)), *plan.services[1:]))
    differing = {a.path for a, b in zip(render(plan), render(changed), strict=True) if a.text != b.text}
    assert differing == {"conf/guard/chat-0.json", "conf/supervisord.conf"}
