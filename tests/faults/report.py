"""Run the fault suite and write what was measured into docs/reliability.md: python tests/faults/report.py [--vllm]."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from tests import measured  # noqa: E402

PAGE = ROOT / "docs" / "reliability.md"
TIMES = ("noticed", "restarting", "recovered")


def run(paths: list[str], results: Path) -> None:
    """The tests, which write `results`; raises CalledProcessError when one fails."""
    environment = {**os.environ, "LLMHOST_FAULTS_RESULTS": str(results)}
    subprocess.run([sys.executable, "-m", "pytest", "-q", *paths], cwd=ROOT, env=environment, check=True)


def table(file: Path) -> str:
    """What a run of the tests wrote, as Markdown; times in seconds."""
    rows = json.loads(file.read_text(encoding="utf-8"))
    head = ("fault", "what held", "noticed", "being restarted", "recovered")
    return measured.table(head, ((r["fault"], r["held"], *(seconds(r, t) for t in TIMES)) for r in rows), 3)


def seconds(row: dict[str, Any], key: str) -> str:
    return f"{row[key]:.2f} s" if key in row else ""


def main(arguments: list[str]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        results = Path(directory) / "results.json"
        run(["tests/faults"], results)
        tables = {"faults": table(results)}
        if "--vllm" in arguments:
            run(["tests/e2e/test_faults.py"], results)
            tables["vllm"] = table(Path(f"{results}.vllm"))
        for name, text in tables.items():
            measured.write(PAGE, name, text, " ".join(("python tests/faults/report.py", *arguments)))


if __name__ == "__main__":
    main(sys.argv[1:])
