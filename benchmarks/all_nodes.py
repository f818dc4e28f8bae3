"""How long `llmhost status --all-nodes` takes: three nodes, over real ssh, with real gateways.

Run as root: python benchmarks/all_nodes.py [--rounds 9]. Prints a markdown table. The nodes are network namespaces of
this machine, so all of them share its cores and nothing travels far; engines are stand-ins. Beside it `llmhost status`
of one node, and a bare login, in turn in each round; what is shown is the median of the rounds. Processor time is that
of the node that asks: what sshd and llmhost take on the others is theirs.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from tests.integration.nodes.homes import make_nodes, some_hosts  # noqa: E402
from tests.netns import Host  # noqa: E402

STATUS, ALL = ("status",), ("status", "--all-nodes")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    with some_hosts() as network:
        homes = make_nodes(network, "a", "b", "c")
        a, c = network.hosts["a"], network.hosts["c"]
        homes.run(a, "up", "--all-nodes")
        report(a, c, options.rounds)
        homes.run(a, "down", "--all-nodes")
    return 0


def report(a: Host, c: Host, rounds: int) -> None:
    taken: dict[str, list[tuple[float, float]]] = {
        "`llmhost status` on one node": [], "a login by ssh, nothing kept": [],
        "`status --all-nodes`, connections kept": [], "`status --all-nodes`, the first one": [],
    }  # fmt: skip
    ways = (
        lambda: timed(a, *a.llmhost(*STATUS)),
        lambda: timed(a, "ssh", "-oBatchMode=yes", c.name, "true"),
        lambda: timed(a, *a.llmhost(*ALL)),
        lambda: (forget(a), timed(a, *a.llmhost(*ALL)))[1],
    )
    for _ in range(rounds):
        for times, way in zip(taken.values(), ways, strict=True):
            times.append(way())
    c.link(False)
    cut = [timed(a, *a.llmhost(*ALL), ok=3) for _ in range(max(1, rounds // 3))]
    c.link(True)
    taken["`status --all-nodes`, one node cut off"] = cut
    print(
        f"load {os.getloadavg()[0]:.1f}\n\n| what | median, s | fastest, s | processor time, s |\n|---|---:|---:|---:|"
    )
    for what, times in taken.items():
        wall, processor = zip(*times, strict=True)
        print(f"| {what} | {statistics.median(wall):.2f} | {min(wall):.2f} | {statistics.median(processor):.2f} |")


def timed(host: Host, *words: str, ok: int = 0) -> tuple[float, float]:
    """Seconds on the wall, and of the processors."""
    before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    host.run(*words, ok=ok)
    wall, after = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def forget(host: Host) -> None:
    """End the connections that are kept."""
    host.run("sh", "-c", "for s in .llmhost/run/ssh/????????; do ssh -S $s -O exit x; done")


if __name__ == "__main__":
    sys.exit(main())
