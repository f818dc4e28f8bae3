"""The command line without effects: help, usage errors, and errors as two lines."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.shell_completion import ShellComplete

from llmhost import config
from llmhost.__main__ import run
from llmhost.cli import COMMANDS, cli, console
from llmhost.cli.plan import shortened
from llmhost.errors import ConfigError
from llmhost.first_config import require_demo_config
from llmhost.paths import Home


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
    said = capsys.readouterr()
    assert "3 services (chat, embedding, rerank)" in said.out
    assert "not checked: the flags under args:" in said.err
    assert run(["init"]) == 1
    assert (home / "llmhost.yaml").read_text() == first
    assert "already exists" in capsys.readouterr().err


def test_init_without_demo_is_valid_as_it_is_and_with_its_examples(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["init"]) == 0
    assert run(["config", "validate"]) == 0
    said = capsys.readouterr()
    assert "is valid: no services" in said.out
    assert "at least one" in said.err
    file = home / "llmhost.yaml"
    text = re.sub(r"(?m)^#(  )", r"\1", file.read_text())
    file.write_text(text)
    assert run(["config", "validate"]) == 1
    assert "error: services.chat.model: " in capsys.readouterr().err
    assert run(["config", "validate", "--file-only"]) == 0
    assert "not checked: the models" in capsys.readouterr().err
    assert list(config.parse(text).services) == ["chat", "embedding", "rerank"]


def test_port_without_demo_is_wrong_usage(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["up", "--port", "8123"]) == 2
    assert "gateway.port" in capsys.readouterr().err


def test_the_port_of_an_unedited_demo_can_be_changed_and_of_an_edited_one_not(home: Path) -> None:
    require_demo_config(Home(home), None)
    require_demo_config(Home(home), 8123)
    assert config.load(home / "llmhost.yaml").gateway.port == 8123
    edited = (home / "llmhost.yaml").read_text() + "# mine\n"
    (home / "llmhost.yaml").write_text(edited)
    require_demo_config(Home(home), 8123)
    with pytest.raises(ConfigError, match=r"has been edited and says gateway.port 8123, not 9000"):
        require_demo_config(Home(home), 9000)
    assert (home / "llmhost.yaml").read_text() == edited


def test_the_demo_leaves_a_configuration_of_somebody_else_alone(home: Path) -> None:
    home.mkdir()
    (home / "llmhost.yaml").write_text("services: {chat: {model: /m}}\n")
    with pytest.raises(ConfigError, match="is not the demo"):
        require_demo_config(Home(home), None)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda home: (home.mkdir(), (home / "thesis").touch()), "is not a home of llmhost and not empty"),
        (lambda home: home.write_text(""), "is a file, not a directory"),
    ],
)
def test_a_foreign_home_is_two_lines(
    make: Callable[[Path], object], message: str, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make(home)
    assert run(["init"]) == 1
    error, hint = capsys.readouterr().err.splitlines()
    assert message in error
    assert "--home" in hint


def test_a_home_too_long_or_that_supervisord_cannot_hold_is_two_lines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder, message in (("x" * 100, "bytes too long"), ("50%", "supervisord cannot hold the path")):
        assert run(["--home", str(tmp_path / folder), "init"]) == 1
        error, hint = capsys.readouterr().err.splitlines()
        assert message in error
        assert hint.startswith("hint: ")
        assert not (tmp_path / folder).exists()


def test_completion_offers_the_services_of_the_plan_in_force(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "conf").mkdir(parents=True)
    services = [{"name": "chat", "kind": "chat"}, {"name": "embedding", "kind": "embed"}]
    (home / "conf/plan.json").write_text(json.dumps({"services": services}))
    found = ShellComplete(cli, {}, "llmhost", "_LLMHOST_COMPLETE").get_completions(["logs"], "ch")
    assert [item.value for item in found] == ["chat"]
    found = ShellComplete(cli, {}, "llmhost", "_LLMHOST_COMPLETE").get_completions(["logs"], "")
    assert [item.value for item in found] == ["chat", "embedding", "gateway", "metrics", "access", "supervisord"]
    found = ShellComplete(cli, {}, "llmhost", "_LLMHOST_COMPLETE").get_completions(["stop"], "")
    assert [item.value for item in found] == ["chat", "embedding"]


def test_status_says_what_comes_next(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["status"]) == 3
    assert f"there is no {home}/llmhost.yaml: write one with `llmhost init`" in capsys.readouterr().err
    assert not home.exists()
    home.mkdir()
    (home / "llmhost.yaml").write_text("services: {chat: {model: /m}}\n")
    assert run(["status"]) == 3
    assert "nothing has been brought up yet: run `llmhost up`" in capsys.readouterr().err


@pytest.mark.parametrize("made", [True, False])
def test_up_in_a_home_that_is_none_makes_nothing(home: Path, made: bool, capsys: pytest.CaptureFixture[str]) -> None:
    if made:
        home.mkdir()
    assert run(["up"]) == 1
    assert "llmhost.yaml does not exist" in capsys.readouterr().err
    assert list(home.parent.rglob("*")) == [home] * made


@pytest.mark.parametrize("text", ["", "gateway: {port: 8000}\n", "services:\n", "services: {}\n"])
def test_up_without_services_is_refused_before_anything_is_made(
    home: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    home.mkdir()
    (home / "llmhost.yaml").write_text(text)
    assert run(["up"]) == 1
    error, hint = capsys.readouterr().err.splitlines()
    assert error == f"error: {home}/llmhost.yaml has no services"
    assert "services:" in hint
    assert "llmhost down" in hint
    assert list(home.iterdir()) == [home / "llmhost.yaml"]


def test_check_wants_a_whole_address(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["check", "--url", "127.0.0.1:8000"]) == 2
    assert "--url" in capsys.readouterr().err


def test_config_show_fills_in_defaults_and_hides_values_of_env(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home.mkdir()
    (home / "llmhost.yaml").write_text(
        "on_event: https://h/secret\nservices: {chat: {model: /m, env: {HF_TOKEN: secret}}}\n"
    )
    assert run(["config", "show"]) == 0
    shown = capsys.readouterr().out
    assert "port: 8000" in shown
    assert "HF_TOKEN: '***'" in shown
    assert "secret" not in shown
    assert run(["config", "show", "--json", "--no-defaults"]) == 0
    services = {"chat": {"model": "/m", "env": {"HF_TOKEN": "***"}}}
    assert json.loads(capsys.readouterr().out) == {"on_event": "***", "services": services}


def test_config_schema_is_json(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["config", "schema"]) == 0
    assert json.loads(capsys.readouterr().out)["title"] == "llmhost.yaml"


def test_the_reference_in_docs_is_that_of_the_program(capsys: pytest.CaptureFixture[str]) -> None:
    """Renew it with `llmhost config schema --markdown > docs/config.md`."""
    assert run(["config", "schema", "--markdown"]) == 0
    page = capsys.readouterr().out
    assert page == (Path(__file__).parents[2] / "docs/config.md").read_text(encoding="utf-8")
    assert all(f"| `{key}` |" in page for key in (*config.Service.model_fields, *config.Gateway.model_fields))


def test_a_long_line_of_a_diff_is_cut_for_a_terminal() -> None:
    assert shortened("+short") == "+short"
    assert shortened("+" + "x" * 2000).endswith("x… (and 1841 characters more)")


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


@pytest.mark.parametrize("nodes", ["", "nodes: {a: {address: 10.0.0.1}, b: {address: 10.0.0.2}}\n"])
def test_changed_keys_say_that_other_nodes_have_the_old_ones(
    nodes: str, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home.mkdir()
    (home / ".llmhost").touch()
    (home / "llmhost.yaml").write_text(f"{nodes}services: {{}}\n", encoding="utf-8")
    assert run(["keys", "add", "me"]) == 0
    for words in (["rotate", "me"], ["revoke", "me"], ["reset", "--yes"]):
        capsys.readouterr()
        assert run(["keys", *words]) == 0
        told = capsys.readouterr()
        assert ("until `llmhost node sync`" in told.err) == bool(nodes)
        assert "node sync" not in told.out
