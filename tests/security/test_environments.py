"""Secrets of a home in the environment and on the command line of its processes, and of what they start."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llmhost.supervise import owned
from llmhost.supervise.guarding.processes import read
from llmhost.supervise.guarding.spec import MARK
from tests.integration.workflow.conftest import Installed, installed, place, wait_for  # noqa: F401  (fixtures)
from tests.ports import free_port

pytestmark = pytest.mark.integration

CHECK, CHAT, EMBED, HOOK, FAR = "sk-of-check", "token-of-chat", "token-of-embedding", "token-of-hook", "sk-of-far"


def processes(made: Installed) -> dict[int, str]:
    """Every process of the home, by id with the program whose engine it belongs to, '' for the others."""
    mark = f"{MARK}={made.home.root}:".encode()

    def owner(pid: int) -> str:
        variables = read(f"/proc/{pid}/environ").split(b"\0")
        return next((v.removeprefix(mark).decode() for v in variables if v.startswith(mark)), "")

    return {pid: owner(pid) for pid in owned.descendants(made.home) | set(owned.everything(made.home))}


def test_who_knows_what(installed: Installed, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    """What `env:` of a service says reaches its engine, and nobody else; everything else reaches nobody."""
    monkeypatch.setenv("LLMHOST_API_KEY", CHECK)
    (installed.home.root / "far.key").write_text(FAR)
    (installed.home.root / "far.key").chmod(0o600)
    far = f"endpoints: [{{url: 'http://127.0.0.1:{free_port()}', key_file: far.key}}]"
    installed.write(f"""
        chat: {{model: {installed.model()}, env: {{TOKEN: {CHAT}, FAKE_ENGINE: --core --children 1}}, {far}}}
        embedding: {{model: {installed.model("embed", "BertModel")}, env: {{TOKEN: {EMBED}}}}}
    """)
    with installed.home.config_file.open("a") as file:
        file.write(f"on_event: 'cat > {place}/told; echo {HOOK}'\n")
    installed.run("up")
    keys = [installed.run("keys", "add", name).stdout.strip() for name in ("one", "two")]
    digests = [k["digest"] for k in json.loads(installed.home.keys_file.read_text())["keys"]]
    installed.run("restart", "embedding")
    found = processes(installed)
    assert sum(owner == "chat-0" for owner in found.values()) >= 4  # API server, EngineCore, worker, a lost child
    assert sum(not owner for owner in found.values()) >= 6  # supervisord, two guards, gateway and its keeper, exporter
    for pid, owner in found.items():
        words, environment = read(f"/proc/{pid}/cmdline"), read(f"/proc/{pid}/environ")
        for secret in (CHECK, CHAT, EMBED, HOOK, FAR, *keys, *digests):
            assert secret.encode() not in words, (pid, words)
            known = secret.encode() in environment
            assert known == ((secret, owner) in ((CHAT, "chat-0"), (EMBED, "embedding-0"))), (secret, pid, words)


def test_a_command_that_is_told_of_an_event_gets_the_message_and_no_secret(
    installed: Installed,  # noqa: F811
    place: Path,  # noqa: F811
) -> None:
    told = place / "told"
    installed.write(f"""
        chat: {{model: {installed.model()}, env: {{TOKEN: {CHAT}, FAKE_ENGINE: --exit-early 2}}}}
    """)
    with installed.home.config_file.open("a") as file:
        file.write(f"on_event: 'env > {told}.new; mv {told}.new {told}'\n")
    installed.run("up", ok=3)
    wait_for(told.exists)
    environment = told.read_text()
    assert "LLMHOST_EVENT=failed" in environment
    assert CHAT not in environment
