"""The ways that benchmarks/gateway.py compares: straight to the upstream, through llmhost's gateway, LiteLLM, and smg.

All of them serve three models from one machine: one from an nginx that answers at once, one from an nginx that reads
the whole body first, as an engine does, and one from a stub that streams.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

from llmhost.plan.types import Limits, ServicePlan
from tests.integration.gateway.running import Gateway
from tests.ports import free_port
from tests.unit.gateway.issued import issue
from tests.unit.gateway.plans import make_service

PLAIN, READING, STREAMS = "plain", "reading", "streams"
MODELS = (READING, PLAIN, STREAMS)
CHUNKS, INTERVAL = 150, 0.02
PLENTY = 4_000_000_000
"""Requests a minute: counted, and never reached."""
ANSWER = {
    "id": "c", "object": "chat.completion", "created": 1, "model": PLAIN,
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "y" * 400}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 9, "completion_tokens": 100, "total_tokens": 109},
}  # fmt: skip
NGINX = """
{user} daemon off; worker_processes 1; pid {root}/nginx.pid; error_log {root}/nginx.log;
events {{ worker_connections 8192; }}
http {{
  access_log off; keepalive_requests 100000000; client_body_buffer_size 8m; client_max_body_size 64m;
  client_body_temp_path {root}/body; proxy_temp_path {root}/p; fastcgi_temp_path {root}/f;
  uwsgi_temp_path {root}/u; scgi_temp_path {root}/s; default_type application/json;
  upstream answer {{ server unix:{root}/answer.sock; keepalive 64; }}
  server {{ listen unix:{root}/answer.sock; location / {{ return 200 '{answer}'; }} }}
  {servers}
}}
"""
SERVER = """
  server {{
    listen 127.0.0.1:{port} backlog=2048; listen unix:{socket} backlog=2048;
    location / {{ return 200 '{{"object":"list","data":[{{"id":"{model}","object":"model","owned_by":"x"}}]}}'; }}
    location /v1/chat/completions {{ {behaviour} }}
  }}
"""
READ_FIRST = (
    'proxy_pass http://answer; proxy_http_version 1.1; proxy_set_header Connection "";'
    ' proxy_pass_request_body off; proxy_set_header Content-Length "";'
)
"""nginx answers `return` before it has read the body, and reads it before it passes a request on."""


@dataclass(frozen=True)
class Way:
    """A server to send requests to: ``ports`` by model."""

    name: str
    ports: dict[str, int]
    key: str
    pid: int | None = None
    """The process whose tree is weighed; None for the upstream."""
    patience: int = 1
    """How many times as long it is measured: a slow one must have answered something."""

    def resident_mib(self) -> float:
        """Of its whole tree."""
        if self.pid is None:
            return 0.0
        process = psutil.Process(self.pid)
        return sum(p.memory_info().rss for p in (process, *process.children(recursive=True))) / 2**20


@dataclass(frozen=True)
class Upstreams:
    """Where each model is served, and the services of the gateway for them."""

    ports: dict[str, int]
    services: list[ServicePlan]


@contextlib.contextmanager
def upstreams(root: Path) -> Iterator[Upstreams]:
    """nginx and the streaming stub, each on TCP ports and on the sockets of a home below ``root``."""
    limits = Limits(requests_per_minute=PLENTY, concurrent_requests=100_000)
    services = [replace(make_service(root / "h", name), limits=limits) for name in MODELS]
    sockets = {s.name: s.replicas[0].socket for s in services}
    ports = {name: free_port() for name in MODELS}
    answer = json.dumps(ANSWER)
    user = "user root;" if os.geteuid() == 0 else ""  # it connects to a socket in a directory that is ours alone
    behaviours = {PLAIN: f"return 200 '{answer}';", READING: READ_FIRST}
    servers = "".join(
        SERVER.format(port=ports[m], socket=sockets[m], model=m, behaviour=b) for m, b in behaviours.items()
    )
    config = root / "nginx.conf"
    config.write_text(NGINX.format(root=root, servers=servers, answer=answer, user=user))
    stub = [sys.executable, str(Path(__file__).with_name("gateway_streams.py")), STREAMS, str(CHUNKS), str(INTERVAL)]
    with (
        _program(["nginx", "-c", str(config), "-e", f"{root}/nginx.log"], root / "nginx.out"),
        _program([*stub, str(ports[STREAMS]), sockets[STREAMS]], root / "streams.out"),
    ):
        for port in ports.values():
            _await_answer(f"http://127.0.0.1:{port}/v1/models", "")
        yield Upstreams(ports, services)


@contextlib.contextmanager
def direct(found: Upstreams) -> Iterator[Way]:
    """No gateway at all."""
    yield Way("upstream alone", found.ports, "none")


@contextlib.contextmanager
def llmhost(found: Upstreams, gateway: Gateway) -> Iterator[Way]:
    """Envoy as llmhost runs it, with three keys, and limits for the key that is used and for every service."""
    issued = [issue(name, requests_per_minute=PLENTY) for name in ("one", "two", "three")]
    gateway.keys = tuple(key for key, _ in issued)
    gateway.start(*found.services)
    gateway.wait_healthy(**{service.name: 1 for service in found.services})
    assert gateway.process is not None
    yield Way("llmhost", dict.fromkeys(MODELS, gateway.port), issued[-1][1], gateway.process.pid)


@contextlib.contextmanager
def litellm(root: Path, found: Upstreams, program: str) -> Iterator[Way]:
    """With a master key, which every request must show."""
    port, key = free_port(), "sk-benchmark"
    models = [
        {
            "model_name": name,
            "litellm_params": {
                "model": f"openai/{name}",
                "api_base": f"http://127.0.0.1:{upstream}/v1",
                "api_key": "x",
            },
        }
        for name, upstream in found.ports.items()
    ]
    config = root / "litellm.yaml"
    settings = {"general_settings": {"master_key": key}, "litellm_settings": {"telemetry": False, "num_retries": 0}}
    config.write_text(json.dumps({"model_list": models, **settings}))  # JSON is YAML
    argv = [program, "--config", str(config), "--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"]
    with _program(argv, root / "litellm.log", LITELLM_LOG="ERROR", LITELLM_LOCAL_MODEL_COST_MAP="True") as process:
        _await_answer(f"http://127.0.0.1:{port}/v1/models", key)
        yield Way("LiteLLM", dict.fromkeys(MODELS, port), key, process.pid, patience=4)


@contextlib.contextmanager
def smg(root: Path, found: Upstreams, program: str) -> Iterator[Way]:
    """Several models are its "IGW" mode, in which workers are added while it runs."""
    port = free_port()
    argv = [
        program, "launch", "--host", "127.0.0.1", "--port", str(port), "--prometheus-host", "127.0.0.1",
        "--prometheus-port", str(free_port()), "--enable-igw", "--policy", "round_robin", "--log-level", "warn",
        "--disable-load-monitoring",
    ]  # fmt: skip
    with _program(argv, root / "smg.log") as process:
        _await_answer(f"http://127.0.0.1:{port}/liveness", "none")
        for name, upstream in found.ports.items():
            worker = {"url": f"http://127.0.0.1:{upstream}", "model_id": name, "runtime_type": "vllm"}
            _ask(f"http://127.0.0.1:{port}/workers", "none", worker)
        for name in MODELS:
            _await_answer(f"http://127.0.0.1:{port}/v1/chat/completions", "none", name)
        yield Way("smg", dict.fromkeys(MODELS, port), "none", process.pid)


@contextlib.contextmanager
def _program(argv: list[str], log: Path, **env: str) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as out, subprocess.Popen(argv, stdout=out, stderr=out, env={**os.environ, **env}) as process:
        try:
            yield process
        finally:
            tree = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
            process.terminate()
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
            for child in tree:
                with contextlib.suppress(psutil.NoSuchProcess):
                    child.kill()


def warm_up(way: Way, requests: int = 100) -> None:
    """Whatever a way does at its first requests it does before it is measured."""
    for _ in range(requests):
        for model in (PLAIN, READING):
            body = {"model": model, "messages": [{"role": "user", "content": "hi"}]}
            _ask(f"http://127.0.0.1:{way.ports[model]}/v1/chat/completions", way.key, body)


def _ask(url: str, key: str, body: object = None) -> None:
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(url, data, headers), timeout=30) as answer:
        answer.read()


def _await_answer(url: str, key: str, model: str | None = None, seconds: float = 120) -> None:
    """Until the address answers with 200, to a request for `model` if one is given."""
    body = {"model": model, "messages": [{"role": "user", "content": "hi"}]} if model else None
    deadline = time.monotonic() + seconds
    while True:
        try:
            return _ask(url, key, body)
        except OSError as e:
            if time.monotonic() > deadline:
                raise RuntimeError(f"{url} does not answer: {e}") from e
            time.sleep(0.2)
