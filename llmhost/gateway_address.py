"""How everything else knows the gateway. Imports nothing, because `llmhost status` must start fast."""

GATEWAY_PROGRAM = "gateway"
"""Name of the gateway among the supervisor programs; those of engines end in a number."""

METRICS_PROGRAM = "metrics"
"""Name of the exporter among them."""
ACCESS_LOG = "access"
"""Name of the log of requests, which the gateway writes beside its own."""


def local_url(host: str, port: int, scheme: str = "http") -> str:
    """Where a client on this machine reaches a server that listens on this address."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
