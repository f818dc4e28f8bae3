"""What Ray must be before a model is started through it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from llmhost import config, spanning
from llmhost.errors import EngineError
from llmhost.paths import Home
from tests.samples import machine

SERVICES = config.parse("services: {chat: {model: m, gpus: 2, executor: ray}}").services


def engine_with(place: Path, version: str | None) -> Path:
    """An interpreter, and Ray beside it as pip would have installed it."""
    python = place / "bin/python"
    python.parent.mkdir()
    python.touch()
    if version is not None:
        (python.parent / "ray").touch()
        (place / f"lib/python3.12/site-packages/ray-{version}.dist-info").mkdir(parents=True)
    return python


@pytest.mark.parametrize(
    ("version", "error"),
    [
        (None, "services.chat.executor: the engine default has no Ray"),
        ("2.51.1", "services.chat.executor: the engine default has Ray 2.51.1, which knows no tokens"),
        ("1.99.0", "services.chat.executor: the engine default has Ray 1.99.0, which knows no tokens"),
    ],
)
def test_an_engine_whose_ray_knows_no_tokens_is_refused(tmp_path: Path, version: str | None, error: str) -> None:
    python = str(engine_with(tmp_path, version))
    with pytest.raises(EngineError) as e:
        spanning.prepare(Home(Path("/h")), SERVICES, replace(machine().engine, python=python), "secret")
    assert e.value.message == error
    assert f"uv pip install --python {python} ray==2.60.0" in e.value.hint


@pytest.mark.parametrize("version", ["2.52.0", "2.100.3", "3.0.0"])
def test_a_newer_ray_finds_its_token(tmp_path: Path, version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spanning, "_require_short", lambda _: None)
    home = Home(tmp_path / "h")
    home.ray_token_file.parent.mkdir(parents=True)
    python = str(engine_with(tmp_path, version))
    spanning.prepare(home, SERVICES, replace(machine().engine, python=python), "secret")
    assert home.ray_token_file.stat().st_mode & 0o777 == 0o600
