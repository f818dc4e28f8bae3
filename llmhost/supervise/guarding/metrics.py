"""What an engine says about its load, from vLLM's ``/metrics``: enough to tell a busy engine from a hung one."""

from __future__ import annotations

import re

REQUEST = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"

# Names of vllm/v1/metrics/loggers.py; prometheus_client adds _total to counters.
_SAMPLE = re.compile(
    rb"^vllm:(num_requests_running|num_requests_waiting|request_success_total|generation_tokens_total"
    rb"|prompt_tokens_total|kv_cache_usage_perc)(\{[^\n]*\})? ([-+.0-9eE]+)[ \r]*$",
    re.M,
)
_UNSUCCESSFUL = re.compile(rb'finished_reason="(?:abort|error)"')


class Load:
    """``requests`` run or wait; ``work`` only grows: by one with every token, and with every request answered.

    ``cache`` is how much of the KV cache is in use. Tokens of a prompt are counted when all of it is computed, which
    takes minutes for a long one; the cache fills with every step of it.
    """

    def __init__(self, requests: float, work: float, cache: float = 0.0) -> None:
        self.requests = requests
        self.work = work
        self.cache = cache


def read_load(page: bytes) -> Load | None:
    """None when the page has no such numbers: nobody answered, or the engine runs with --disable-log-stats."""
    requests = work = cache = 0.0
    found = False
    for name, labels, value in _SAMPLE.findall(page):
        found = True
        if name.startswith(b"num_requests"):
            requests += float(value)
        elif name == b"kv_cache_usage_perc":
            cache += float(value)
        # Requests of clients that gave up end too, also in an engine that hangs.
        elif name != b"request_success_total" or not _UNSUCCESSFUL.search(labels):
            work += float(value)
    return Load(requests, work, cache) if found else None
