"""Two pages of metrics, some seconds apart -> what `llmhost top` shows. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from llmhost.metrics.text import samples

WORST_FIRST = ("failed", "unhealthy", "backoff", "loading", "queued", "stopped", "ready")
TTFT = "vllm:time_to_first_token_seconds_bucket"

Labels = Mapping[str, str]


@dataclass(frozen=True)
class EngineFigures:
    """What a service, or one replica of it, does; rates are per second, None is "not known" or "nothing happened"."""

    state: str
    generated_tokens_per_s: float
    prompt_tokens_per_s: float
    finished_per_s: float
    """Requests that the engines have finished, those of the guards' own probes included."""
    ttft_p50_s: float | None
    ttft_p95_s: float | None
    running: int | None
    waiting: int | None
    kv_cache_ratio: float | None
    """The fullest replica's."""
    cpu_cores: float
    memory_bytes: int | None
    gpus: tuple[str, ...]
    gpu_memory_bytes: int | None
    """Taken on these GPUs, by whomever."""
    gpu_utilization_ratio: float | None


@dataclass(frozen=True)
class ServiceFigures:
    """A service: what clients asked of it through the gateway, and all its replicas together."""

    name: str
    kind: str
    requests_per_s: float
    failed_per_s: float
    """Answers with a status of 500 and above."""
    total: EngineFigures
    replicas: Mapping[str, EngineFigures]


@dataclass(frozen=True)
class Figures:
    """A home over an interval."""

    interval_s: float
    requests_per_s: float
    refused_per_s: float
    """Answers with a status of 400 and above, by whomever."""
    connections: int | None
    cpu_ratio: float | None
    memory_available_bytes: int | None
    memory_total_bytes: int | None
    services: tuple[ServiceFigures, ...]

    def to_dict(self) -> dict[str, Any]:
        """The contract of ``llmhost top --json``."""
        data = asdict(self)
        for service in data["services"]:
            service.update(service.pop("total"))
            service["replicas"] = [{"name": name, **replica} for name, replica in service["replicas"].items()]
        return data


class Reading:
    """One page: the samples of each metric."""

    def __init__(self, page: str, time: float) -> None:
        self.time = time
        self._samples: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
        for name, labels, value in samples(page):
            self._samples.setdefault(name, {})[tuple(sorted(labels.items()))] = value

    def of(self, name: str, **wanted: str) -> list[tuple[Labels, float]]:
        """Labels and values of the samples of this name that have these labels."""
        found = ((dict(key), value) for key, value in self._samples.get(name, {}).items())
        return [(labels, value) for labels, value in found if wanted.items() <= labels.items()]

    def values(self, name: str, **wanted: str) -> list[float]:
        return [value for _, value in self.of(name, **wanted)]

    def value_of(self, name: str, labels: Labels) -> float:
        return self._samples.get(name, {}).get(tuple(sorted(labels.items())), 0.0)


def figures(before: Reading, now: Reading) -> Figures:
    """What happened between two readings, and how things are at the second."""
    spent = _Spent(before, now)
    idle = sum(spent.increases("llmhost_host_cpu_seconds_total", mode=m) for m in ("idle", "iowait"))
    busy = spent.increases("llmhost_host_cpu_seconds_total")
    answers = "envoy_http_downstream_rq_xx"
    return Figures(
        interval_s=round(spent.seconds, 3),
        requests_per_s=spent.rate(answers),
        refused_per_s=sum(spent.rate(answers, envoy_response_code_class=c) for c in "45"),
        connections=_whole(now.values("envoy_http_downstream_cx_active")),
        cpu_ratio=round(1 - idle / busy, 4) if busy else None,
        memory_available_bytes=_whole(now.values("llmhost_host_memory_available_bytes")),
        memory_total_bytes=_whole(now.values("llmhost_host_memory_total_bytes")),
        services=tuple(_service(labels, spent) for labels, _ in now.of("llmhost_service_info")),
    )


class _Spent:
    """Counters between two readings."""

    def __init__(self, before: Reading, now: Reading) -> None:
        self.before, self.now = before, now
        self.seconds = max(now.time - before.time, 1e-9)

    def each(self, name: str, **wanted: str) -> Iterable[tuple[Labels, float]]:
        """How much each counter has grown; one that has shrunk began anew, with its program."""
        for labels, value in self.now.of(name, **wanted):
            former = self.before.value_of(name, labels)
            yield labels, value - former if value >= former else value

    def increases(self, name: str, **wanted: str) -> float:
        return sum(grown for _, grown in self.each(name, **wanted))

    def rate(self, name: str, **wanted: str) -> float:
        return round(self.increases(name, **wanted) / self.seconds, 3)

    def quantile(self, name: str, share: float, **wanted: str) -> float | None:
        """Of a histogram's growth, as Prometheus reckons it: evenly spread within a bucket."""
        buckets: defaultdict[float, float] = defaultdict(float)
        for labels, grown in self.each(name, **wanted):
            buckets[float(labels["le"].replace("+Inf", "inf"))] += grown
        return quantile(sorted(buckets.items()), share)


def quantile(buckets: list[tuple[float, float]], share: float) -> float | None:
    """The value below which this share of what was counted lies; ``buckets`` are upper bounds and cumulated counts."""
    if not buckets or buckets[-1][1] <= 0:
        return None
    wanted, lower, below = share * buckets[-1][1], 0.0, 0.0
    for upper, count in buckets:
        if count >= wanted:
            if upper == float("inf"):
                return lower
            return round(lower + (upper - lower) * (wanted - below) / (count - below), 4) if count > below else upper
        lower, below = upper, count
    return lower


def _service(info: Labels, spent: _Spent) -> ServiceFigures:
    name = info["service"]
    names = sorted({labels["replica"] for labels, _ in spent.now.of("llmhost_replica_state", service=name)})
    code = "envoy_cluster_upstream_rq"
    failed = sum(grown for labels, grown in spent.each(code, service=name) if labels["envoy_response_code"] >= "500")
    return ServiceFigures(
        name=name,
        kind=info["kind"],
        requests_per_s=spent.rate(code, service=name),
        failed_per_s=round(failed / spent.seconds, 3),
        total=_engines(spent, service=name),
        replicas={replica: _engines(spent, service=name, replica=replica) for replica in names},
    )


def _engines(spent: _Spent, **which: str) -> EngineFigures:
    now = spent.now
    states = {labels["state"] for labels, value in now.of("llmhost_replica_state", **which) if value == 1}
    gpus = tuple(sorted({labels["gpu"] for labels, _ in now.of("llmhost_replica_gpu", **which)}))
    cache = now.values("vllm:kv_cache_usage_perc", **which)
    return EngineFigures(
        state=next((state for state in WORST_FIRST if state in states), "stopped"),
        generated_tokens_per_s=spent.rate("vllm:generation_tokens_total", **which),
        prompt_tokens_per_s=spent.rate("vllm:prompt_tokens_total", **which),
        finished_per_s=spent.rate("vllm:request_success_total", **which),
        ttft_p50_s=spent.quantile(TTFT, 0.5, **which),
        ttft_p95_s=spent.quantile(TTFT, 0.95, **which),
        running=_whole(now.values("vllm:num_requests_running", **which)),
        waiting=_whole(now.values("vllm:num_requests_waiting", **which)),
        kv_cache_ratio=max(cache) if cache else None,
        cpu_cores=spent.rate("llmhost_replica_cpu_seconds_total", **which),
        memory_bytes=_whole(now.values("llmhost_replica_resident_memory_bytes", **which)),
        gpus=gpus,
        gpu_memory_bytes=_whole([v for g in gpus for v in now.values("llmhost_gpu_memory_used_bytes", gpu=g)]),
        gpu_utilization_ratio=_mean([v for g in gpus for v in now.values("llmhost_gpu_utilization_ratio", gpu=g)]),
    )


def _whole(values: list[float]) -> int | None:
    return round(sum(values)) if values else None


def _mean(values: list[float]) -> float | None:
    return round(sum(values) / len(values), 4) if values else None
