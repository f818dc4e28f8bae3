"""Run the fault suite and write what was measured into docs/reliability.md: python tests/faults/report.py [--vllm]."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reliability.md"


def run(paths: list[str], results: Path) -> None:
    """The tests, which write `results`; raises CalledProcessError when one fails."""
    environment = {**os.environ, "LLMHOST_FAULTS_RESULTS": str(results)}
    subprocess.run([sys.executable, "-m", "pytest", "-q", *paths], cwd=ROOT, env=environment, check=True)


def table(rows: list[dict[str, Any]]) -> str:
    """As Markdown; times in seconds."""
    head = "| fault | what held | noticed | being restarted | recovered |\n|---|---|---:|---:|---:|\n"
    return head + "".join(
        f"| {r['fault']} | {r['held']} | {seconds(r, 'noticed')} | {seconds(r, 'restarting')} |"
        f" {seconds(r, 'recovered')} |\n"
        for r in rows
    )


def seconds(row: dict[str, Any], key: str) -> str:
    return f"{row[key]:.2f} s" if key in row else ""


def replace(page: str, name: str, text: str) -> str:
    """The page with the part between two comments of this name replaced."""
    begin, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
    before, _, rest = page.partition(begin)
    _, _, after = rest.partition(end)
    machine = f"Measured on {os.cpu_count()} cores, Linux {platform.release()}, Python {platform.python_version()}.\n"
    return f"{before}{begin}{machine}\n{text}{end}{after}"


def main(arguments: list[str]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        results = Path(directory) / "results.json"
        page = PAGE.read_text(encoding="utf-8")
        run(["tests/faults"], results)
        page = replace(page, "faults", table(json.loads(results.read_text(encoding="utf-8"))))
        if "--vllm" in arguments:
            run(["tests/e2e/test_faults.py"], results)
            page = replace(page, "vllm", table(json.loads(Path(f"{results}.vllm").read_text(encoding="utf-8"))))
        PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
