"""`llmhost up` against the same engines started by hand at the same moment, and the memory of all that is no engine.

    python benchmarks/up.py [--rounds 3]

Uses the demo suite in a home of its own below /tmp. In each round, in turn: `llmhost up` from a stopped home until it
returns, and the very commands of `llmhost plan --commands` started together by this script until each answers a real
request. The very first `up`, on an empty home, builds the engine, too; one after `down` shows what is kept.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
import psutil

BODIES: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}], "max_tokens": 1}),
    "embed": ("/v1/embeddings", {"input": "a"}),
    "rerank": ("/v1/rerank", {"query": "a", "documents": ["b"]}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    home = Path(tempfile.mkdtemp(prefix="lh", dir="/tmp"))
    try:
        llmhost(home, "init", "--demo", "--port", "18642")
        first = timed(lambda: llmhost(home, "up"))
        memory = other_memory(home)
        llmhost(home, "down")
        ours, by_hand = [], []
        for _ in range(rounds):
            ours.append(timed(lambda: llmhost(home, "up")))
            plan = json.loads(llmhost(home, "plan", "--json"))
            environments = engine_environments(home)
            llmhost(home, "down")
            by_hand.append(start_by_hand(plan, environments))
    finally:
        llmhost(home, "down")
        shutil.rmtree(home)
    report(first, ours, by_hand, memory)


def llmhost(home: Path, *args: str) -> str:
    command = [sys.executable, "-m", "llmhost", "--home", str(home), *args]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def timed(work: Any) -> float:
    started = time.monotonic()
    work()
    return time.monotonic() - started


def engine_environments(home: Path) -> dict[str, dict[str, str]]:
    """What the guards give their engines."""
    specs = (json.loads(p.read_text()) for p in (home / "conf/guard").iterdir())
    return {spec["program"]: spec["env"] for spec in specs}


def start_by_hand(plan: dict[str, Any], environments: dict[str, dict[str, str]]) -> float:
    """Seconds until all three answer."""
    started = time.monotonic()
    engines = []
    for service in plan["services"]:
        for replica in service["replicas"]:
            # The mark would make llmhost take the process for one of its own.
            extra = {k: v for k, v in environments[replica["name"]].items() if k != "LLMHOST_PROGRAM"}
            engines.append(
                subprocess.Popen(
                    replica["argv"], env={**os.environ, **extra}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
                )
            )
    for service in plan["services"]:
        for replica in service["replicas"]:
            await_answer(replica["socket"], service)
    seconds = time.monotonic() - started
    stop_by_hand(engines)
    return seconds


def stop_by_hand(engines: list[subprocess.Popen[bytes]]) -> None:
    """Until nothing is left that could slow down what is measured next."""
    tree = [p for engine in engines for p in psutil.Process(engine.pid).children(recursive=True)]
    for engine in engines:
        engine.terminate()
    for engine in engines:
        engine.wait(60)
    for process in psutil.wait_procs(tree, timeout=30)[1]:
        process.kill()


def await_answer(socket: str, service: dict[str, Any]) -> None:
    path, body = BODIES[service["kind"]]
    deadline = time.monotonic() + 600
    with httpx.Client(transport=httpx.HTTPTransport(uds=socket), base_url="http://engine", timeout=120) as client:
        while time.monotonic() < deadline:
            try:
                if client.post(path, json={"model": service["served_as"][0], **body}).status_code == 200:
                    return
            except httpx.HTTPError:
                time.sleep(0.1)
    raise SystemExit(f"{service['name']} did not answer")


def other_memory(home: Path) -> dict[str, int]:
    """Resident bytes of supervisord, the guards and the gateway."""
    status = json.loads(llmhost(home, "status", "--json"))
    pids = {"supervisord": status["supervisor"]["pid"], "gateway": status["gateway"]["pid"]}
    pids |= {f"guard of {r['name']}": r["pid"] for s in status["services"] for r in s["replicas"]}
    return {name: psutil.Process(pid).memory_info().rss for name, pid in pids.items()}


def report(first: float, ours: list[float], by_hand: list[float], memory: dict[str, int]) -> None:
    up, hand = statistics.median(ours), statistics.median(by_hand)
    print("| what | seconds, median of", len(ours), "| ratio |\n|---|---:|---:|")
    print(f"| three engines started by hand, until each answers | {hand:.1f} | 1 |")
    print(f"| `llmhost up`, until it returns | {up:.1f} | {up / hand:.2f} |")
    print(f"| the very first `llmhost up`, engine built on the way | {first:.1f} | 1 |")
    print(f"| `llmhost up` after `llmhost down` | {ours[0]:.1f} | {ours[0] / first:.2f} |")
    print("\n| resident | MiB |\n|---|---:|")
    for name, size in memory.items():
        print(f"| {name} | {size / 2**20:.1f} |")
    print(f"| together | {sum(memory.values()) / 2**20:.1f} |")


if __name__ == "__main__":
    main()
