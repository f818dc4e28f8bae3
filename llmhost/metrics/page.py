"""One page of metrics: the gateway's, every engine's, what the guards say, the machine and its GPUs.

The spec (``conf/metrics.json``) is read anew for every page, so services come and go without a restart.
"""

from __future__ import annotations

import json
import time

from llmhost.metrics.ask import ask_all
from llmhost.metrics.host import add_host
from llmhost.metrics.replicas import add_replicas
from llmhost.metrics.text import Page, label_value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from llmhost.metrics.nvml import Nvml

SECONDS = 3.0
"""For all sources together. Prometheus gives a scrape ten seconds; an engine that reads a long prompt answers late."""

OWN_CLUSTER = "llmhost_metrics"
"""Envoy's cluster that leads here (`llmhost.gateway.clusters`)."""

_GATEWAY = "gateway"
_ENVOY_STATS = (
    # Names of Envoy's statistics before they become Prometheus' (a tenth of all that it has).
    r"^(cluster\.[^.]+\.(upstream_rq_(\dxx|\d\d\d|total|active|pending_active|time|retry|cancelled|timeout|[rt]x_reset)"
    r"|upstream_cx_(active|total|connect_fail|none_healthy|[rt]x_bytes_total)"
    r"|membership_(healthy|total)|outlier_detection\.ejections_active)"
    r"|http\.[^.]+\.(downstream_rq_(\d+xx|total|active|time|rx_reset|too_large|overload_close|idle_timeout)"
    r"|downstream_cx_(active|total|[rt]x_bytes_total|protocol_error)|rq_direct_response|rds\..*update_rejected)"
    r"|vhost\.[^.]+\.vcluster\.[^.]+\.upstream_rq_(\d\d\d|total|time)"
    r"|server\.(live|uptime|memory_(allocated|physical_size)|total_connections|days_until_first_cert_expiring)"
    r"|cluster_manager\.cds\.update_rejected|listener_manager\.(lds\.update_rejected|listener_create_failure)"
    r"|overload\..*(active|pressure)|[^.]+\.http_local_rate_limit\.(ok|rate_limited)|http\.[^.]+\.basic_auth\.(allowed|denied))$"
)
_MARK = "~"
"""As in `llmhost.gateway.statistics.MARK`."""
_INTERNAL = ("admin", "async-client", "here")
"""Connection managers whose requests are counted elsewhere, or are none of clients."""


def read_spec(path: str) -> dict[str, Any]:
    """What to watch; raises OSError or ValueError."""
    with open(path, "rb") as file:
        spec = json.load(file)
    if not isinstance(spec, dict):
        raise ValueError(f"{path} is not a JSON object")
    return spec


def make_page(spec: dict[str, Any], gpus: Nvml, seconds: float = SECONDS) -> str:
    """Ask everybody at once and write down what came back; who does not answer is reported as down."""
    begun = time.monotonic()
    engines = {r["name"]: (s["name"], r["socket"]) for s in spec["services"] for r in s["replicas"] if r["socket"]}
    requests = {name: (socket, "/metrics") for name, (_, socket) in engines.items()}
    requests[_GATEWAY] = (spec["gateway"], f"/stats/prometheus?filter={_percent_encoded(_ENVOY_STATS)}")
    answers = ask_all(requests, seconds)

    page = Page()
    page.add("llmhost_info", "gauge", "The version of llmhost.", 1, {"version": spec["version"]})
    for name, service in ((_GATEWAY, ""), *((name, service) for name, (service, _) in engines.items())):
        labels = {"source": "engine", "service": service, "replica": name} if service else {"source": name}
        told = "Whether the metrics of a program are on this page."
        page.add("llmhost_source_up", "gauge", told, name in answers, labels)
    add_replicas(page, spec["services"])
    add_host(page, spec["home"])
    gpus.add_gpus(page, seconds)
    _merge_gateway(page, answers.get(_GATEWAY, b""), {s["name"] for s in spec["services"]})
    for name, (service, _) in engines.items():
        page.merge(answers.get(name, b"").decode("utf-8", "replace"), _always({"service": service, "replica": name}))
    told = "How long it took to make this page."
    page.add("llmhost_page_seconds", "gauge", told, round(time.monotonic() - begun, 6))
    return page.render()


def _percent_encoded(text: str) -> str:
    # urllib.parse.quote would do, for a megabyte of modules.
    return "".join(c if c.isalnum() or c in "_.-" else f"%{ord(c):02X}" for c in text)


def _always(labels: dict[str, str]) -> Callable[[str], dict[str, str]]:
    return lambda _: labels


def _merge_gateway(page: Page, answer: bytes, services: set[str]) -> None:
    def label(labels: str) -> dict[str, str] | None:
        cluster = label_value(labels, "envoy_cluster_name")
        if cluster == OWN_CLUSTER or label_value(labels, "envoy_http_conn_manager_prefix") in _INTERNAL:
            return None
        key = label_value(labels, "envoy_virtual_cluster")
        if key is not None:
            return {"key": key[1:].replace(_MARK, ".")} if key.startswith(_MARK) else None
        return {"service": cluster} if cluster in services else {}

    page.merge(answer.decode("utf-8", "replace"), label)
