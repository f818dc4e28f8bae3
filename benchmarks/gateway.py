"""What the gateway costs beside others: llmhost, LiteLLM and smg before one stub upstream, in one run.

Needs `nginx` (the stub engine) and `wrk` (the clients) in PATH; on Debian: apt install nginx-light wrk. The peers are
taken when they are named, each best from an environment of its own:

    uv venv /tmp/litellm && uv pip install --python /tmp/litellm/bin/python 'litellm[proxy]'
    uv venv /tmp/smg && uv pip install --python /tmp/smg/bin/python smg
    python benchmarks/gateway.py --litellm /tmp/litellm/bin/litellm --smg /tmp/smg/bin/smg

Prints markdown tables. All ways are measured in turn in each round, so that a busy machine slows all of them; what is
shown is the median of the rounds.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import gateway_ways as ways  # noqa: E402
from gateway_streams import Streamed, measure  # noqa: E402
from gateway_ways import Way  # noqa: E402

from tests.integration.gateway.running import Gateway  # noqa: E402

KIB = 1024
LOADS: tuple[tuple[str, str, int, int], ...] = (
    ("1", ways.PLAIN, 2 * KIB, 1),
    ("32", ways.PLAIN, 2 * KIB, 32),
    ("256", ways.PLAIN, 2 * KIB, 256),
    ("1 KB", ways.READING, KIB, 32),
    ("32 KB", ways.READING, 32 * KIB, 32),
    ("4 MB", ways.READING, 4 * KIB * KIB, 4),
)
"""Name, model, size of the request's body in bytes, connections."""
LUA = """wrk.method = 'POST'
wrk.path = '/v1/chat/completions'
wrk.headers['content-type'] = 'application/json'
wrk.headers['authorization'] = 'Bearer {key}'
wrk.body = '{{"model": "{model}", "messages": [{{"role": "user", "content": "' .. string.rep('x', {size}) .. '"}}]}}'
"""


@dataclass(frozen=True)
class Loaded:
    """What wrk saw; times in milliseconds."""

    rate: float
    p50: float
    p99: float
    failed: int


@dataclass
class Results:
    """Of one way, one entry for each round."""

    loads: dict[str, list[Loaded]] = field(default_factory=lambda: defaultdict(list))
    streams: list[Streamed] = field(default_factory=list)
    idle_mib: float = 0.0
    loaded_mib: float = 0.0


def main() -> int:
    options = _options()
    missing = [tool for tool in ("nginx", "wrk") if shutil.which(tool) is None]
    if missing:
        print(f"needs {' and '.join(missing)} in PATH (apt install nginx-light wrk)", file=sys.stderr)
        return 2
    root = Path(tempfile.mkdtemp(prefix="lh", dir="/tmp"))
    try:
        _report(_measure(root, options), options)
    finally:
        shutil.rmtree(root)
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=3, help="duration of one measurement")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each kind")
    parser.add_argument("--streams", type=int, default=100, help="streams at once; each has 50 chunks a second")
    parser.add_argument("--litellm", metavar="PROGRAM", help="the LiteLLM proxy to compare with")
    parser.add_argument("--smg", metavar="PROGRAM", help="the Shepherd model gateway to compare with")
    return parser.parse_args()


def _measure(root: Path, options: argparse.Namespace) -> dict[str, Results]:
    results: dict[str, Results] = {}
    with contextlib.ExitStack() as stack:
        gateway = stack.enter_context(Gateway(root / "h", max_body_bytes=64 * KIB * KIB))
        found = stack.enter_context(ways.upstreams(root))
        compared = [stack.enter_context(ways.direct(found))]
        compared.append(stack.enter_context(ways.llmhost(found, gateway)))
        for name in ("smg", "litellm"):
            program = getattr(options, name)
            if program:
                compared.append(stack.enter_context(getattr(ways, name)(root, found, program)))
        for way in compared:
            ways.warm_up(way)
        time.sleep(3)
        results = {way.name: Results(idle_mib=way.resident_mib()) for way in compared}
        for number in range(options.rounds):
            for way in compared:
                print(f"round {number + 1}: {way.name}", file=sys.stderr)
                _one_round(root, way, results[way.name], options)
        for way in compared:
            results[way.name].loaded_mib = way.resident_mib()
    return results


def _one_round(root: Path, way: Way, results: Results, options: argparse.Namespace) -> None:
    for name, model, size, connections in LOADS:
        script = root / "request.lua"
        script.write_text(LUA.format(key=way.key, model=model, size=size))
        results.loads[name].append(run_wrk(way.ports[model], connections, options.seconds * way.patience, script))
        time.sleep(way.patience - 1)  # it may still be at what wrk has given up
    port = way.ports[ways.STREAMS]
    results.streams.append(asyncio.run(measure(port, ways.STREAMS, way.key, options.streams, ways.CHUNKS)))


def run_wrk(port: int, connections: int, seconds: int, script: Path) -> Loaded:
    argv = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "30s", "--latency", "-s", str(script)]
    argv.append(f"http://127.0.0.1:{port}")
    said = subprocess.run(argv, check=True, capture_output=True, text=True, timeout=seconds + 60).stdout
    errors = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", said)
    refused = re.search(r"Non-2xx or 3xx responses: (\d+)", said)
    failed = sum(map(int, errors.groups())) if errors else 0
    return Loaded(
        rate=float(re.search(r"Requests/sec:\s+([\d.]+)", said)[1]),  # type: ignore[index]
        p50=_latency(said, 50),
        p99=_latency(said, 99),
        failed=failed + (int(refused[1]) if refused else 0),
    )


def _latency(said: str, percent: int) -> float:
    value, unit = re.search(rf"{percent}%\s+([\d.]+)(us|ms|s|m)", said).groups()  # type: ignore[union-attr]
    return float(value) * {"us": 0.001, "ms": 1.0, "s": 1000.0, "m": 60_000.0}[unit]


def _median(values: list[float]) -> float:
    return statistics.median(values)


def _report(results: dict[str, Results], o: argparse.Namespace) -> None:
    print(f"Three models, median of {o.rounds} × {o.seconds} s (LiteLLM: four times as long). Requests/s: 2 KB")
    print("at 1, 32 and 256 connections; then bodies that the upstream reads, at 32 connections (4 MB: at 4):\n")
    print("| | " + " | ".join(name for name, *_ in LOADS) + " | failed |")
    print("|---|" + "---:|" * (len(LOADS) + 1))
    for way, found in results.items():
        rates = (f"{_median([x.rate for x in found.loads[name]]):,.0f}" for name, *_ in LOADS)
        failed = sum(x.failed for loads in found.loads.values() for x in loads)
        print(f"| {way} | " + " | ".join(rates) + f" | {failed} |")
    base = results["upstream alone"]
    print("\nAdded to the upstream alone (median of the rounds), and memory:\n")
    print("| | p50 at 1 connection | p99 at 1 | p50 at 32 | p99 at 32 | resident, idle | after the load |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for way, found in results.items():
        if way != "upstream alone":
            added = (_added(found, base, load, which) for load in ("1", "32") for which in ("p50", "p99"))
            memory = f"{found.idle_mib:.0f} MiB | {found.loaded_mib:.0f} MiB"
            print(f"| {way} | " + " | ".join(f"{ms:.2f} ms" for ms in added) + f" | {memory} |")
    print(f"\n{o.streams} streams at once, {1 / ways.INTERVAL:.0f} chunks a second each, {ways.CHUNKS} chunks; ms:\n")
    print("| | first chunk p50 | p99 | chunk on its way p50 | p99 | jitter | chunks lost |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for way, found in results.items():
        keys = ("first_p50", "first_p99", "chunk_p50", "chunk_p99", "jitter")
        cells = (f"{_median([getattr(s, key) for s in found.streams]):.2f}" for key in keys)
        print(f"| {way} | " + " | ".join(cells) + f" | {sum(s.missing for s in found.streams)} |")


def _added(found: Results, base: Results, load: str, which: str) -> float:
    pairs = zip(found.loads[load], base.loads[load], strict=True)
    return _median([getattr(ours, which) - getattr(theirs, which) for ours, theirs in pairs])


if __name__ == "__main__":
    sys.exit(main())
