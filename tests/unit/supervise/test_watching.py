"""What the hang watch and the restarts compute."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmhost.supervise.guarding import gpu, stop
from llmhost.supervise.guarding.alerts import QUIET_SECONDS
from llmhost.supervise.guarding.alerts import quiet as is_quiet
from llmhost.supervise.guarding.dump import DUMP_SECONDS
from llmhost.supervise.guarding.metrics import Load, read_load
from llmhost.supervise.guarding.restarts import GOOD_SECONDS, Restarts
from llmhost.supervise.guarding.watch import MISSES, deadline, foreign_deadline, longest, quiet

PAGE = (Path(__file__).parent / "vllm_metrics.txt").read_bytes()
"""Of vLLM 0.32 after one request of 19 tokens that was answered with one."""


def test_the_load_of_a_real_engine() -> None:
    load = read_load(b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\n\r\n" + PAGE)
    assert load is not None
    assert (load.requests, load.work) == (0, 19 + 1 + 1)


def test_a_prompt_that_is_computed_fills_the_cache() -> None:
    page = PAGE.replace(b'kv_cache_usage_perc{engine="0",model_name="demo-chat"} 0.0', b"kv_cache_usage_perc 0.125")
    load = read_load(page)
    assert load is not None
    assert (load.work, load.cache) == (21, 0.125)


def test_requests_that_were_given_up_are_no_work() -> None:
    page = PAGE.replace(b'finished_reason="abort",model_name="demo-chat"} 0.0', b'finished_reason="abort"} 7.0')
    page = page.replace(b'finished_reason="error",model_name="demo-chat"} 0.0', b'finished_reason="error"} 5e+00')
    assert page != PAGE
    load = read_load(page)
    assert load is not None
    assert load.work == 21


def test_engines_of_several_ranks_are_added_up() -> None:
    load = read_load(
        b'vllm:num_requests_running{engine="0"} 3.0\nvllm:num_requests_running{engine="1"} 2.0\n'
        b'vllm:num_requests_waiting{engine="0"} 1e+01\n# HELP vllm:num_requests_waiting 9\n'
    )
    assert load is not None
    assert load.requests == 15


@pytest.mark.parametrize("page", [b"", b"HTTP/1.1 404 Not Found\r\n\r\n{}", b"process_cpu_seconds_total 3\n"])
def test_no_numbers(page: bytes) -> None:
    assert read_load(page) is None


def test_the_deadline_grows_with_the_load() -> None:
    times = [deadline(60, Load(requests, 0)) for requests in (0, 1, 2, 5, 500)]
    assert times == pytest.approx([6, 6.6, 7.2, 9, 9])
    assert deadline(60, None) == 40


def test_a_minute_is_enough_with_the_stack_dump_and_the_end_of_what_hangs() -> None:
    """What hangs was started for SIGKILL, ignores SIGTERM and its children do, too."""
    end = stop.SETTLE_SECONDS + stop.TERM_SECONDS
    assert longest(60) + DUMP_SECONDS + end == pytest.approx(56.3)


def test_one_whose_load_nobody_knows_is_found_out_in_time() -> None:
    assert quiet(60) + MISSES * foreign_deadline(60) == 51


def test_back_off() -> None:
    restarts, delays = Restarts(20), []
    for _ in range(11):
        restarts.failed()
        delays.append(restarts.delay)
    assert delays == [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]
    assert not restarts.open(explained=True)


def test_good_minutes_are_a_new_beginning() -> None:
    restarts = Restarts(3, failures=2)
    restarts.failed(GOOD_SECONDS - 1)
    assert restarts.open(explained=True)
    restarts.failed(GOOD_SECONDS)
    assert (restarts.failures, restarts.delay) == (1, 1)


@pytest.mark.parametrize(
    ("limit", "failures", "explained", "opened"),
    [(10, 9, True, False), (10, 10, True, True), (10, 2, False, False), (10, 3, False, True), (1, 1, False, True)],
)
def test_the_circuit(limit: int, failures: int, explained: bool, opened: bool) -> None:
    assert Restarts(limit, failures).open(explained) is opened


def test_who_holds_gpu_memory() -> None:
    answer = b"1234, 70123\n 99, [N/A]\nNo running processes found\n"
    assert gpu.holders(answer) == {1234: 70123, 99: None}
    assert gpu.question("nvidia-smi", [0, 3])[-2:] == ["-i", "0,3"]


@pytest.mark.parametrize(
    ("event", "told", "silent"),
    [
        ("unhealthy", {}, False),
        ("unhealthy", {"unhealthy": 900, "open": 0}, True),  # comes and goes
        ("unhealthy", {"unhealthy": 1000 - QUIET_SECONDS, "open": 0}, False),
        ("unhealthy", {"unhealthy": 1, "open": 1}, True),  # the same trouble still
        ("unhealthy", {"failed": 1, "open": 1}, False),
        ("unhealthy", {"unhealthy": 5000, "open": 0}, False),  # the clock was set back
        ("failed", {"unhealthy": 990, "open": 1}, False),
        ("failed", {"failed": 990, "open": 1}, True),  # started again in vain
        ("failed", {"failed": 990, "open": 0}, False),  # recovered was the last word
    ],
)
def test_what_is_told_of_an_event(event: str, told: dict[str, float], silent: bool) -> None:
    assert is_quiet(event, told, 1000) is silent
