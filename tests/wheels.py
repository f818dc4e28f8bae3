"""Wheels of everything that llmhost needs, for hosts of a test that reach no package index."""

from __future__ import annotations

import fcntl
import hashlib
import subprocess
import sys
from pathlib import Path

CHECKOUT = Path(__file__).parent.parent
PLACE = CHECKOUT / ".venv/node-wheels"
STAMP = ".complete"


def wheelhouse() -> Path:
    """A directory of them; downloaded once for a pyproject.toml, through pip as it is configured here."""
    wanted = hashlib.sha256((CHECKOUT / "pyproject.toml").read_bytes()).hexdigest()
    PLACE.mkdir(parents=True, exist_ok=True)
    with (PLACE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        stamp = PLACE / STAMP
        if not stamp.exists() or stamp.read_text(encoding="utf-8") != wanted:
            pip = [sys.executable, "-m", "pip", "download", "--quiet", "--dest", str(PLACE), str(CHECKOUT), "hatchling"]
            done = subprocess.run(pip, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
            for own in PLACE.glob("llmhost-*"):
                own.unlink()
            stamp.write_text(wanted, encoding="utf-8")
    return PLACE
