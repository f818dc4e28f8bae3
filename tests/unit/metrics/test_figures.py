"""Two pages of metrics, and what happened between them."""

from __future__ import annotations

import pytest

from llmhost.metrics.figures import Figures, Reading, figures, quantile

INFO = 'llmhost_service_info{service="chat",kind="chat",model="m"} 1\n'


def page(
    *, requests: int = 0, failed: int = 0, tokens: tuple[int, int] = (0, 0), ttft: tuple[int, int, int] = (0, 0, 0),
    more: str = "",
) -> str:  # fmt: skip
    lines = [
        INFO,
        f'envoy_cluster_upstream_rq{{service="chat",envoy_response_code="200"}} {requests}',
        f'envoy_cluster_upstream_rq{{service="chat",envoy_response_code="503"}} {failed}',
        f'envoy_http_downstream_rq_xx{{envoy_response_code_class="2"}} {requests}',
        f'envoy_http_downstream_rq_xx{{envoy_response_code_class="5"}} {failed}',
    ]
    for number, count in enumerate(tokens):
        labels = f'service="chat",replica="chat-{number}"'
        lines += [
            f'llmhost_replica_state{{{labels},state="ready"}} {number}',
            f'llmhost_replica_state{{{labels},state="loading"}} {1 - number}',
            f'vllm:generation_tokens_total{{{labels},engine="0"}} {count}',
            f'vllm:num_requests_waiting{{{labels},engine="0"}} {number + 1}',
            f'vllm:kv_cache_usage_perc{{{labels},engine="0"}} {number / 2}',
        ]
    bounds = zip(("0.1", "0.5", "+Inf"), ttft, strict=True)
    lines += [
        f'vllm:time_to_first_token_seconds_bucket{{service="chat",replica="chat-1",le="{b}"}} {n}' for b, n in bounds
    ]
    return "\n".join((*lines, more))


def between(before: str, now: str, seconds: float = 2) -> Figures:
    return figures(Reading(before, 100), Reading(now, 100 + seconds))


def test_rates_are_growth_by_time() -> None:
    found = between(page(requests=10, tokens=(5, 7)), page(requests=30, failed=4, tokens=(25, 107)))
    (chat,) = found.services
    assert (found.interval_s, found.requests_per_s, found.refused_per_s) == (2, 12, 2)
    assert (chat.name, chat.kind, chat.requests_per_s, chat.failed_per_s) == ("chat", "chat", 12, 2)
    assert chat.total.generated_tokens_per_s == 60
    assert {name: r.generated_tokens_per_s for name, r in chat.replicas.items()} == {"chat-0": 10, "chat-1": 50}


def test_a_counter_that_began_anew_counts_from_zero() -> None:
    (chat,) = between(page(tokens=(1000, 0)), page(tokens=(20, 0))).services
    assert chat.total.generated_tokens_per_s == 10


def test_how_things_are_is_of_the_second_page() -> None:
    (chat,) = between(page(), page()).services
    assert (chat.total.waiting, chat.total.kv_cache_ratio, chat.total.state) == (3, 0.5, "loading")
    assert chat.replicas["chat-1"].state == "ready"
    assert (chat.total.running, chat.total.memory_bytes, chat.total.gpu_memory_bytes) == (None, None, None)
    assert chat.total.ttft_p50_s is None


def test_times_to_the_first_token_are_those_of_the_interval() -> None:
    (chat,) = between(page(ttft=(90, 90, 90)), page(ttft=(90, 100, 100))).services
    assert chat.total.ttft_p50_s == pytest.approx(0.3)
    assert chat.total.ttft_p95_s == pytest.approx(0.48)


@pytest.mark.parametrize(
    ("buckets", "share", "expected"),
    [
        ([], 0.5, None),
        ([(1.0, 0.0), (float("inf"), 0.0)], 0.5, None),
        ([(1.0, 4.0), (2.0, 8.0), (float("inf"), 8.0)], 0.5, 1.0),
        ([(1.0, 4.0), (2.0, 8.0), (float("inf"), 8.0)], 0.75, 1.5),
        ([(1.0, 0.0), (float("inf"), 8.0)], 0.5, 1.0),
    ],
)
def test_a_quantile_is_reckoned_as_prometheus_does(
    buckets: list[tuple[float, float]], share: float, expected: float | None
) -> None:
    assert quantile(buckets, share) == expected


def test_gpus_of_a_replica_are_joined_by_the_plan() -> None:
    gpu = (
        'llmhost_replica_gpu{service="chat",replica="chat-0",gpu="2"} 1\n'
        'llmhost_gpu_memory_used_bytes{gpu="2",uuid="u"} 700\nllmhost_gpu_memory_used_bytes{gpu="0",uuid="v"} 5\n'
        'llmhost_gpu_utilization_ratio{gpu="2",uuid="u"} 0.5\n'
    )
    (chat,) = between(page(), page(more=gpu)).services
    assert (chat.replicas["chat-0"].gpus, chat.replicas["chat-0"].gpu_memory_bytes) == (("2",), 700)
    assert (chat.total.gpu_utilization_ratio, chat.replicas["chat-1"].gpus) == (0.5, ())


def test_the_machine() -> None:
    before = 'llmhost_host_cpu_seconds_total{mode="idle"} 10\nllmhost_host_cpu_seconds_total{mode="user"} 10\n'
    now = 'llmhost_host_cpu_seconds_total{mode="idle"} 11\nllmhost_host_cpu_seconds_total{mode="user"} 13\n'
    assert between(before, now).cpu_ratio == 0.75
    assert between("", "").to_dict() == {
        "interval_s": 2, "requests_per_s": 0, "refused_per_s": 0, "connections": None, "cpu_ratio": None,
        "memory_available_bytes": None, "memory_total_bytes": None, "services": (),
    }  # fmt: skip


def test_the_contract_of_json() -> None:
    (chat,) = between(page(), page()).to_dict()["services"]
    assert {"name", "kind", "state", "requests_per_s", "ttft_p95_s", "kv_cache_ratio", "replicas"} <= set(chat)
    assert [r["name"] for r in chat["replicas"]] == ["chat-0", "chat-1"]
    assert "total" not in chat
