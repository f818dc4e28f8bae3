"""/metrics of the gateway: one page for everything, whatever is down."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import httpx
import pytest

from llmhost.metrics.text import samples
from tests.integration.metrics.conftest import RECORDED, Samples, ask, page, services, values
from tests.integration.workflow.conftest import Installed, wait_for
from tests.tools import need

pytestmark = pytest.mark.integration

REPLICAS = ("chat-0", "chat-1", "embedding-0")


def test_the_page_has_the_gateway_every_engine_the_guards_and_the_machine(watched: Installed) -> None:
    # Envoy merges the histograms of its threads every five seconds.
    wait_for(lambda: values(page(watched), "envoy_cluster_upstream_rq_time_count", service="embedding") == [1])
    found = page(watched)
    assert values(found, "envoy_cluster_upstream_rq", service="chat", envoy_response_code="200") == [3]
    assert values(found, "envoy_http_downstream_rq_xx", envoy_response_code_class="4") == [1]
    for replica in REPLICAS:
        labels = {"service": replica.rpartition("-")[0], "replica": replica}
        assert len(values(found, "vllm:num_requests_running", **labels)) == 1
        assert len(values(found, "vllm:time_to_first_token_seconds_bucket", **labels, le="+Inf")) == 1
        assert values(found, "llmhost_replica_state", **labels, state="ready") == [1]
        assert sum(values(found, "llmhost_replica_state", **labels)) == 1
        assert values(found, "llmhost_replica_restarts_total", **labels) == [0]
        assert values(found, "llmhost_replica_resident_memory_bytes", **labels) > [2**20]
        assert values(found, "llmhost_source_up", **labels) == [1]
    # Each replica answered the request of its guard, and all that came through the gateway are among the rest.
    assert sum(values(found, "vllm:request_success_total", service="chat", finished_reason="length")) == 2 + 3
    assert values(found, "llmhost_host_cpus") == [os.cpu_count()]


def test_everything_that_an_engine_says_of_itself_is_there(watched: Installed) -> None:
    said = {line.split("{")[0].split()[0] for line in RECORDED.read_text().splitlines() if not line.startswith("#")}
    assert said <= {name for name, labels, _ in page(watched) if labels.get("replica") == "chat-1"}


def test_what_only_we_use_of_envoy_is_not_there(watched: Installed) -> None:
    assert not [labels for _, labels, _ in page(watched) if "llmhost_metrics" in labels.values()]
    assert not values(page(watched), "envoy_http_downstream_rq_total", envoy_http_conn_manager_prefix="admin")


def test_promtool_finds_nothing_wrong_with_the_page(watched: Installed) -> None:
    answer = ask(watched, "/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    command = [need("promtool"), "check", "metrics"]
    done = subprocess.run(command, input=answer.text, capture_output=True, text=True, timeout=300, check=False)
    # 3: readable, with names that it would have chosen otherwise; those of Envoy and vLLM are not ours to choose.
    assert done.returncode in (0, 3), done.stderr
    assert [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("llmhost_")] == []


def test_the_page_can_only_be_read(watched: Installed) -> None:
    refused = ask(watched, "/metrics", {})
    assert (refused.status_code, refused.headers["allow"]) == (405, "GET, HEAD")


def test_the_socket_is_ours_alone(watched: Installed) -> None:
    assert watched.home.metrics_socket.stat().st_mode & 0o777 == 0o600


def test_a_hung_engine_costs_its_own_metrics_only(installed: Installed) -> None:
    installed.write(services(installed))
    installed.run("up")
    hung = installed.pids()["chat-1"][1]
    os.kill(hung, signal.SIGSTOP)
    try:
        found = page(installed)
    finally:
        os.kill(hung, signal.SIGCONT)
    up = {labels["replica"]: value for n, labels, value in found if n == "llmhost_source_up" and "replica" in labels}
    assert up == {"chat-0": 1, "chat-1": 0, "embedding-0": 1}
    running = {labels["replica"] for n, labels, _ in found if n == "vllm:num_requests_running"}
    assert running == {"chat-0", "embedding-0"}
    assert values(found, "llmhost_replica_state", replica="chat-1", state="ready") == [1]


def test_a_stopped_service_and_a_dead_engine_are_told(installed: Installed) -> None:
    installed.write(services(installed))
    installed.run("up")
    installed.run("stop", "embedding")
    os.kill(installed.pids()["chat-0"][1], signal.SIGKILL)
    wait_for(lambda: values(page(installed), "llmhost_replica_restarts_total", replica="chat-0") == [1])
    found = wait_for(lambda: _page_when_ready(installed, "chat-0"))
    assert values(found, "llmhost_replica_state", replica="embedding-0", state="stopped") == [1]
    assert values(found, "llmhost_replica_last_exit_info", replica="chat-0", code="", signal="SIGKILL") == [1]
    assert values(found, "llmhost_replica_last_exit_time_seconds", replica="chat-0") > [1.6e9]


def _page_when_ready(installed: Installed, replica: str) -> Samples | None:
    found = page(installed)
    return found if values(found, "llmhost_replica_state", replica=replica, state="ready") == [1] else None


def test_services_come_and_go_and_the_exporter_goes_on(installed: Installed) -> None:
    installed.write(services(installed))
    installed.run("up")
    before = _exporter(installed)
    rerank = installed.model("r", "BertForSequenceClassification")
    without = "env: {FAKE_ENGINE: --metrics none}"
    installed.write(services(installed, f"rerank: {{model: {rerank}, {without}}}"))
    installed.run("up")
    found = page(installed)
    assert values(found, "llmhost_replica_state", service="rerank", state="ready") == [1]
    assert values(found, "llmhost_source_up", service="rerank") == [0]
    assert _exporter(installed) == before


def test_a_killed_exporter_comes_back_and_the_gateway_says_503_meanwhile(installed: Installed) -> None:
    installed.write(services(installed))
    installed.run("up")
    os.kill(_exporter(installed), signal.SIGKILL)
    statuses = {ask(installed, "/metrics").status_code}
    wait_for(lambda: ask(installed, "/metrics").status_code == 200)
    assert statuses <= {200, 503}


def _exporter(installed: Installed) -> int:
    """The process that has our spec in its command line."""
    spec = os.fsencode(installed.home.conf / "metrics.json")
    (pid,) = (int(e.name) for e in Path("/proc").iterdir() if e.name.isdigit() and spec in _words(e))
    return pid


def _words(entry: Path) -> list[bytes]:
    try:
        return (entry / "cmdline").read_bytes().split(b"\0")
    except OSError:
        return []


def test_requests_are_counted_by_key(installed: Installed) -> None:
    installed.write(services(installed))
    installed.run("up")
    limits = {"team.a": ("--concurrent-requests", "9"), "other": ()}
    keys = {name: installed.run("keys", "add", name, *more).stdout.strip() for name, more in limits.items()}
    url = f"http://127.0.0.1:{installed.port}/v1/chat/completions"
    for key in (keys["team.a"], keys["team.a"], keys["other"], "sk-wrong"):
        httpx.post(url, json={"messages": []}, headers={"authorization": f"Bearer {key}"}, timeout=300)
    assert ask(installed, "/metrics").status_code == 401
    found = list(samples(installed.run("metrics", "show").stdout))
    assert values(found, "envoy_vhost_vcluster_upstream_rq", key="team.a", envoy_response_code="200") == [2]
    assert values(found, "envoy_vhost_vcluster_upstream_rq", key="other", envoy_response_code="200") == [1]
    assert values(found, "envoy_cluster_upstream_rq", service="chat", envoy_response_code="200") == [3]
    # On their way inside the gateway they are not counted a second time.
    assert not [labels for _, labels, _ in found if "llmhost_keys" in labels.values()]
    assert not values(found, "envoy_http_downstream_rq_total", envoy_http_conn_manager_prefix="keys")
    assert sum(values(found, "envoy_http_basic_auth_denied")) == 2
    headers = {"authorization": f"Bearer {keys['other']}"}
    page_of_other = httpx.get(f"http://127.0.0.1:{installed.port}/metrics", headers=headers, timeout=300)
    assert (page_of_other.status_code, keys["other"] in page_of_other.text) == (200, False)
