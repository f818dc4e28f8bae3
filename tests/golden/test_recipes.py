"""What the recipes in examples/ render to on a machine with two GPUs. Renew it with LLMHOST_GOLDEN=write, and read it.

Only what a recipe decides: command lines, what the guards know, and what the gateway does with requests. Programs
and models that cannot be had here (TEI, SGLang, LightLLM, ollama, llama.cpp) are facts that the test makes up; the
other recipes run for real in tests/e2e/test_recipes.py.
"""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llmhost import config
from llmhost.config import Config
from llmhost.facts import ForeignFacts, Gpu, PortFacts
from llmhost.plan.build import make_plan
from llmhost.plan.machine import Machine
from llmhost.render import render
from tests.samples import GIB, machine, model

HERE = Path(__file__).parent / "recipes"
EXAMPLES = Path(__file__).parents[2] / "examples"
RECIPES = sorted(path.parent.name for path in EXAMPLES.glob("*/llmhost.yaml"))
GPUS = tuple(Gpu(i, "NVIDIA A100", 80 * GIB, 79 * GIB, (8, 0)) for i in range(2))


def _machine(wanted: Config) -> Machine:
    """Two GPUs unless the recipe is for the CPU, every program in its place, ports from 20000 on."""
    plain = machine()
    device = "cpu" if wanted.engine.device == "cpu" else "cuda"
    foreign = {name: ForeignFacts(*_places(wanted, name)) for name, s in wanted.services.items() if s.is_foreign}
    return replace(
        plain,
        engine=replace(plain.engine, device=device, flags={**plain.engine.flags, **_flags(wanted)}),
        gpus=GPUS if device == "cuda" else (),
        foreign=foreign,
        ports=PortFacts(free=tuple(range(20000, 20050))),
    )


def _flags(wanted: Config) -> dict[str, Any]:
    """Those of vLLM that recipes write; whether the real one has them is for the test that runs it."""
    known = machine().engine.flags["max_model_len"]
    names = {name for s in wanted.services.values() for name in s.args} - {"enforce_eager"}
    return {name: replace(known, name=name) for name in names}


def _places(wanted: Config, name: str) -> tuple[str, str, str]:
    """Program, directory of programs, and model of a service."""
    service = wanted.services[name]
    written = service.environment
    word = service.command[0]
    if written is None:
        return f"/usr/local/bin/{word}", "", _model_dir(service.model_dir)
    shared = wanted.environments[written.shared] if written.shared else written
    place = shared.interpreter or f"/srv/llmhost/environments/{written.shared or name}/bin/python"
    programs = str(Path(place).parent)
    return f"{programs}/{word}", programs, _model_dir(service.model_dir)


def _model_dir(written: str | None) -> str:
    return f"/srv/llmhost/models/{written.rpartition(':')[2]}" if written else ""


def _rendered(name: str) -> dict[str, str]:
    wanted = config.load(EXAMPLES / name / "llmhost.yaml")
    models = {n: model() for n, s in wanted.services.items() if not s.is_foreign}
    files = {f.path: f.text for f in render(make_plan(wanted, _machine(wanted), models))}
    guards = {path: text for path, text in files.items() if path.startswith("conf/guard/") and '"foreign"' in text}
    return {**guards, "commands.txt": _commands(files), "gateway.txt": _gateway(files)}


def _commands(files: dict[str, str]) -> str:
    """The command line of each engine, as supervisord.conf shows it behind the guard."""
    lines = (line for line in files["conf/supervisord.conf"].splitlines() if line.startswith("command="))
    return "".join(f"{line.partition(' -- ')[2]}\n" for line in lines if "/conf/guard/" in line)


def _gateway(files: dict[str, str]) -> str:
    """What the gateway does for each service: how it looks at it, what it renames on the way."""
    clusters = {c["name"]: c for c in json.loads(files["conf/gateway/cds.json"])["resources"] if "health_checks" in c}
    lines = [f"{name}: looked at by {_looks(cluster)}\n" for name, cluster in clusters.items()]
    lines += [
        f"{name}: gets another model name\n" for name, cluster in clusters.items() if "lua" in json.dumps(cluster)
    ]
    return "".join((*lines, *_renamed_paths(files)))


def _looks(cluster: dict[str, Any]) -> str:
    (check,) = cluster["health_checks"]
    return f"GET {check['http_health_check']['path']}" if "http_health_check" in check else "connecting"


def _renamed_paths(files: dict[str, str]) -> dict[str, None]:
    resources = json.loads(files["conf/gateway/rds.json"])["resources"]
    routes = [route for r in resources for host in r["virtual_hosts"] for route in host["routes"]]
    renamed = (route for route in routes if "prefix_rewrite" in route.get("route", {}))
    return dict.fromkeys(
        f"{r['route']['cluster']}: {r['match']['safe_regex']['regex']} becomes {r['route']['prefix_rewrite']}\n"
        for r in renamed
    )


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe(name: str) -> None:
    files, folder = _rendered(name), HERE / name
    if os.environ.get("LLMHOST_GOLDEN") == "write":
        for stale in folder.rglob("*"):
            if stale.is_file():
                stale.unlink()
        for path, text in files.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(text, encoding="utf-8")
    expected = {str(p.relative_to(folder)): p.read_text(encoding="utf-8") for p in folder.rglob("*") if p.is_file()}
    assert files == expected


def test_no_recipe_was_forgotten() -> None:
    assert {path.name for path in HERE.iterdir()} == set(RECIPES)


@pytest.mark.parametrize("name", RECIPES)
def test_no_engine_listens_for_others(name: str) -> None:
    """Only the gateway has the keys, so whatever stands behind it is on a unix socket or on 127.0.0.1."""
    for path, text in _rendered(name).items():
        assert "0.0.0.0" not in text, path
        if path.startswith("conf/guard/"):
            spec = json.loads(text)
            started_by = "".join(script.read_text() for script in (EXAMPLES / name).glob("*.py"))
            told = _rendered(name)["commands.txt"] + json.dumps(spec["env"]) + started_by
            assert spec["socket"].endswith(".sock") or "127.0.0.1" in told, path


@pytest.mark.parametrize("name", RECIPES)
def test_the_files_that_a_recipe_names_lie_beside_it(name: str) -> None:
    wanted = config.load(EXAMPLES / name / "llmhost.yaml")
    environments = [*wanted.environments.values(), *(s.environment for s in wanted.services.values() if s.environment)]
    named = {e.constraints for e in environments if isinstance(e.constraints, str)}
    words = (word for s in wanted.services.values() for word in s.command)
    named |= {word.removeprefix("{home}/") for word in words if word.startswith("{home}/")}
    there = {path.name for path in (EXAMPLES / name).iterdir() if path.is_file()}
    assert named == there - {"llmhost.yaml"}
