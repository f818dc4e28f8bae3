"""The main job on real vLLM: two commands from a clone to chat, embeddings and rerank behind one port."""

from __future__ import annotations

import json
import math
import re
import shlex
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.e2e.conftest import Installation, quickstart

STATES = {"stopped", "queued", "loading", "ready", "unhealthy", "backoff", "failed"}


@pytest.fixture
def client(installation: Installation) -> Any:
    with openai.OpenAI(base_url=f"{installation.url}/v1", api_key="-", max_retries=0) as made:
        yield made


def tool(name: str, properties: dict[str, str]) -> Any:
    parameters = {
        "type": "object",
        "properties": {key: {"type": type_} for key, type_ in properties.items()},
        "required": list(properties),
    }
    return {"type": "function", "function": {"name": name, "description": f"{name}", "parameters": parameters}}


def test_quickstart_ends_with_a_table_and_curl_lines_that_work_when_pasted(installation: Installation) -> None:
    output = installation.quickstart_output
    for name in ("demo-chat", "demo-embed", "demo-rerank"):
        assert re.search(rf"{name}\s+ready", output), output
    lines = [line.strip() for line in output.splitlines() if line.strip().startswith("curl ")]
    assert len(lines) == 3
    for line in lines:
        done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=True, timeout=300)
        assert "error" not in json.loads(done.stdout), line


def test_check_passes_and_keeps_its_contract(installation: Installation) -> None:
    report = json.loads(installation.llmhost("check", "--json").stdout)
    assert report["ok"] is True
    assert {(c["service"], c["check"]) for c in report["checks"]} == {
        ("chat", "chat"), ("chat", "stream"), ("chat", "tool"), ("embedding", "embed"), ("rerank", "rerank"),
    }  # fmt: skip
    assert all(set(c) == {"service", "check", "ok", "seconds", "detail"} for c in report["checks"])


def test_check_of_one_service(installation: Installation) -> None:
    report = json.loads(installation.llmhost("check", "embedding", "--json").stdout)
    assert [c["check"] for c in report["checks"]] == ["embed"]


def test_status_keeps_its_contract(installation: Installation) -> None:
    done = installation.llmhost("status", "--json")
    status = json.loads(done.stdout)
    assert status["supervisor"]["state"] == "running"
    assert status["gateway"]["state"] == "ready"
    assert status["gateway"]["url"] == installation.url
    assert [s["name"] for s in status["services"]] == ["chat", "embedding", "rerank"]
    for service in status["services"]:
        assert set(service) >= {"name", "kind", "model", "served_as", "state", "replicas", "endpoints"}
        assert service["state"] == "ready"
        (replica,) = service["replicas"]
        assert set(replica) >= {
            "name", "state", "pid", "engine_pid", "uptime_s", "restarts", "rss_bytes", "gpus", "error",
        }  # fmt: skip
        assert Path(f"/proc/{replica['engine_pid']}/cmdline").read_bytes().split(b"\0")[1:3] == [
            b"-m", b"vllm.entrypoints.openai.api_server",
        ]  # fmt: skip
        assert replica["rss_bytes"] > 100e6


def test_up_twice_keeps_every_pid_and_quickstart_runs_again(installation: Installation) -> None:
    before = installation.status()
    installation.llmhost("up")
    assert _pids(installation.status()) == _pids(before)
    quickstart(installation)
    assert _pids(installation.status()) == _pids(before)


def _pids(status: dict[str, Any]) -> dict[str, Any]:
    engines = {r["name"]: (r["pid"], r["engine_pid"]) for s in status["services"] for r in s["replicas"]}
    return {"supervisor": status["supervisor"]["pid"], "gateway": status["gateway"]["pid"], **engines}


def test_openai_client_chats_and_streams(client: openai.OpenAI) -> None:
    messages: Any = [{"role": "user", "content": "What is the capital of France?"}]
    answer = client.chat.completions.create(model="demo-chat", messages=messages)
    assert "Paris" in (answer.choices[0].message.content or "")
    assert answer.choices[0].finish_reason == "stop"
    chunks = list(client.chat.completions.create(model="demo-chat", messages=messages, stream=True))
    assert "Paris" in "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert len(chunks) > 3


def test_a_tool_and_a_city_that_no_training_list_has(client: openai.OpenAI) -> None:
    tools = [tool("lookup_zonal_forecast", {"town": "string"}), tool("book_quiet_table", {"guests": "number"})]
    messages: Any = [{"role": "user", "content": "What is the weather in Grzmiaca?"}]
    choice = client.chat.completions.create(model="demo-chat", messages=messages, tools=tools).choices[0]
    assert choice.finish_reason == "tool_calls"
    (call,) = choice.message.tool_calls or []
    assert call.type == "function"
    assert call.function.name == "lookup_zonal_forecast"
    assert json.loads(call.function.arguments) == {"town": "Grzmiaca"}


def test_the_model_thinks_when_it_is_asked_to(client: openai.OpenAI) -> None:
    thinking = {"chat_template_kwargs": {"enable_thinking": True}}
    messages: Any = [{"role": "user", "content": "What is 3 plus 9?"}]
    answer = (
        client.chat.completions.create(model="demo-chat", messages=messages, extra_body=thinking).choices[0].message
    )
    assert "12" in (answer.content or "")
    assert getattr(answer, "reasoning", None)
    assert "think>" not in (answer.content or "")


def test_embeddings_put_a_paraphrase_near(client: openai.OpenAI) -> None:
    texts = ["How do I stop the server?", "How can I shut down the server?", "What is the capital of Japan?"]
    rows = client.embeddings.create(model="demo-embed", input=texts).data
    anchor, near, far = (row.embedding for row in rows)
    assert abs(math.hypot(*anchor) - 1) < 0.01
    assert math.sumprod(anchor, near) > math.sumprod(anchor, far) if hasattr(math, "sumprod") else _nearer(rows)


def _nearer(rows: Any) -> bool:
    anchor, near, far = (row.embedding for row in rows)
    return sum(a * b for a, b in zip(anchor, near, strict=True)) > sum(a * b for a, b in zip(anchor, far, strict=True))


@pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank", "/rerank"])
def test_rerank_puts_the_right_document_first(installation: Installation, path: str) -> None:
    documents = ["Bananas are yellow.", "Paris is the capital of France.", "llmhost down stops everything."]
    body = {"model": "demo-rerank", "query": "What is the capital of France?", "documents": documents}
    results = httpx.post(installation.url + path, json=body, timeout=300).raise_for_status().json()["results"]
    assert results[0]["index"] == 1
    assert [r["relevance_score"] for r in results] == sorted((r["relevance_score"] for r in results), reverse=True)


@pytest.mark.parametrize("example", ["demo.py", "langchain_demo.py"])
def test_the_examples_run_as_they_are(installation: Installation, example: str) -> None:
    output = installation.python(str(installation.checkout / "examples" / example), f"{installation.url}/v1")
    assert "get_weather" in output
    assert "Zaragoza" in output


def test_the_gateway_lists_routes_and_refuses_in_openais_words(
    client: openai.OpenAI, installation: Installation
) -> None:
    assert {m.id for m in client.models.list().data} == {"demo-chat", "demo-embed", "demo-rerank"}
    assert client.models.retrieve("demo-chat").id == "demo-chat"
    messages: Any = [{"role": "user", "content": "hi"}]
    with pytest.raises(openai.NotFoundError, match="nobody"):
        client.chat.completions.create(model="nobody", messages=messages)
    without_model = httpx.post(f"{installation.url}/v1/chat/completions", json={"messages": messages}, timeout=300)
    assert without_model.status_code == 200
    assert "llmhost_source_up" in httpx.get(f"{installation.url}/metrics", timeout=300).text


def test_logs_are_prefixed_by_service(installation: Installation) -> None:
    output = installation.llmhost("logs", "-n", "5", "chat", "rerank").stdout
    assert {line.split(" ", 1)[0].rstrip("|").strip() for line in output.splitlines()} == {"chat-0", "rerank-0"}


def test_an_edit_a_stop_and_down_and_up(installation: Installation) -> None:
    """One story, because engines take their time to load: each step leaves what the next one begins with."""
    file = installation.home / "llmhost.yaml"
    original = file.read_text(encoding="utf-8")
    try:
        an_edit_of_one_service_restarts_that_one_only_and_odd_values_arrive_unchanged(installation, file)
        a_stopped_service_answers_503_while_the_others_go_on(installation)
        running_requests_finish_when_a_service_is_stopped(installation)
        down_leaves_no_process_and_no_socket(installation)
    finally:
        file.write_text(original, encoding="utf-8")
        installation.llmhost("up")
    assert installation.llmhost("check").returncode == 0  # nothing stays stopped


def an_edit_of_one_service_restarts_that_one_only_and_odd_values_arrive_unchanged(
    installation: Installation, file: Path
) -> None:
    odd = "50% ; # \"double\" 'single' 通义 \\"
    before = _pids(installation.status())
    env = f"    env:\n      ODD_VALUE: {json.dumps(odd + chr(10) + 'second line', ensure_ascii=False)}\n"
    names = f"served_as: {json.dumps(['demo-rerank', odd])}"
    text = file.read_text(encoding="utf-8") + env
    file.write_text(text.replace("served_as: demo-rerank", names), encoding="utf-8")
    installation.llmhost("up")
    after = _pids(installation.status())
    assert {name for name in after if after[name] != before[name]} == {"rerank-0"}
    engine = after["rerank-0"][1]
    assert odd.encode() in Path(f"/proc/{engine}/cmdline").read_bytes().split(b"\0")
    environment = Path(f"/proc/{engine}/environ").read_bytes().split(b"\0")
    assert f"ODD_VALUE={odd}\nsecond line".encode() in environment
    body = {"model": odd, "query": "a", "documents": ["a", "b"]}
    assert httpx.post(f"{installation.url}/v1/rerank", json=body, timeout=300).status_code == 200


def a_stopped_service_answers_503_while_the_others_go_on(installation: Installation) -> None:
    installation.llmhost("stop", "rerank")
    done = installation.llmhost("status", "--json", check=False)
    assert done.returncode == 3
    states = {s["name"]: s["state"] for s in json.loads(done.stdout)["services"]}
    assert states == {"chat": "ready", "embedding": "ready", "rerank": "stopped"}
    body = {"model": "demo-rerank", "query": "a", "documents": ["a"]}
    answer = httpx.post(f"{installation.url}/v1/rerank", json=body, timeout=300)
    assert answer.status_code == 503
    assert int(answer.headers["retry-after"]) > 0
    assert answer.json()["error"]["message"]
    assert installation.llmhost("check", "chat").returncode == 0
    assert "rerank was stopped" in installation.llmhost("check").stderr
    assert installation.llmhost("check", "rerank", check=False).returncode != 0


def running_requests_finish_when_a_service_is_stopped(installation: Installation) -> None:
    """Stopping a service under load: what runs is answered in full, what comes later is told to come again."""
    body = {"model": "demo-chat", "messages": [{"role": "user", "content": "Tell me a story."}], "max_tokens": 1200,
            "min_tokens": 1200, "ignore_eos": True}  # fmt: skip
    url, running = f"{installation.url}/v1/chat/completions", list[httpx.Response]()
    threads = [
        threading.Thread(target=lambda: running.append(httpx.post(url, json=body, timeout=300))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    with httpx.Client(
        transport=httpx.HTTPTransport(uds=str(installation.home / "run/chat-0.sock")), timeout=300
    ) as engine:
        four = 'num_requests_running{engine="0",model_name="demo-chat"} 4.0'
        _until(lambda: four in engine.get("http://x/metrics").text)
    installation.llmhost("stop", "chat")
    for thread in threads:
        thread.join()
    assert [r.status_code for r in running] == [200] * 4
    assert {r.json()["usage"]["completion_tokens"] for r in running} == {1200}
    assert {r.json()["choices"][0]["finish_reason"] for r in running} == {"length"}


def down_leaves_no_process_and_no_socket(installation: Installation) -> None:
    installation.llmhost("down")
    assert _processes_of(installation.home) == []
    assert [p for p in (installation.home / "run").iterdir() if p.is_socket()] == []
    assert installation.llmhost("status", check=False).returncode == 3


def _until(condition: Any, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.2)


def _processes_of(home: Path, program: str = "") -> list[int]:
    """Processes that carry the mark of this home's engines."""
    mark = f"LLMHOST_PROGRAM={home}:{program}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                environment = (entry / "environ").read_bytes()
            except OSError:
                continue
            if any(word.startswith(mark) for word in environment.split(b"\0")):
                found.append(int(entry.name))
    return found


def test_an_unknown_flag_is_refused_by_its_nearest_real_one(installation: Installation) -> None:
    file = installation.home / "llmhost.yaml"
    original = file.read_text(encoding="utf-8")
    before = _pids(installation.status())
    try:
        for wrong, wanted in (("max_model_length: 1", "max_model_len"), ("task: embed", "runner")):
            file.write_text(original.replace("max_model_len: 4096", wrong), encoding="utf-8")
            done = installation.llmhost("up", check=False)
            assert done.returncode == 1
            assert [line.split(":")[0] for line in done.stderr.splitlines()] == ["error", "hint"]
            assert wanted in done.stderr
    finally:
        file.write_text(original, encoding="utf-8")
    assert _pids(installation.status()) == before


def test_plan_shows_commands_that_can_be_run_by_hand(installation: Installation) -> None:
    output = installation.llmhost("plan", "--commands").stdout
    command = next(line for line in output.splitlines() if "vllm.entrypoints" in line and "demo-embed" in line)
    words = shlex.split(command)
    assert Path(words[0]).exists()
    assert "--uds" in words
