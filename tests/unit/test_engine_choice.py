"""What is refused about engines, and in which order things are done."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, cast

import pytest

from llmhost import engines, switching
from llmhost.config import Config, parse
from llmhost.env.current import choose_engine, engine_names
from llmhost.env.manifest import Manifest, Spec, write_manifest
from llmhost.env.progress import Silent
from llmhost.errors import BusyError, ConfigError, EngineError, NotReadyError
from llmhost.paths import Home
from llmhost.supervise.lock import home_lock
from tests.machines import CPU_BOX
from tests.samples import FLAGS


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """Two engines, of which ``default`` counts."""
    made = Home(tmp_path / "h")
    for name in ("default", "old"):
        directory = made.engine_dir(name)
        (directory / "build/bin").mkdir(parents=True)
        (directory / "build/bin/python").touch()
        packages = {"torch": "2.13.0+cpu", "transformers": "5.19.0", "vllm": "0.32.0"}
        spec = Spec("venv", "auto", None, None)
        write_manifest(directory, Manifest(spec, "build", "3.12.1", packages, FLAGS, (), (), "", 1.0))
    return made


@pytest.mark.parametrize("to", ["../../../tmp/x", "latest", "0.33.0/", "v0.33.0", "", "0.33.0\n"])
def test_a_version_that_is_none(home: Home, to: str) -> None:
    (home.root / ".llmhost").touch()
    with pytest.raises(EngineError, match="is no version of vLLM"):
        switching.upgrade(home, to, Silent(), lambda _: None)
    with pytest.raises(ConfigError, match=r"engine\.vllm"):
        parse(f"engine: {{vllm: {to!r}}}")


@pytest.mark.parametrize("version", ["0.33.0+cu129", "0.33.0rc1", "0.19.2rc1.dev5+g0A1B".lower(), "0.33.0.post1"])
def test_an_engine_is_called_so_that_it_is_found_again(
    home: Home, version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(switching, "read_machine", lambda _: CPU_BOX)
    release = switching._target(home, parse(f"engine: {{vllm: {version}}}").engine, version)
    assert release.vllm == version
    name = switching._name_for(home, release)
    choose_engine(home, name)
    shutil.copytree(home.engine_dir("old"), home.engine_dir(name))
    assert name in engine_names(home)


def test_a_name_that_would_not_be_read_again(home: Home) -> None:
    with pytest.raises(EngineError, match=r"cannot be called 0\.33\.0\+cu129"):
        choose_engine(home, "0.33.0+cu129")
    assert not home.current_engine_file.exists()


class _Planned:
    """The part of a plan that says what its programs run."""

    def __init__(self, python: Path) -> None:
        self.programs = (type("Program", (), {"argv": (str(python), "-m", "vllm")}),)


def test_an_engine_that_start_would_use_stays(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = _Planned(home.engine_dir("old") / "build/bin/python")
    monkeypatch.setattr(engines, "read_plan", lambda _: plan)
    monkeypatch.setattr(engines, "_runs_from", lambda *_: False)
    with pytest.raises(EngineError, match="or would be started on it"):
        engines.remove(home, "old")
    assert "old" in engine_names(home)


def test_an_engine_that_cannot_be_removed_whole_is_no_engine_any_more(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(directory: Path) -> None:
        raise PermissionError(13, "Permission denied", str(directory / "build"))

    monkeypatch.setattr(engines.shutil, "rmtree", refuse)
    with pytest.raises(EngineError, match=r"cannot remove .*/old/build: Permission denied"):
        engines.remove(home, "old")
    assert engine_names(home) == ("default",)


def test_a_trial_takes_its_turn_before_it_looks_what_runs(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    class Looked(Exception):
        pass

    def look(_: Home) -> None:
        with pytest.raises(BusyError), home_lock(home, "up --surge", wait=0):
            pass
        raise Looked

    monkeypatch.setattr(switching, "read_running", look)
    with pytest.raises(Looked):
        switching.try_service(home, cast("Any", None), cast("Any", None), Silent())


def test_the_first_error_is_told_when_going_back_fails_too(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def reload(*_: Any, surge: bool = False) -> None:
        asked.append(surge)
        if not surge:
            raise EngineError("the old one is broken", "")

    def wait(_: Any) -> None:
        raise NotReadyError("the new one does not start", "")

    monkeypatch.setattr(switching.daemon, "is_running", lambda _: True)
    monkeypatch.setattr(switching.workflow, "reload", reload)
    with pytest.raises(NotReadyError, match="the new one does not start"):
        switching._switch(home, "default", "old", Silent(), wait)
    assert asked == [True, False]
    assert switching.engine_name(home, Config().engine) == "default"
