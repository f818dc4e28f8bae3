"""For all tests."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

# The same examples on every machine, and no time asserted: a slow machine is no failure.
settings.register_profile("llmhost", derandomize=True, deadline=None)
settings.load_profile("llmhost")

# A shell that starts the tests in its background has them, and every command that they run, ignore Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Commands take turns on one home, and on a slow machine these are long.
os.environ.setdefault("LLMHOST_LOCK_TIMEOUT", "900")

ROOT = Path(__file__).parent.parent
LONGEST_FIRST = ("systemd", "faults", "integration", "security")
"""Directories of long files of tests: side by side, one that begins last would be waited for alone."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """A file of tests stays together, and so do the files that share an `installation`, which costs minutes."""
    # Not at the top: some tests run where the engine is, which has no xdist.
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file: str = super()._split_scope(nodeid)
            shared = file.startswith("tests/e2e/") and "installation" in (ROOT / file).read_text(encoding="utf-8")
            return "installation" if shared else file

    return Scheduling(config, log) if config.getvalue("dist") == "loadfile" else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=_turn)


def _turn(item: pytest.Item) -> int:
    directory = item.path.relative_to(Path(__file__).parent).parts[0]
    return LONGEST_FIRST.index(directory) if directory in LONGEST_FIRST else len(LONGEST_FIRST)
