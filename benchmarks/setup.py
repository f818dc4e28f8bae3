"""`llmhost setup` (uv) against plain pip: the same packages, cold caches, one run after the other.

    python benchmarks/setup.py [--keep] [--json]

Both make a virtual environment, install the pinned set and import vLLM once (the same script). pip gets the list
that uv resolved and `--no-deps`, so it is spared the resolution.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from llmhost.config import Engine  # noqa: E402
from llmhost.env import Silent, ensure_engine  # noqa: E402
from llmhost.env.gate import SCRIPT  # noqa: E402
from llmhost.env.uv import find_uv  # noqa: E402
from llmhost.paths import Home  # noqa: E402


class Steps(Silent):
    """When each step of the setup ended, in seconds since the start."""

    def __init__(self) -> None:
        self.start = time.monotonic()
        self.ended: dict[str, float] = {}

    def finished(self, step: str, detail: str = "") -> None:
        self.ended[f"{step} ({detail})" if detail else step] = round(time.monotonic() - self.start, 1)


def with_uv(work: Path) -> tuple[float, dict[str, float], str]:
    """Seconds, the end of each step, and the interpreter."""
    os.environ["UV_CACHE_DIR"] = str(work / "uv-cache")
    steps = Steps()
    facts = ensure_engine(Home(work / "home"), Engine(), steps)
    return time.monotonic() - steps.start, steps.ended, facts.python


def with_pip(work: Path, packages: str) -> float:
    """Seconds that pip takes for the same packages, its own import check included."""
    requirements = work / "requirements.txt"
    requirements.write_text(packages)
    environment = {**os.environ, "PIP_CACHE_DIR": str(work / "pip-cache"), "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    python = str(work / "pip/bin/python")
    start = time.monotonic()
    for command in (
        [sys.executable, "-m", "venv", str(work / "pip")],
        [python, "-m", "pip", "install", "--quiet", "--no-deps", "--requirement", str(requirements)],
        [python, "-P", str(SCRIPT)],
    ):
        subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.monotonic() - start


def frozen(python: str) -> str:
    """The installed set, as requirements."""
    command = [find_uv(), "pip", "freeze", "--python", python]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def main() -> None:
    """Run both and print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", action="store_true", help="leave the directories for a look")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of text")
    options = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="llmhost-setup-"))
    try:
        uv, steps, python = with_uv(work)
        packages = frozen(python)
        pip = with_pip(work, packages)
    finally:
        if not options.keep:
            shutil.rmtree(work, ignore_errors=True)
    result = {"uv_s": round(uv, 1), "pip_s": round(pip, 1), "ratio": round(pip / uv, 2), "uv_steps_end_s": steps}
    if options.json:
        print(json.dumps(result))
        return
    print(f"packages: {len(packages.splitlines())}")
    for step, seconds in steps.items():
        print(f"  {seconds:6.1f} s  {step}")
    print(f"setup (uv): {uv:.1f} s\nplain pip:  {pip:.1f} s\npip / uv:   {pip / uv:.2f}")


if __name__ == "__main__":
    main()
