"""What the gateway costs: requests per second at 32 connections, latency at one, and memory, against the stub directly.

Needs `nginx` (the stub engine) and `wrk` (the clients) in PATH; on Debian: apt install nginx-light wrk.
Run: python benchmarks/gateway.py [--seconds 3] [--rounds 5] [--services 3]. Prints a markdown table. Both ways are
measured in turn in each round, so that a busy machine slows both; what is shown is the median of the rounds.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from llmhost.plan.types import ServicePlan  # noqa: E402
from tests.integration.gateway.running import Gateway, free_port  # noqa: E402
from tests.unit.gateway.plans import make_service  # noqa: E402

BODY = {"messages": [{"role": "user", "content": "x" * 1950}], "stream": False}
ANSWER = {"choices": [{"message": {"role": "assistant", "content": "y" * 400}}]}

NGINX = """
daemon off; worker_processes 1; pid {root}/nginx.pid; error_log {root}/nginx.log;
events {{ worker_connections 4096; }}
http {{
  access_log off; keepalive_requests 100000000; client_body_buffer_size 1m;
  client_body_temp_path {root}/body; proxy_temp_path {root}/p; fastcgi_temp_path {root}/f;
  uwsgi_temp_path {root}/u; scgi_temp_path {root}/s;
  server {{
    listen 127.0.0.1:{port} backlog=1024;
    {sockets}
    location / {{ default_type application/json; return 200 '{answer}'; }}
  }}
}}
"""

LUA = "wrk.method = 'POST'\nwrk.path = '/v1/chat/completions'\nwrk.headers['content-type'] = 'application/json'\n"


def main() -> int:
    options = _options()
    missing = [tool for tool in ("nginx", "wrk") if shutil.which(tool) is None]
    if missing:
        print(f"needs {' and '.join(missing)} in PATH (apt install nginx-light wrk)", file=sys.stderr)
        return 2
    root = Path(tempfile.mkdtemp(prefix="lh", dir="/tmp"))
    try:
        _measure(root, options)
    finally:
        shutil.rmtree(root)
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=3, help="duration of one measurement")
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each kind")
    parser.add_argument("--services", type=int, default=3, help="services; the one that is asked comes last")
    return parser.parse_args()


def _measure(root: Path, options: argparse.Namespace) -> None:
    home = root / "h"
    services = [make_service(home, f"s{number}") for number in range(options.services)]
    with Gateway(home) as gateway, _stub(root, services) as direct_port:
        gateway.start(*services)
        gateway.wait_healthy(**{service.name: 1 for service in services})
        script = root / "request.lua"
        script.write_text(LUA + f"wrk.body = '{json.dumps(BODY | {'model': services[-1].name})}'\n")
        idle = _resident_mib(gateway)
        ways = {"direct": direct_port, "gateway": gateway.port}
        rates: dict[str, list[float]] = {way: [] for way in ways}
        delays: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(options.rounds):
            for way, port in ways.items():
                rates[way].append(_wrk(port, 32, options.seconds, script)[0])
                delays[way].append(_wrk(port, 1, options.seconds, script)[1])
        _report(rates, delays, (idle, _resident_mib(gateway)), options)


@contextlib.contextmanager
def _stub(root: Path, services: list[ServicePlan]) -> Iterator[int]:
    port = free_port()
    sockets = "\n    ".join(f"listen unix:{r.socket} backlog=1024;" for s in services for r in s.replicas)
    config = root / "nginx.conf"
    config.write_text(NGINX.format(root=root, port=port, sockets=sockets, answer=json.dumps(ANSWER)))
    with subprocess.Popen(["nginx", "-c", str(config), "-e", f"{root}/nginx.log"]) as process:
        try:
            yield port
        finally:
            process.terminate()


def _wrk(port: int, connections: int, seconds: int, script: Path) -> tuple[float, float]:
    """Requests per second and the median latency in milliseconds; raises RuntimeError when a request failed."""
    url = f"http://127.0.0.1:{port}"
    argv = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency", "-s", str(script), url]
    said = subprocess.run(argv, check=True, capture_output=True, text=True, timeout=seconds + 30).stdout
    if "Non-2xx" in said or "Socket errors" in said:
        raise RuntimeError(said)
    rate = float(re.search(r"Requests/sec:\s+([\d.]+)", said)[1])  # type: ignore[index]
    value, unit = re.search(r"50%\s+([\d.]+)(us|ms|s)", said).groups()  # type: ignore[union-attr]
    return rate, float(value) * {"us": 0.001, "ms": 1.0, "s": 1000.0}[unit]


def _resident_mib(gateway: Gateway) -> float:
    assert gateway.process is not None
    time.sleep(1)
    status = Path(f"/proc/{gateway.process.pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024  # type: ignore[index]


def _report(
    rates: dict[str, list[float]], delays: dict[str, list[float]], memory: tuple[float, float], o: argparse.Namespace
) -> None:
    print(f"{o.services} services, 2 KB chat body, nginx stub, median of {o.rounds} × {o.seconds} s\n")
    print("| | requests/s at 32 connections | p50 at 1 connection |")
    print("|---|---:|---:|")
    for way, measured in rates.items():
        print(f"| {way} | {statistics.median(measured):,.0f} | {statistics.median(delays[way]):.3f} ms |")
    added = statistics.median(g - d for g, d in zip(delays["gateway"], delays["direct"], strict=True))
    print(f"\nAdded by the gateway at one connection: {added:.3f} ms (median).")
    print(f"Envoy resident: {memory[0]:.0f} MiB idle, {memory[1]:.0f} MiB after the load.")


if __name__ == "__main__":
    sys.exit(main())
