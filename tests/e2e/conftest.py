"""The newcomer's path, once: a copy of this checkout, an empty home, `scripts/quickstart`; all tests here use it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.integration.nodes.homes import Homes, some_hosts
from tests.netns import CannotRun
from tests.ports import free_port

REPOSITORY = Path(__file__).parents[2]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.e2e)
            item.add_marker(pytest.mark.timeout(3600))


@dataclass(frozen=True)
class Installation:
    """What `scripts/quickstart` left: a running demo suite."""

    checkout: Path
    home: Path
    user_home: Path
    port: int
    quickstart_output: str

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "HOME": str(self.user_home), "LLMHOST_HOME": str(self.home)}

    def llmhost(self, *args: str, check: bool = True, timeout: float = 600) -> subprocess.CompletedProcess[str]:
        """Run the installed `llmhost` as its user would."""
        command = [str(self.checkout / ".venv/bin/llmhost"), *args]
        return subprocess.run(
            command, env=self.environment, text=True, capture_output=True, check=check, timeout=timeout
        )

    def python(self, *args: str, timeout: float = 300) -> str:
        """Run a script with the interpreter of .venv; its output."""
        command = [str(self.checkout / ".venv/bin/python"), *args]
        done = subprocess.run(
            command, env=self.environment, text=True, capture_output=True, check=False, timeout=timeout
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def status(self) -> dict[str, Any]:
        status: dict[str, Any] = json.loads(self.llmhost("status", "--json", check=False).stdout)
        return status


def copy_checkout(target: Path) -> None:
    """A clone as a newcomer has it, with what is not committed yet: the files that git tracks or would track."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=REPOSITORY, capture_output=True, check=True,
    ).stdout.decode()  # fmt: skip
    for name in filter(None, listed.split("\0")):
        if (REPOSITORY / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(REPOSITORY / name, target / name)


@pytest.fixture(scope="session")
def installation() -> Iterator[Installation]:
    root = Path(tempfile.mkdtemp(prefix="lh", dir="/tmp"))
    made = Installation(root / "clone", root / "home", root / "user", free_port(), "")
    made.checkout.mkdir()
    made.user_home.mkdir()
    copy_checkout(made.checkout)
    try:
        output = quickstart(made)
        yield Installation(made.checkout, made.home, made.user_home, made.port, output)
    finally:
        if (made.checkout / ".venv/bin/llmhost").exists():
            made.llmhost("down", check=False)
        shutil.rmtree(root, ignore_errors=True)


def pip_environment(made: Installation) -> dict[str, str]:
    """An empty home, but the user's configuration of pip, as a newcomer behind a mirror would have it."""
    config = Path.home() / ".config/pip/pip.conf"
    return {**made.environment, **({"PIP_CONFIG_FILE": str(config)} if config.is_file() else {})}


def quickstart(made: Installation) -> str:
    """Run scripts/quickstart; what it printed."""
    done = subprocess.run(
        ["scripts/quickstart", "--port", str(made.port)], cwd=made.checkout, env=pip_environment(made), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False, timeout=1400,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + made.llmhost("logs", "-n", "30", check=False).stdout
    return done.stdout


@pytest.fixture
def homes() -> Iterator[Homes]:
    try:
        with some_hosts() as network:
            yield Homes(network)
    except CannotRun as e:
        pytest.skip(str(e))
