"""Which interpreter, platform and packages a bundle is for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from llmhost.bundle.resolve import Pin, missing, read_pins
from llmhost.bundle.target import make_target, release_from_json, release_to_json
from llmhost.config import Engine
from llmhost.errors import BundleError, EngineError
from llmhost.facts import Interpreter, MachineFacts
from llmhost.probe.facts_file import facts_from_json

FIXTURE = Path(__file__).parents[2] / "fixtures/bundle/gpu-host.json"


@pytest.fixture
def host() -> MachineFacts:
    """One H200, Python 3.12 with torch 2.11, no network."""
    return facts_from_json(FIXTURE.read_text(encoding="utf-8"), str(FIXTURE))


def python(*version: int) -> Interpreter:
    return Interpreter(f"/usr/bin/python{version[0]}.{version[1]}", version, headers=False)


def test_the_gpu_host(host: MachineFacts) -> None:
    target = make_target(host, Engine(vllm="0.26.0", python="3.12", system_site_packages=True))
    assert (target.release.requirement, target.release.device) == ("vllm==0.26.0", "cuda")
    assert target.uv_platform == "x86_64-manylinux_2_39"
    assert target.pip_platforms[0] == "manylinux_2_39_x86_64"
    assert {"manylinux_2_17_x86_64", "manylinux2014_x86_64", "linux_x86_64"} <= set(target.pip_platforms)
    assert target.capabilities == ((9, 0),)
    assert target.there["torch"] == "2.11.0"
    assert target.describe()["python"] == "3.12"
    assert release_from_json(release_to_json(target.release)) == target.release


def test_packages_count_as_there_only_below_an_engine_that_sees_them(host: MachineFacts) -> None:
    assert make_target(host, Engine()).there == {}


def test_a_platform_older_than_all_that_uv_knows(host: MachineFacts) -> None:
    target = make_target(replace(host, glibc=(2, 41)), Engine(device="cpu"))
    assert target.uv_platform == "x86_64-manylinux_2_40"
    assert make_target(replace(host, glibc=(2, 30)), Engine(device="cpu")).uv_platform == "x86_64-manylinux_2_28"


def test_unknown_capabilities_are_not_guessed(host: MachineFacts) -> None:
    gpus = (*host.gpus, replace(host.gpus[0], index=1, capability=None))
    assert make_target(replace(host, gpus=gpus), Engine()).capabilities == ()


def test_too_old_a_python(host: MachineFacts) -> None:
    with pytest.raises(BundleError, match=r"llmhost needs Python 3.11 or newer, and that machine has 3\.10, 3\.9"):
        make_target(replace(host, interpreters=(python(3, 9, 2), python(3, 10, 1))), Engine())


def test_the_engine_takes_an_interpreter_that_its_release_runs_on(host: MachineFacts) -> None:
    facts = replace(host, interpreters=(python(3, 14, 0), python(3, 12, 1)))
    target = make_target(facts, Engine(vllm="0.26.0"))
    assert (target.python.version, target.engine_python.version) == ((3, 14, 0), (3, 12, 1))
    with pytest.raises(BundleError, match=r"asked for: 3\.13.*and that machine has 3\.14 .*, 3\.12 "):
        make_target(facts, Engine(vllm="0.26.0", python="3.13"))


def test_a_machine_without_a_wheel(host: MachineFacts) -> None:
    with pytest.raises(EngineError, match="on aarch64 machines"):
        make_target(replace(host, machine="aarch64"), Engine(device="cpu"))


def test_a_machine_without_glibc(host: MachineFacts) -> None:
    with pytest.raises(BundleError, match="has no glibc"):
        make_target(replace(host, glibc=()), Engine())


def test_engines_of_other_kinds(host: MachineFacts) -> None:
    with pytest.raises(BundleError, match=r"engine\.kind is conda"):
        make_target(host, Engine(kind="conda"))


def test_what_uv_chose_and_what_of_it_is_there() -> None:
    pins = read_pins(
        "numpy==2.3.5\n    # from https://x/simple\ntorch==2.11.0+cpu\n    # from https://y/cpu\nsix==1.0\n"
    )
    assert pins[0] == Pin("numpy", "2.3.5", "https://x/simple")
    assert pins[1] == Pin("torch", "2.11.0+cpu", "https://y/cpu")
    assert [p.name for p in missing(pins, {"torch": "2.11.0+cu130", "numpy": "2.5.2"})] == ["numpy", "six"]


def test_packages_of_an_interpreter_that_nobody_named(host: MachineFacts) -> None:
    with pytest.raises(BundleError, match="does not say the packages of which interpreter") as raised:
        make_target(host, Engine(system_site_packages=True))
    assert "engine.python: /opt/torch/.venv/bin/python3" in raised.value.hint


def test_another_torch_below_the_engine(host: MachineFacts) -> None:
    engine = Engine(vllm="0.33.0", python="3.12", system_site_packages=True)
    with pytest.raises(BundleError, match=r"has torch 2\.11\.0, and vLLM 0\.33\.0 is made for torch 2\.14\.0"):
        make_target(host, engine)
    bare = replace(host, interpreters=(python(3, 12, 3),))
    with pytest.raises(BundleError, match="has no torch, and vLLM"):
        make_target(bare, engine.model_copy(update={"vllm": "0.26.0"}))
