"""Where the gateway's processor time goes: Envoy with parts of its configuration, in one run.

    python benchmarks/gateway_parts.py [--smg /tmp/smg/bin/smg] [--rounds 6]

Needs what `benchmarks/gateway.py` needs. Prints a markdown table: microseconds of processor time for a request, which
say more on a busy machine than requests per second do. The least of the rounds is shown: what is above it are others.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import gateway_ways as ways  # noqa: E402
import psutil  # noqa: E402
from gateway import KIB, LUA, run_wrk  # noqa: E402
from gateway_ways import PLENTY, Upstreams, Way  # noqa: E402

from tests.integration.gateway.running import Gateway  # noqa: E402
from tests.unit.gateway.issued import issue  # noqa: E402

SECONDS = 2
LOADS: tuple[tuple[str, str, int, int], ...] = (
    ("2 KB", ways.PLAIN, 2 * KIB, 32),
    ("32 KB", ways.READING, 32 * KIB, 32),
    ("4 MB", ways.READING, 4 * KIB * KIB, 4),
)
"""Name, model, size of the body in bytes, connections."""

ROUTER = "envoy.filters.http.router"
READING = ("envoy.filters.http.buffer", "envoy.filters.http.json_to_metadata")
KEYS = ("llmhost.credential", "llmhost.basic", "llmhost.auth", "llmhost.key", "llmhost.strip")

Data = dict[str, Any]


def _with(filters: tuple[str, ...], *, log: bool = False) -> Callable[[str], str]:
    """What makes of the gateway's files those of an Envoy with one route to each model's service and these filters."""

    def edit(text: str) -> str:
        resources = json.loads(text).get("resources", ()) if text.startswith("{") else ()
        for resource in resources:
            if resource.get("name") == "gateway" and "virtual_hosts" in resource:
                _one_route(resource["virtual_hosts"][0], filters)
            elif resource.get("name") == "gateway":
                _few_filters(resource["filter_chains"][0]["filters"][0]["typed_config"], filters, log)
        return json.dumps({**json.loads(text), "resources": resources}) if resources else text

    return edit


def _one_route(host: Data, filters: tuple[str, ...]) -> None:
    """A header stands for the model, which nothing reads."""
    per_filter = {name: value for name, value in host["typed_per_filter_config"].items() if name in filters}
    host.clear()
    to = {"cluster_header": "x-model", "timeout": "0s"}
    host |= {"name": "gateway", "domains": ["*"], "routes": [{"match": {"prefix": "/"}, "route": to}]}
    host["typed_per_filter_config"] = per_filter


def _few_filters(manager: Data, filters: tuple[str, ...], log: bool) -> None:
    manager["http_filters"] = [f for f in manager["http_filters"] if f["name"] in (*filters, ROUTER)]
    if not log:
        manager["access_log"] = []


PARTS: dict[str, Callable[[str], str]] = {
    "llmhost": str,
    "Envoy, one route": _with(()),
    "and an access log": _with((), log=True),
    "and the body is read as JSON": _with(READING, log=True),
    "and keys are checked": _with((*READING, *KEYS), log=True),
}


@contextlib.contextmanager
def gateway(root: Path, found: Upstreams, edit: Callable[[str], str], at_once: int | None) -> Iterator[Way]:
    with Gateway(root, max_body_bytes=64 * KIB * KIB, edit=edit) as made:
        key, text = issue("bench", requests_per_minute=PLENTY, concurrent_requests=at_once)
        made.keys = (key,)
        made.start(*found.services)
        assert made.process is not None
        yield Way("", dict.fromkeys(ways.MODELS, made.port), text, made.process.pid)


def used(way: Way) -> float:
    """Seconds of processor time of the whole tree until now."""
    assert way.pid is not None
    process = psutil.Process(way.pid)
    times = [p.cpu_times() for p in (process, *process.children(recursive=True))]
    return sum(t.user + t.system for t in times)


def cost(way: Way, script: Path, model: str, size: int, connections: int) -> float:
    """Microseconds for a request."""
    script.write_text(LUA.format(key=way.key, model=model, size=size) + f"wrk.headers['x-model'] = '{model}'\n")
    before = used(way)
    loaded = run_wrk(way.ports[model], connections, SECONDS, script)
    assert loaded.failed == 0, f"{way.name}: {loaded.failed} requests failed"
    return (used(way) - before) / (loaded.rate * SECONDS) * 1e6


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smg", metavar="PROGRAM", help="the Shepherd model gateway to compare with")
    parser.add_argument("--rounds", type=int, default=6)
    options = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="lh", dir="/tmp"))
    try:
        with contextlib.ExitStack() as stack:
            (root / "h/run").mkdir(parents=True)
            found = stack.enter_context(ways.upstreams(root))
            compared = {
                name: stack.enter_context(gateway(root / str(number), found, edit, None))
                for number, (name, edit) in enumerate(PARTS.items())
            }
            compared["llmhost, key with a limit of requests at once"] = stack.enter_context(
                gateway(root / "at-once", found, str, 10_000)
            )
            if options.smg:
                compared["smg"] = stack.enter_context(ways.smg(root, found, options.smg))
            _report(compared, root / "request.lua", options.rounds)
    finally:
        shutil.rmtree(root)
    return 0


def _report(compared: dict[str, Way], script: Path, rounds: int) -> None:
    least: dict[str, list[float]] = {name: [] for name in compared}
    for _, model, size, connections in LOADS:
        measured = [[cost(w, script, model, size, connections) for w in compared.values()] for _ in range(rounds + 1)]
        for name, values in zip(compared, zip(*measured[1:], strict=True), strict=True):
            least[name].append(min(values))
            print(f"{name}, {size}: median {statistics.median(values):.1f}", file=sys.stderr)
    print("| | " + " | ".join(name for name, *_ in LOADS) + " |")
    print("|---|" + "---:|" * len(LOADS))
    for name, values in least.items():
        print(f"| {name} | " + " | ".join(f"{value:,.0f}" for value in values) + " |")


if __name__ == "__main__":
    sys.exit(main())
