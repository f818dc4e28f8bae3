"""`llmhost doctor` and `facts` on a home; what a former life leaves is in test_commands."""

from __future__ import annotations

import json
import resource
import signal
import socket
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from llmhost.env.manifest import Manifest, Spec, write_manifest
from llmhost.homedir import claim
from llmhost.paths import Home
from llmhost.probe.facts_file import facts_from_json
from llmhost.supervise import units
from tests.integration.workflow.conftest import TESTS, Installed, wait_for

pytestmark = pytest.mark.integration


def three(installed: Installed) -> None:
    installed.write(f"chat: {{model: {installed.model()}, kind: chat}}")


def checks(installed: Installed, ok: int = 0) -> dict[str, Any]:
    """The last check of each name."""
    report = json.loads(installed.run("doctor", "--json", ok=ok).stdout)
    assert report["ok"] is (ok == 0)
    return {check["name"]: check for check in report["checks"]}


def site_packages(installed: Installed) -> Path:
    (found,) = installed.home.engine_dir("default").glob("build/lib/python3*/site-packages")
    return found


def test_facts(installed: Installed) -> None:
    (installed.home.models / "owner/name").mkdir(parents=True)
    (installed.home.models / "owner/name/config.json").write_text("{}")
    facts = facts_from_json(installed.run("facts", "--json").stdout, "facts")
    assert facts.models == {"owner/name": 2}
    assert "pytest" in facts.interpreters[0].packages
    assert facts.uv is not None
    shown = installed.run("facts").stdout
    assert facts.system in shown
    assert facts.interpreters[0].path in shown
    installed.home.config_file.write_text("models_dir: [1]")
    done = installed.run("facts")
    assert "models_dir" in done.stderr
    assert "owner/name" in done.stdout


def test_a_healthy_home_and_one_with_nothing(installed: Installed, place: Path) -> None:
    three(installed)
    found = checks(installed)
    assert {name for name, check in found.items() if check["status"] == "fail"} == set()
    assert found["engine"]["message"] == "default: vLLM 0.32.0 on cpu, as it was verified"
    assert found["plan"]["message"] == "all services fit"
    empty = Installed(Home(place / "empty"), 1)
    assert checks(empty)["engine"]["status"] == "warn"
    assert not empty.home.root.exists()


def test_an_engine_that_setup_would_refuse(place: Path) -> None:
    """The same words as those of `setup`, which ends before it has made anything."""
    home = Installed(Home(place / "fresh"), 1)
    home.home.root.mkdir()
    for engine, words in (
        ("{vllm: 0.33.0, device: cuda}", "no NVIDIA driver"),
        ("{python: '3.8'}", "engine.python is 3.8"),
        ("{python: /usr/bin/nopython}", "/usr/bin/nopython cannot be used"),
        (f"{{kind: existing, python: {sys.executable}}}", "has no vLLM"),
    ):
        home.home.config_file.write_text(f"engine: {engine}")
        found = checks(home, ok=1)["engine"]
        assert words in found["message"]
        error, hint = home.refused("setup")
        assert (error, hint) == (f"error: {found['message']}", f"hint: {found['remedy']}")
    home.home.config_file.write_text("engine: {device: cpu}")
    found = checks(home)["engine"]
    assert (found["status"], found["message"]) == (
        "warn", "the engine default is not built yet: vLLM 0.32.0 for cpu"
    )  # fmt: skip


@pytest.fixture
def old_driver(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two GPUs under driver 535 (a stand-in for its library), and a CUDA toolkit 12.8 that compiles nothing."""
    library = place / "driver/libnvidia-ml.so.1"
    library.parent.mkdir()
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, TESTS / "fakes/nvml.c"], check=True, timeout=60)
    cuda = place / "cuda-12.8"
    for name in ("bin/nvcc", "include/cuda_runtime.h", "lib64/libcudart.so"):
        (cuda / name).parent.mkdir(parents=True)
        (cuda / name).write_text("#!/bin/sh\necho 'Cuda compilation tools, release 12.8, V12.8.93'\n")
    (cuda / "bin/nvcc").chmod(0o755)
    more = {"LD_LIBRARY_PATH": library.parent, "LH_NVML": "old", "CUDA_HOME": cuda, "CXX": "g++", "MAX_JOBS": "1"}
    for name, value in more.items():
        monkeypatch.setenv(name, str(value))


NEWEST = (
    "vLLM 0.19.1 is not the newest: vLLM 0.33.0 (CUDA 13.0) needs driver 580.65.06 or newer, this machine has"
    " 535.104.05"
)


@pytest.mark.usefixtures("old_driver")
def test_what_an_old_driver_costs_is_told_before_and_after(place: Path) -> None:
    fresh = Installed(Home(place / "fresh"), 1)
    found = checks(fresh)
    assert found["engine"]["message"] == "the engine default is not built yet: vLLM 0.19.1 for cuda"
    assert (found["release"]["status"], found["release"]["message"]) == ("ok", NEWEST)
    plan = json.loads(fresh.run("setup", "--flash-attn", "--dry-run", "--json").stdout)
    assert plan["remarks"] == [NEWEST]
    assert plan["flash_attn"][0] == "the engine is not built yet: vLLM 0.19.1 for cuda comes first"
    assert f"toolkit: {place}/cuda-12.8 (CUDA 12.8)" in plan["flash_attn"]
    assert "jobs: 1, as MAX_JOBS says" in fresh.run("setup", "--flash-attn", "--dry-run").stdout
    assert fresh.run("setup", "--dry-run").stdout.splitlines()[-1] == NEWEST
    assert not fresh.home.engines.exists()

    claim(fresh.home)
    directory = fresh.home.engine_dir("default")
    python = directory / "b/bin/python"
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    spec, packages = Spec("venv", "cuda", None, None), {"torch": "2.10.0+cu128", "vllm": "0.19.1"}
    write_manifest(directory, Manifest(spec, "b", "3.12.3", packages, {}, (), (), "", 1, device="cuda"))
    fresh.home.engine_lock.touch()
    assert json.loads(fresh.run("setup", "--json").stdout)["remarks"] == [NEWEST]
    report = json.loads(fresh.run("doctor", "--json", ok=1).stdout)  # there is no torch in that engine
    assert [check["message"] for check in report["checks"] if check["name"] == "release"] == [NEWEST]


def test_the_engine_is_not_what_was_verified(installed: Installed) -> None:
    folder = site_packages(installed)
    (folder.parents[2] / "pyvenv.cfg").write_text("home = /usr/bin\n")
    (folder / "torch-2.13.0+cpu.dist-info").rename(folder / "torch-2.14.0.dist-info")
    (folder / "tools-1.0.dist-info").mkdir()
    (folder / "tools-1.0.dist-info/RECORD").write_text("tools.pth,sha256=x,9\n")
    (folder / "tools.pth").write_text("import tools\n")
    (folder / "mine.pth").write_text("# a note\n/home/me/src\n")
    shown = installed.run("doctor").stdout
    assert "torch is 2.14.0, and was 2.13.0+cpu when the engine was verified" in shown
    assert "mine.pth belongs to no package, and brings in: /home/me/src" in shown
    assert "tools.pth" not in shown
    (folder / "vllm-0.32.0.dist-info").rmdir()
    assert "vllm is not installed any more" in installed.run("doctor", ok=1).stdout
    # The fake engine is no vLLM: that is what a look into it shows.
    deep = installed.run("doctor", "--deep", ok=1).stdout
    assert "cannot import vLLM" in deep


def test_models_that_are_missing(installed: Installed) -> None:
    installed.write("a: {model: 'hf:nobody/nothing'}")
    found = checks(installed)["models"]
    assert (found["status"], "those of a" in found["message"]) == ("warn", True)
    installed.write("a: {model: /no/such/model}")
    found = checks(installed, ok=1)["models"]
    assert found["status"] == "fail"
    assert "services.a.model" in found["message"]


def test_what_does_not_fit_and_a_port_that_is_taken(installed: Installed) -> None:
    installed.write(f"chat: {{model: {installed.model()}, args: {{max_model_lenght: 5}}}}")
    with closing(socket.create_server(("127.0.0.1", installed.port))):
        found = checks(installed, ok=1)
    assert "max_model_lenght" in found["plan"]["message"]
    assert f"port {installed.port} on 127.0.0.1 is in use" in found["ports"]["message"]


def test_a_configuration_that_is_wrong_does_not_hide_the_rest(installed: Installed) -> None:
    installed.home.config_file.write_text("servces: {}")
    found = checks(installed, ok=1)
    assert "servces" in found["config"]["message"]
    assert found["home"]["status"] == "ok"
    assert "plan" not in found


def test_a_supervisord_that_does_not_answer(installed: Installed) -> None:
    three(installed)
    installed.run("up")
    assert checks(installed)["supervisord"]["message"] == "running, and it answers (running)"
    pid = installed.pids()["supervisor"]
    subprocess.run(["kill", f"-{signal.SIGSTOP}", str(pid)], check=True)
    try:
        found = checks(installed, ok=1)["supervisord"]
    finally:
        subprocess.run(["kill", f"-{signal.SIGCONT}", str(pid)], check=True)
    assert "does not answer" in found["message"]
    assert wait_for(lambda: checks(installed)["supervisord"]["status"] == "ok")


def test_a_unit_that_is_not_current(installed: Installed, monkeypatch: pytest.MonkeyPatch, place: Path) -> None:
    from llmhost.doctor import _unit

    monkeypatch.setattr(units, "SYSTEM_UNITS", str(place))
    unit = place / "llmhost.service"
    unit.write_text(f'# home: "{installed.home.root}"\n# account: "root"\n[Unit]\n')
    assert "does not start with the machine" in _unit(installed.home, None).message
    (place / "multi-user.target.wants").mkdir()
    (place / "multi-user.target.wants/llmhost.service").symlink_to(unit)
    found = _unit(installed.home, None)
    assert found.status == "warn"
    assert f"{unit} is not what this llmhost and llmhost.yaml want" in found.message
    assert found.remedy == "`llmhost enable --name llmhost` writes it anew"


def test_up_refuses_early_what_cannot_start(installed: Installed) -> None:
    three(installed)
    done = subprocess.run(
        installed.command("up"), capture_output=True, text=True, timeout=300, check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (1000, 1000)),
    )  # fmt: skip
    assert done.returncode == 1
    assert "error: at most 1000 open files (ulimit -Hn); supervisord wants 4096" in done.stderr
    assert "`llmhost doctor` looks at everything" in done.stderr
    assert not installed.home.supervisor_socket.exists()
