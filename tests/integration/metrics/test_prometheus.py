"""A real Prometheus with what `llmhost metrics` writes: targets, rules, and every query of the dashboard."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from ruamel.yaml import YAML

from llmhost.metrics.scraping import dashboard, rules
from tests.integration.metrics.conftest import ask
from tests.integration.workflow.conftest import Installed, short_directory, wait_for
from tests.ports import free_port
from tests.tools import need

pytestmark = pytest.mark.integration

CONFIG = """
global: {{scrape_interval: 1s, evaluation_interval: 1s}}
rule_files: [{rules}]
scrape_configs:
  - job_name: llmhost
    file_sd_configs: [{{files: [{targets}]}}]
"""
NOT_HERE = ("llmhost_gpu_", "envoy_vhost_vcluster_")
"""Metrics of machines with GPUs, and of gateways with keys."""
HERE = Path(__file__).parent


class Prometheus:
    """A running one; ``ask`` is its HTTP API."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"

    def is_ready(self) -> bool:
        """Its API answers 503 until it has read its data."""
        try:
            return httpx.get(f"{self.url}/-/ready", timeout=300).status_code == 200
        except httpx.HTTPError:
            return False

    def ask(self, path: str, **parameters: str) -> Any:
        answer = httpx.get(f"{self.url}/api/v1/{path}", params=parameters, timeout=300)
        assert answer.json()["status"] == "success", f"{parameters}: {answer.text}"
        return answer.json()["data"]

    def query(self, expression: str) -> list[dict[str, Any]]:
        result: list[dict[str, Any]] = self.ask("query", query=expression)["result"]
        return result


@contextmanager
def running(installed: Installed, directory: Path) -> Iterator[Prometheus]:
    targets, alerts, config = (directory / n for n in ("targets.json", "rules.yaml", "prometheus.yml"))
    installed.run("metrics", "targets", "-o", str(targets))
    installed.run("metrics", "rules", "-o", str(alerts))
    config.write_text(CONFIG.format(rules=alerts, targets=targets))
    subprocess.run([need("promtool"), "check", "config", str(config)], check=True, capture_output=True, timeout=300)
    port = free_port()
    command = [
        need("prometheus"), f"--config.file={config}", f"--storage.tsdb.path={directory}/data",
        f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn",
    ]  # fmt: skip
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        yield Prometheus(port)
    finally:
        process.terminate()
        process.wait(300)


@pytest.fixture(scope="module")
def prometheus(watched: Installed) -> Iterator[Prometheus]:
    """It has scraped often enough for every rate."""
    need("prometheus")
    with short_directory() as directory, running(watched, directory) as found:
        wait_for(found.is_ready)
        wait_for(lambda: found.query('up{job="llmhost"} == 1'))
        wait_for(lambda: found.query("count_over_time(llmhost_info[5m]) >= 4"))
        wait_for(lambda: _has_seen_a_request(watched, found))
        yield found


def _has_seen_a_request(watched: Installed, prometheus: Prometheus) -> bool:
    """Between two scrapes, in what Envoy shows some seconds later."""
    ask(watched, "/v1/chat/completions", {"model": "demo", "messages": []})
    return bool(prometheus.query('increase(envoy_cluster_upstream_rq_time_count{service="chat"}[1m]) > 0'))


def test_the_target_is_found_through_the_file_and_is_one(watched: Installed, prometheus: Prometheus) -> None:
    (target,) = prometheus.ask("targets")["activeTargets"]
    assert target["scrapeUrl"] == f"http://127.0.0.1:{watched.port}/metrics"
    assert target["labels"]["llmhost_home"] == str(watched.home.root)
    assert (target["health"], target["lastError"]) == ("up", "")


def test_prometheus_has_every_engine_apart(prometheus: Prometheus) -> None:
    found = {(s["metric"]["service"], s["metric"]["replica"]) for s in prometheus.query("vllm:num_requests_running")}
    assert found == {("chat", "chat-0"), ("chat", "chat-1"), ("embedding", "embedding-0")}


def panels() -> list[tuple[str, str]]:
    """Title and query of every panel, with Grafana's variables filled in."""
    found = []
    for panel in json.loads(dashboard())["panels"]:
        for target in panel.get("targets", ()):
            text = re.sub(r"\$(service|instance)\b", ".*", target["expr"]).replace("$__rate_interval", "1m")
            assert "$" not in text
            found.append((panel["title"], text))
    return found


@pytest.mark.parametrize(("title", "expression"), panels())
def test_every_panel_of_the_dashboard_has_something_to_show(
    title: str, expression: str, prometheus: Prometheus
) -> None:
    found = prometheus.query(expression)
    assert found or any(name in expression for name in NOT_HERE), f"{title}: {expression}"


def test_the_variables_of_the_dashboard_have_values(prometheus: Prometheus) -> None:
    variables = {v["name"]: v for v in json.loads(dashboard())["templating"]["list"]}
    assert set(variables) == {"datasource", "instance", "service"}
    assert variables["service"]["query"]["query"].startswith("label_values(llmhost_service_info{")
    assert {s["metric"]["service"] for s in prometheus.query("llmhost_service_info")} == {"chat", "embedding"}
    assert len(prometheus.query("llmhost_info")) == 1


def test_panels_have_their_places_and_numbers_apart() -> None:
    found = json.loads(dashboard())["panels"]
    assert len({p["id"] for p in found}) == len(found)
    cells = [
        (x, y)
        for p in (panel["gridPos"] for panel in found)
        for x in range(p["x"], p["x"] + p["w"])
        for y in range(p["y"], p["y"] + p["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) < 24


def test_every_rule_can_be_evaluated_and_none_fires_on_a_home_that_is_well(prometheus: Prometheus) -> None:
    wait_for(lambda: all(r["lastEvaluation"] > "1970" for r in _rules(prometheus)))
    assert {(r["name"], r["health"]) for r in _rules(prometheus)} == {(name, "ok") for name in alert_names()}
    ours = {"LlmhostDiskFull", "LlmhostMemoryLow", "LlmhostGpuHot"}  # of the machine that the test runs on
    assert [r["name"] for r in _rules(prometheus) if r["state"] != "inactive" and r["name"] not in ours] == []


def _rules(prometheus: Prometheus) -> list[dict[str, Any]]:
    (group,) = prometheus.ask("rules")["groups"]
    found: list[dict[str, Any]] = group["rules"]
    return found


def alert_names() -> list[str]:
    return [rule["alert"] for group in YAML(typ="safe").load(rules())["groups"] for rule in group["rules"]]


def test_promtool_checks_and_tries_every_rule(tmp_path: Path) -> None:
    (tmp_path / "rules.yaml").write_text(rules(), encoding="utf-8")
    tests = tmp_path / "rules.test.yaml"
    shutil.copy(HERE / tests.name, tests)
    for command in (["check", "rules", "rules.yaml"], ["test", "rules", tests.name]):
        done = subprocess.run(
            [need("promtool"), *command], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
    cases = [case for test in YAML(typ="safe").load(tests)["tests"] for case in test["alert_rule_test"]]
    assert {case["alertname"] for case in cases if case["exp_alerts"]} == set(alert_names())
