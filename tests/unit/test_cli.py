"""The command line without effects: help, usage errors, and errors as two lines."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from llmhost.__main__ import run
from llmhost.cli import COMMANDS, cli, console


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LLMHOST_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_help_teaches_and_loads_no_command(capsys: pytest.CaptureFixture[str]) -> None:
    before = set(sys.modules)
    assert run(["--help"]) == 0
    output = capsys.readouterr().out
    assert all(f"  {name} " in output for name in COMMANDS)
    assert "llmhost up --demo" in output
    assert {m for m in set(sys.modules) - before if m.startswith("llmhost.cli.")} <= {"llmhost.cli.console"}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_a_help_of_its_own(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([name, "--help"]) == 0
    assert f"Usage: llmhost {name}" in capsys.readouterr().out


def test_a_command_that_does_not_exist_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["satus"]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "error: no such command: satus (did you mean status?)",
        "hint: see `llmhost --help`",
    ]


def test_an_unknown_option_points_to_the_help_of_its_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["up", "--foo"]) == 2
    assert "hint: see `llmhost up --help`" in capsys.readouterr().err


def test_an_error_is_two_lines_and_no_traceback(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["config", "show"]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        f"error: {home}/llmhost.yaml does not exist",
        "hint: write one with `llmhost init` (or `llmhost init --demo`)",
    ]


def test_init_writes_a_valid_file_once(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["init", "--demo", "--port", "8123"]) == 0
    first = (home / "llmhost.yaml").read_text()
    assert run(["config", "validate"]) == 0
    assert run(["init"]) == 1
    assert (home / "llmhost.yaml").read_text() == first
    assert "already exists" in capsys.readouterr().err


def test_init_without_demo_is_valid_too(home: Path) -> None:
    assert run(["init"]) == 0
    assert run(["config", "validate"]) == 0


def test_config_show_fills_in_defaults_and_hides_values_of_env(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home.mkdir()
    (home / "llmhost.yaml").write_text("services: {chat: {model: /m, env: {HF_TOKEN: secret}}}\n")
    assert run(["config", "show"]) == 0
    shown = capsys.readouterr().out
    assert "port: 8000" in shown
    assert "HF_TOKEN: '***'" in shown
    assert "secret" not in shown
    assert run(["config", "show", "--json", "--no-defaults"]) == 0
    assert json.loads(capsys.readouterr().out) == {"services": {"chat": {"model": "/m", "env": {"HF_TOKEN": "***"}}}}


def test_config_schema_is_json(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["config", "schema"]) == 0
    assert json.loads(capsys.readouterr().out)["title"] == "llmhost.yaml"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["completion", shell]) == 0
    assert "_LLMHOST_COMPLETE" in capsys.readouterr().out


def test_a_bug_is_two_lines_too_unless_debug(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("oops")

    monkeypatch.setattr(cli, "invoke", broken)
    assert run(["status"]) == 70
    assert capsys.readouterr().err.splitlines()[0] == "error: internal error: ZeroDivisionError: oops"
    with pytest.raises(ZeroDivisionError):
        run(["--debug", "status"])


def test_a_table_lines_up_wide_characters(capsys: pytest.CaptureFixture[str]) -> None:
    console.table(("NAME", "X"), [("通义", "1"), ("qwen", "2")])
    assert capsys.readouterr().out.splitlines() == ["NAME  X", "通义  1", "qwen  2"]
