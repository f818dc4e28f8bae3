"""Parts of a bundle that are asked for by name and have nothing in them."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmhost.bundle import Wish, create_bundle
from llmhost.bundle.create import PARTS
from llmhost.config import Config, load
from llmhost.errors import BundleError
from llmhost.paths import Home
from tests.integration.bundle.test_bundle import BOX, create, names, small_engines
from tests.integration.env.conftest import home, own_configuration, progress, wheels, work
from tests.integration.env.recorder import Recorder

__all__ = ["home", "own_configuration", "progress", "small_engines", "wheels", "work"]
pytestmark = pytest.mark.integration

DEMO = {"engine": {"device": "cpu"}, "services": {"chat": {"model": "demo:chat"}}}


@pytest.mark.parametrize(
    ("part", "message", "hint"),
    [
        (
            "flash-attn",
            r"no flash-attention .*: engine\.flash_attn is not set",
            "write `flash_attn: true` under engine:",
        ),
        ("models", "no models in this bundle: no service has one of a hub", "name the llmhost.yaml of that machine"),
        (
            "caches",
            r"no compile caches .*: none of vLLM 0\.32\.0 for a machine without GPUs",
            "create the bundle there",
        ),
    ],
)
def test_nothing_but_an_llmhost_yaml(
    home: Home, work: Path, progress: Recorder, part: str, message: str, hint: str
) -> None:
    (work / "llmhost.yaml").write_text("engine: {device: cpu}\n")
    file = work / "llmhost.yaml"
    with pytest.raises(BundleError, match=message) as raised:
        create_bundle(home, BOX, load(file), file, Wish(work / "b", (part,)), progress)  # type: ignore[arg-type]
    assert hint in raised.value.hint
    assert not (work / "b").exists()


def test_models_that_never_travel(home: Home, work: Path, progress: Recorder) -> None:
    with pytest.raises(BundleError, match="there are no models in this bundle"):
        create(home, work / "b", progress, config=Config.model_validate(DEMO), parts=("models",))


def test_every_empty_part_is_named(home: Home, work: Path, progress: Recorder) -> None:
    with pytest.raises(BundleError, match=r"no flash-attention in .*; there are no models in .*; there are no compile"):
        create(home, work / "b", progress, parts=("caches", "models", "flash-attn"))


def test_a_part_that_is_empty_beside_others_is_told(home: Home, work: Path, progress: Recorder) -> None:
    bundle = create(home, work / "b", progress, parts=("engine", "flash-attn"))
    assert "engine.lock" in names(bundle)
    assert "there is no flash-attention in this bundle: engine.flash_attn is not set" in progress.notes


@pytest.mark.parametrize("left_out", [(), ("models",)])
def test_who_asks_for_everything_hears_of_nothing(
    home: Home, work: Path, progress: Recorder, monkeypatch: pytest.MonkeyPatch, left_out: tuple[str, ...]
) -> None:
    monkeypatch.setattr("llmhost.bundle.create._llmhost", lambda *_: None)
    create(home, work / "b", progress, parts=tuple(part for part in PARTS if part not in left_out))
    assert not [note for note in progress.notes if "in this bundle" in note]
