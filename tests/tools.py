"""Programs that tests need and that Python packages do not bring."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def need(program: str) -> str:
    """The path of a program of Prometheus; the test is skipped, with what to do about it, when it is not there."""
    path = os.pathsep.join((str(ROOT / ".venv/prometheus/usr/bin"), os.environ.get("PATH", "")))
    found = shutil.which(program, path=path)
    if found is None:
        pytest.skip(f"{program} is not installed: run scripts/get-prometheus, or install Prometheus")
    return found
