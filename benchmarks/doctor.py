"""How long `llmhost doctor` and `llmhost facts` take, and what the checks of `up` cost: medians of wall and CPU time.

python benchmarks/doctor.py --home DIR [--rounds 11], with a built engine in that home
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

from llmhost import config as configuration
from llmhost.diagnosis.preflight import require_startable
from llmhost.paths import Home

ROOT = Path(__file__).parents[1]


def once(*words: str) -> tuple[float, float]:
    """Seconds, and seconds of processor time, of one run of Python with these words."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(
        [sys.executable, *words], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False
    )
    wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=11)
    given = parser.parse_args()
    print(f"load {os.getloadavg()[0]:.1f}")
    own = ("-m", "llmhost", "--home", str(given.home))
    commands = {f"llmhost {command}": (*own, command) for command in ("doctor", "facts", "--help")}
    for name, words in {**commands, "python -c pass": ("-c", "pass")}.items():
        runs = [once(*words) for _ in range(given.rounds)]
        wall, cpu = (statistics.median(values) for values in zip(*runs, strict=True))
        print(f"{name:15} {wall:6.3f} s, {cpu:5.2f} s of processor time, fastest {min(runs)[0]:.3f} s")
    home = Home.resolve(str(given.home))
    config = configuration.load(home.config_file)
    times = []
    for _ in range(given.rounds):
        started = time.perf_counter()
        require_startable(home, config)
        times.append(time.perf_counter() - started)
    print(f"checks of `llmhost up`: {statistics.median(times) * 1000:.1f} ms")


if __name__ == "__main__":
    main()
