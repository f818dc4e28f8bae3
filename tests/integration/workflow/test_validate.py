"""`config validate` refuses what `plan` refuses, and errors say which names there are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.integration.workflow.conftest import Installed

pytestmark = pytest.mark.integration


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ("{tool_call_parser: hermas}", "has no parser 'hermas'"),
        ("{max_model_len: true}", "--max-model-len needs a value"),
        ("{enforce_eager: 3}", "it is on or off"),
        ("{max_modl_len: 3}", "no flag --max-modl-len"),
    ],
)
def test_flags(installed: Installed, args: str, message: str) -> None:
    installed.write(f"chat: {{model: {installed.model()}, args: {args}}}")
    error, _ = installed.refused("config", "validate")
    assert "services.chat.args." in error
    assert message in error
    assert installed.refused("plan")[0] == error


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: [p.unlink() for p in folder.iterdir()], "empty"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"\x10"), "safetensors"),
        (lambda folder: folder.rename(folder.with_name("elsewhere")), "does not exist"),
    ],
)
def test_models(installed: Installed, damage: Callable[[Path], object], message: str) -> None:
    model = Path(installed.model())
    installed.write(f"chat: {{model: {model}}}")
    done = installed.run("config", "validate")
    assert done.stdout == f"{installed.home.config_file} is valid: 1 service (chat)\n"
    assert done.stderr == ""
    damage(model)
    error, _ = installed.refused("config", "validate")
    assert "services.chat.model" in error
    assert message in error
    installed.run("config", "validate", "--file-only")


def test_a_name_that_is_not_there(installed: Installed) -> None:
    """What is in llmhost.yaml and what the last `up` had are two things."""
    installed.write(f"chat: {{model: {installed.model()}}}")
    installed.run("up")
    installed.write(f"chat: {{model: {installed.model()}}}\nother: {{model: {installed.model()}}}")
    assert installed.refused("up", "nobody")[1] == "hint: llmhost.yaml has: chat, other"
    for command in ("start", "stop", "restart", "check"):
        error, hint = installed.refused(command, "other")
        assert error == "error: there is no service other"
        assert hint == "hint: the last `llmhost up` had: chat; run it again for what was written since"
    error, hint = installed.refused("logs", "other")
    assert error == "error: there is no log of other"
    assert "gateway, metrics, access, supervisord" in hint
    assert "had: chat" in hint


def test_plan_says_what_up_would_do_and_up_says_what_it_stops(installed: Installed) -> None:
    chat, embed = installed.model(), installed.model("embed", "BertModel")
    installed.write(f"chat: {{model: {chat}}}\nold: {{model: {embed}}}\nsame: {{model: {embed}, port: 1}}")
    assert outlook(installed) == {"chat": "start", "old": "start", "same": "start"}
    installed.write(f"chat: {{model: {chat}}}\nold: {{model: {embed}}}\nsame: {{model: {embed}}}")
    assert "stopping" not in installed.run("up").stderr
    installed.write(f"chat: {{model: {chat}, env: {{A: b}}}}\nnew: {{model: {chat}}}\nsame: {{model: {embed}}}")
    assert {name: words.partition(":")[0] for name, words in outlook(installed).items()} == {
        "chat": "restart", "new": "start", "same": "keep", "old": "stop",
    }  # fmt: skip
    assert "stopping old: it is no longer in llmhost.yaml" in installed.run("up").stderr
    assert set(outlook(installed).values()) == {"keep"}


def outlook(installed: Installed) -> dict[str, str]:
    lines = installed.run("plan").stdout.splitlines()
    found = (line.removeprefix("`llmhost up` for ").partition(": ") for line in lines if "`llmhost up` for" in line)
    return {name: words for name, _, words in found}
