"""Stands in for conda, which no package index has: `create` and `config --show channels`, done by py-rattler.

It solves and installs for real; what it says when it cannot is worded as conda does.
"""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Any

import rattler
from ruamel.yaml import YAML


def main(argv: list[str]) -> int:
    if argv[:1] == ["--version"]:
        print("conda 25.1.0")
        return 0
    if argv[:1] == ["config"]:
        print("channels:\n" + "".join(f"  - {c}\n" for c in os.environ.get("FAKE_CONDA_CHANNELS", "").split()))
        return 0
    prefix, channels, specs = "", [], []
    words = iter(argv[1:])
    for word in words:
        if word == "--prefix":
            prefix = next(words)
        elif word == "--channel":
            channels.append(next(words))
        elif not word.startswith("--"):
            specs.append(word)
    channels = [address for channel in channels for address in named(channel)]
    return asyncio.run(create(prefix, channels or os.environ.get("FAKE_CONDA_CHANNELS", "").split(), specs))


def named(channel: str) -> list[str]:
    """A channel, or those that the configuration in CONDARC calls so (custom_multichannels)."""
    if "CONDARC" not in os.environ:
        return [channel]
    with open(os.environ["CONDARC"], encoding="utf-8") as file:
        multi = YAML(typ="safe").load(file).get("custom_multichannels", {})
    return list(multi.get(channel, [channel]))


async def create(prefix: str, channels: list[str], specs: list[str]) -> int:
    print("Collecting package metadata (repodata.json): done")
    sources: list[Any] = [rattler.Channel(channel) for channel in channels]
    try:
        records = await rattler.solve(sources, [rattler.MatchSpec(s) for s in specs], platforms=["linux-64", "noarch"])
    except Exception as e:
        missing = [s for s in specs if "no candidates" in str(e) and s.split("=")[0] in str(e)]
        if missing:
            print("\nPackagesNotFoundError: The following packages are not available from current channels:\n")
            print("".join(f"  - {s}\n" for s in missing))
        else:
            print(f"\nLibMambaUnsatisfiableError: {e}")
        return 1
    await rattler.install(records, prefix, cache_dir=os.environ["FAKE_CONDA_CACHE"], show_progress=False)
    print("Executing transaction: done")
    return 0


if __name__ == "__main__":
    status = main(sys.argv[1:])
    sys.stdout.flush()
    os._exit(status)  # the threads of py-rattler sometimes crash an interpreter that ends in order
