"""What a Prometheus that watches llmhost needs: its targets, alert rules, and a dashboard for Grafana."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from llmhost.errors import NotReadyError
from llmhost.metrics.ask import ask_all
from llmhost.paths import Home
from llmhost.plan import Plan

_DATA = Path(__file__).parent / "data"

PAGE_SECONDS = 15.0
"""The exporter waits for others, and may be making a page for somebody else first."""


def rules() -> str:
    """Alert rules, a file for ``rule_files`` in prometheus.yml."""
    return (_DATA / "rules.yaml").read_text(encoding="utf-8")


def dashboard() -> str:
    """A dashboard as Grafana imports it; it asks for the data source."""
    return (_DATA / "dashboard.json").read_text(encoding="utf-8")


def targets(plan: Plan, host: str | None = None) -> list[dict[str, Any]]:
    """The gateway as an entry of Prometheus' ``file_sd_configs``; one target, whatever services there are.

    ``host`` is the name or address under which Prometheus reaches this machine; default: where the gateway listens.
    Source: https://prometheus.io/docs/prometheus/latest/configuration/configuration/#file_sd_config
    """
    url = urlsplit(plan.gateway.url)
    name = host or str(url.hostname)
    bracketed = f"[{name}]" if ":" in name else name
    labels = {"llmhost_home": plan.home, "__scheme__": url.scheme}
    return [{"targets": [f"{bracketed}:{plan.gateway.port}"], "labels": labels}]


def read_page(home: Home) -> str:
    """The page of metrics, from the exporter itself: no key is needed for it. Raises NotReadyError without one."""
    answers = ask_all({"page": (str(home.metrics_socket), "/metrics")}, PAGE_SECONDS)
    if "page" not in answers:
        raise NotReadyError(
            f"nobody answers on {home.metrics_socket}, where the metrics come from",
            "see `llmhost status` and `llmhost logs metrics`; `llmhost up` starts what is not running",
        )
    return answers["page"].decode("utf-8", "replace")
