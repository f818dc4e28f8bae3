"""`llmhost keys` on a home that runs, and who may bind which address."""

from __future__ import annotations

import json
import os
import stat
import subprocess
from pathlib import Path

import httpx
import pytest

from llmhost import balancing
from llmhost.probe.gateway import GatewayState, read_gateway
from tests.integration.workflow.conftest import Installed, wait_for

pytestmark = pytest.mark.integration


def services(installed: Installed, gateway: str = "") -> None:
    installed.write(
        f"""
        chat: {{model: {installed.model()}}}
        embedding: {{model: {installed.model("embed", "BertModel")}}}
        """,
        gateway,
    )


def status(installed: Installed, path: str, key: str | None = None, body: object = None) -> int:
    headers = {"authorization": f"Bearer {key}"} if key else {}
    url = f"http://127.0.0.1:{installed.port}{path}"
    with httpx.Client(headers=headers, timeout=300) as client:
        answer = client.get(url) if body is None else client.post(url, json=body)
    return answer.status_code


def test_the_life_of_keys(installed: Installed) -> None:
    services(installed)
    installed.run("up")
    before = installed.pids()
    assert status(installed, "/v1/models") == 200

    key = installed.run("keys", "add", "me").stdout.strip()
    assert status(installed, "/v1/models") == 401
    assert status(installed, "/health") == 200
    assert status(installed, "/v1/models", key) == 200

    made = installed.run("keys", "add", "team-a", "--services", "chat", "--expires", "90d", "--json").stdout
    scoped = json.loads(made)
    assert (scoped["name"], scoped["services"]) == ("team-a", ["chat"])
    assert status(installed, "/v1/chat/completions", scoped["key"], {"messages": []}) == 200
    assert status(installed, "/v1/embeddings", scoped["key"], {"model": "embedding", "input": "a"}) == 403

    new = installed.run("keys", "rotate", "me", "--grace", "1h").stdout.strip()
    assert [status(installed, "/v1/models", k) for k in (key, new)] == [200, 200]
    newest = installed.run("keys", "rotate", "me").stdout.strip()
    assert [status(installed, "/v1/models", k) for k in (key, new, newest)] == [401, 401, 200]

    installed.run("up")
    assert status(installed, "/v1/models", newest) == 200
    assert "no key is left" not in installed.run("keys", "revoke", "me").stderr
    assert "no key is left" in installed.run("keys", "revoke", "team-a").stderr
    assert [status(installed, "/v1/models", k) for k in (newest, scoped["key"], None)] == [401, 401, 401]
    installed.run("up")
    assert status(installed, "/v1/models") == 401
    listed = json.loads(installed.run("keys", "list", "--json").stdout)
    assert {k["name"]: k["state"] for k in listed} == {"me": "revoked", "team-a": "revoked"}

    installed.run("keys", "reset", "--yes")
    assert status(installed, "/v1/models") == 200
    assert installed.pids() == before


def test_limits_of_a_key_act_when_the_command_returns(installed: Installed) -> None:
    services(installed)
    installed.run("up")
    before = installed.pids()
    limits = ("--requests-per-minute", "100", "--concurrent-requests", "1", "--max-body-mib", "0.5")
    few = installed.run("keys", "add", "few", *limits).stdout.strip()
    free = installed.run("keys", "add", "free").stdout.strip()
    row = next(line for line in installed.run("keys", "list").stdout.splitlines() if line.startswith("few "))
    assert row.split()[4:8] == ["100", "1", "0.5", "MiB"]
    listed = {k["name"]: k for k in json.loads(installed.run("keys", "list", "--json").stdout)}
    assert (listed["few"]["concurrent_requests"], listed["few"]["max_body_mib"]) == (1, 0.5)
    assert (listed["free"]["concurrent_requests"], listed["free"]["max_body_mib"]) == (None, None)

    def ask(key: str, **more: object) -> int:
        return status(installed, "/v1/chat/completions", key, {"messages": [], **more})

    large = "x" * 2**19
    assert [ask(few, x=large), ask(free, x=large)] == [413, 200]
    slow = {"messages": [], "stream": True, "fake": {"chunks": 600, "seconds": 0.1}}
    url, header = f"http://127.0.0.1:{installed.port}/v1/chat/completions", {"x-api-key": few}
    with httpx.stream("POST", url, json=slow, headers=header, timeout=60) as stream:
        pieces = stream.iter_bytes()
        assert next(pieces)
        assert [ask(few), ask(free)] == [429, 200]
        newer = installed.run("keys", "rotate", "few", "--grace", "1h").stdout.strip()
        assert [ask(few), ask(newer)] == [429, 429]
        services(installed, ", limits: {concurrent_requests: 7}")
        installed.run("up")
        assert [ask(few), ask(newer), ask(free)] == [429, 429, 200]
        assert next(pieces)
    wait_for(lambda: ask(few) == 200)
    assert installed.pids() == before
    assert {s["name"]: s["state"] for s in installed.status()["services"]} == {"chat": "ready", "embedding": "ready"}


def test_keys_that_are_made_at_once_are_all_shown(installed: Installed) -> None:
    installed.write(f"chat: {{model: {installed.model()}}}")
    installed.run("up")
    making = [installed.popen("keys", "add", f"team-{n}") for n in range(6)]
    made = []
    for process in making:
        said, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
        made.append(said.strip())
    url = f"http://127.0.0.1:{installed.port}/v1/models"
    for key in made:
        assert httpx.get(url, headers={"Authorization": f"Bearer {key}"}, timeout=300).status_code == 200


def test_keys_survive_a_restart_of_everything(installed: Installed) -> None:
    services(installed)
    key = installed.run("keys", "add", "me").stdout.strip()
    installed.run("up")
    installed.run("down")
    installed.run("start")
    assert [status(installed, "/v1/models", k) for k in (key, None)] == [200, 401]


def test_check_uses_the_key_of_the_environment(installed: Installed, monkeypatch: pytest.MonkeyPatch) -> None:
    services(installed)
    installed.run("up")
    key = installed.run("keys", "add", "me").stdout.strip()
    without = json.loads(installed.run("check", "chat", "--json", ok=1).stdout)
    assert all("answered 401" in c["detail"] for c in without["checks"])
    monkeypatch.setenv("LLMHOST_API_KEY", key)
    having = json.loads(installed.run("check", "chat", "--json", ok=1).stdout)
    assert not any("answered 401" in c["detail"] for c in having["checks"])


def test_a_key_is_nowhere_on_disk_in_no_process_and_in_no_output(installed: Installed) -> None:
    services(installed)
    installed.run("up")
    keys = [installed.run("keys", "add", name).stdout.strip() for name in ("one", "two")]
    keys.append(installed.run("keys", "rotate", "one", "--grace", "1h").stdout.strip())
    for key in keys:
        status(installed, "/v1/chat/completions", key, {"messages": []})
    text = installed.home.config_file.read_text()
    installed.home.config_file.write_text(text.replace("chat: {", "chat: {served_as: another, "))
    digests = [k["digest"] for k in json.loads(installed.home.keys_file.read_text())["keys"]]
    assert len(digests) == 3
    said = "".join(
        installed.run(*words, ok=ok).stdout
        for words, ok in (
            (("config", "show"), 0), (("plan", "--json"), 0), (("render", "--diff"), 0), (("keys", "list"), 0),
            (("keys", "list", "--json"), 0), (("status", "--json"), 0), (("logs", "-n", "1000"), 0),
        )
    )  # fmt: skip
    said += subprocess.run(["ps", "axwwe"], capture_output=True, text=True, check=True).stdout
    assert not [secret for secret in (*keys, *digests) if secret in said]
    for path in installed.home.root.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert not [key for key in keys if key.encode() in content], path
            if any(digest.encode() in content for digest in digests):
                assert path == installed.home.keys_file or path.parent == installed.home.gateway_conf


def test_files_and_directories_are_private(installed: Installed) -> None:
    services(installed)
    os.umask(0o022)
    installed.run("up")
    installed.run("keys", "add", "me")
    private = (installed.home.conf, installed.home.run, installed.home.logs)
    for folder in private:
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    files = [installed.home.keys_file, *(p for d in (installed.home.conf, installed.home.run) for p in d.rglob("*"))]
    for path in files:
        if path.is_file():
            assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path


def test_a_revoked_key_does_not_come_back_with_an_up_that_began_before(installed: Installed) -> None:
    services(installed)
    installed.run("up")
    key = installed.run("keys", "add", "me").stdout.strip()
    text = installed.home.config_file.read_text()
    installed.home.config_file.write_text(text.replace("chat: {", "chat: {env: {FAKE_ENGINE: '--start-delay 1'}, "))
    with installed.popen("up") as process:
        installed.run("keys", "revoke", "me")
        process.communicate(timeout=300)
    assert process.returncode == 0
    assert status(installed, "/v1/models", key) == 401


def test_a_key_in_the_middle_of_a_change_leaves_the_routes_where_they_are(installed: Installed) -> None:
    """They have been switched already, while the old engine still finishes a stream."""
    installed.write(f"chat: {{model: {installed.model()}, served_as: gpt-4, stop_timeout: 600}}")
    installed.run("up")
    url = f"http://127.0.0.1:{installed.port}/v1/chat/completions"
    body = {"model": "gpt-4", "messages": [], "stream": True, "fake": {"chunks": 6000, "seconds": 0.1}}
    new: dict[str, object] = {"model": "new", "messages": []}
    with httpx.Client(timeout=300) as client, client.stream("POST", url, json=body) as stream:
        installed.write(f"assistant: {{model: {installed.model()}, served_as: [gpt-4, new]}}")
        with installed.popen("up") as process:
            wait_for(lambda: status(installed, "/v1/chat/completions", None, new) == 200)
            key = installed.run("keys", "add", "me").stdout.strip()
            assert status(installed, "/v1/chat/completions", key, new) == 200
            assert status(installed, "/v1/models") == 401
            assert process.poll() is None
            assert installed.home.next_plan_file.exists()
            stream.close()
            _, said = process.communicate(timeout=300)
    assert process.returncode == 0, said
    assert status(installed, "/v1/chat/completions", key, new) == 200
    assert not installed.home.next_plan_file.exists()


def test_a_key_while_a_command_waits_for_the_gateway_to_take_up_its_files(
    installed: Installed, monkeypatch: pytest.MonkeyPatch
) -> None:
    services(installed)
    installed.run("up")
    made: list[str] = []

    def after_another_key(socket: Path) -> GatewayState:
        if not made:
            made.append(installed.run("keys", "add", "me").stdout)
        return read_gateway(socket)

    monkeypatch.setattr(balancing, "read_gateway", after_another_key)
    balancing.await_files(installed.home, 300)
    assert made


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (("add", "me"), "there is a key me already"),
        (("add", "a b"), "'a b' cannot be the name of a key"),
        (("add", "b", "--services", "chat,nobody"), "there is no service nobody"),
        (("add", "b", "--services", ","), "there is no service"),
        (("revoke", "nobody"), "there is no key nobody"),
        (("rotate", "nobody"), "there is no key nobody"),
    ],
)
def test_what_cannot_be_done(installed: Installed, words: tuple[str, ...], error: str) -> None:
    services(installed)
    installed.run("keys", "add", "me")
    before = installed.home.keys_file.read_text()
    said, _ = installed.refused("keys", *words)
    assert error in said
    assert installed.home.keys_file.read_text() == before


@pytest.mark.parametrize(
    "option",
    [
        ("--expires", "0d"),
        ("--expires", "soon"),
        ("--requests-per-minute", "0"),
        ("--requests-per-minute", "-1"),
        ("--concurrent-requests", "0"),
        ("--max-body-mib", "0"),
        ("--max-body-mib", "-1"),
        ("--max-body-mib", "nan"),
    ],
)
def test_options_that_make_no_sense(installed: Installed, option: tuple[str, str]) -> None:
    services(installed)
    assert "Invalid value" in installed.run("keys", "add", "me", *option, ok=2).stderr
    assert not installed.home.keys_file.exists()


def test_a_damaged_list_of_keys_opens_nothing(installed: Installed) -> None:
    services(installed)
    installed.run("up")
    installed.run("keys", "add", "me")
    installed.home.keys_file.write_text("{")
    for words in (("up",), ("keys", "list"), ("keys", "add", "b")):
        error, hint = installed.refused(*words)
        assert "keys.json" in error
        assert "reset" in hint
    assert status(installed, "/v1/models") == 401
    installed.run("keys", "reset", "--yes")
    assert status(installed, "/v1/models") == 200


# --- which address --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["0.0.0.0", "'::'"])
def test_an_address_of_the_network_needs_keys(installed: Installed, host: str) -> None:
    services(installed, f", host: {host}")
    error, hint = installed.refused("up")
    assert "gateway.host" in error
    assert "there are no API keys" in error
    assert "llmhost keys add" in hint
    assert not installed.home.supervisord_conf.exists()
    key = installed.run("keys", "add", "me").stdout.strip()
    installed.run("up")
    assert [status(installed, "/v1/models", k) for k in (None, key)] == [401, 200]
    error, _ = installed.refused("keys", "reset", "--yes")
    assert "without keys everybody" in error
    assert status(installed, "/v1/models") == 401


def test_whoever_insists_gets_an_open_gateway(installed: Installed) -> None:
    services(installed, ", host: 0.0.0.0")
    installed.run("up", "--insecure")
    assert status(installed, "/v1/models") == 200
    installed.refused("up")
    services(installed, ", host: 0.0.0.0, insecure: true")
    installed.run("up")
    key = installed.run("keys", "add", "me").stdout.strip()
    assert [status(installed, "/v1/models", k) for k in (None, key)] == [401, 200]


@pytest.mark.parametrize("host", ["'::1'", "localhost"])
def test_addresses_of_this_machine_need_none(installed: Installed, host: str) -> None:
    services(installed, f", host: {host}")
    installed.run("up")
    url = json.loads(installed.run("status", "--json").stdout)["gateway"]["url"]
    assert httpx.get(f"{url}/v1/models", timeout=300).status_code == 200
