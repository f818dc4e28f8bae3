"""Environments of foreign engines, built by the real uv from small wheels."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from llmhost.config_foreign import Environment
from llmhost.env.environments import ensure_environment, find_environment
from llmhost.errors import ConfigError, EngineError
from llmhost.paths import Home
from tests.integration.env.recorder import Recorder
from tests.integration.env.wheels import make_wheel

pytestmark = pytest.mark.integration


@pytest.fixture
def server(wheels: Path) -> None:
    """Two versions of a package."""
    for version in ("1.0", "2.0"):
        make_wheel(wheels, "other-engine", version, {"other_engine/__init__.py": f'print("other engine {version}")'})


def said(place: Path) -> str:
    python = place / "python"
    return subprocess.run([python, "-m", "other_engine.__init__"], capture_output=True, text=True, check=True).stdout


@pytest.mark.usefixtures("server")
def test_it_is_built_once_and_again_when_it_is_to_be_another(home: Home, progress: Recorder) -> None:
    old = Environment(requirements=["other-engine==1.0"])
    assert find_environment(home, "x", old) is None
    place = ensure_environment(home, "x", old, progress)
    assert place.is_relative_to(home.root / "environments" / "x")
    assert "other engine 1.0" in said(place)
    assert ensure_environment(home, "x", old, progress) == find_environment(home, "x", old) == place
    new = Environment(requirements=["other-engine"], constraints=["other-engine>1"])
    assert find_environment(home, "x", new) is None
    newer = ensure_environment(home, "x", new, progress)
    assert "other engine 2.0" in said(newer)
    assert place.exists()  # what runs keeps importing from there
    ensure_environment(home, "x", old, progress)
    assert not place.exists()
    assert newer.exists()


@pytest.mark.usefixtures("server")
def test_a_file_of_requirements_is_looked_into(home: Home, progress: Recorder) -> None:
    home.root.mkdir()
    (home.root / "requirements.txt").write_text("other-engine==1.0\n")
    asked = Environment(requirements="requirements.txt")
    assert "1.0" in said(ensure_environment(home, "x", asked, progress))
    (home.root / "requirements.txt").write_text("other-engine==2.0\n")
    assert find_environment(home, "x", asked) is None
    assert "2.0" in said(ensure_environment(home, "x", asked, progress))


@pytest.mark.usefixtures("server")
def test_what_cannot_be_built_leaves_the_former_one(home: Home, progress: Recorder) -> None:
    good = Environment(requirements=["other-engine==1.0"])
    place = ensure_environment(home, "x", good, progress)
    with pytest.raises(EngineError, match=r"cannot install the requirements of the environment x: .*3\.0"):
        ensure_environment(home, "x", Environment(requirements=["other-engine==3.0"]), progress)
    assert find_environment(home, "x", good) == place
    assert [path.name for path in home.environment_dir("x").iterdir() if path.is_dir()] == [place.parent.name]
    assert "other-engine==3.0" in home.log_file("environment-x").read_text()


def test_an_interpreter_that_is_there_is_used_as_it_is(home: Home, progress: Recorder) -> None:
    assert (
        ensure_environment(home, "x", Environment(interpreter=sys.executable), progress) == Path(sys.executable).parent
    )
    assert not home.root.exists()
    with pytest.raises(ConfigError, match="environment x: there is no interpreter /nowhere/python"):
        find_environment(home, "x", Environment(interpreter="/nowhere/python"))
    with pytest.raises(ConfigError, match=r"environment x: there is no file .*gone\.txt"):
        ensure_environment(home, "x", Environment(requirements="gone.txt"), progress)
