"""Lock files: what is recorded, and what is refused."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from llmhost.config import Engine
from llmhost.env import lock
from llmhost.env.lock import read_lock, record_lock, require_agreement
from llmhost.env.pip_config import UvSettings
from llmhost.env.python import Package, Python
from llmhost.env.releases import read_releases
from llmhost.env.uv import Uv, UvFailure
from llmhost.errors import EngineError
from llmhost.facts import Device

HEAD = "# vllm: 0.32.0\n# device: cpu\n# python: {python}\ntorch==2.13.0\n"


@pytest.mark.parametrize("python", ["3.x", "3", "", "3.12.x"])
def test_a_python_that_is_no_version(tmp_path: Path, python: str) -> None:
    file = tmp_path / "engine.lock"
    file.write_text(HEAD.format(python=python))
    with pytest.raises(EngineError, match=r"engine\.lock is damaged: python: "):
        read_lock(file)


def test_no_text(tmp_path: Path) -> None:
    file = tmp_path / "engine.lock"
    file.write_bytes(HEAD.format(python="3.12").encode() + b"\xff\xfe")
    with pytest.raises(EngineError, match=r"engine\.lock is damaged: it is no text in UTF-8"):
        read_lock(file)


@pytest.mark.parametrize(
    ("engine", "device", "error"),
    [
        (Engine(), "cpu", ""),
        (Engine(device="cpu", vllm="0.32.0"), "cpu", ""),
        (Engine(vllm="0.28.0"), "cpu", "engine.vllm is 0.28.0, but .* has vLLM 0.32.0"),
        (Engine(device="cuda"), "cuda", "engine.device is cuda, but .* is of an engine for cpu"),
        (Engine(), "cuda", "engine.device is auto, which is cuda on this machine, but .* is of an engine for cpu"),
    ],
)
def test_what_llmhost_yaml_asks_for_is_not_overruled(
    tmp_path: Path, engine: Engine, device: Device, error: str
) -> None:
    file = tmp_path / "engine.lock"
    file.write_text(HEAD.format(python="3.12"))
    found = read_lock(file)
    if not error:
        require_agreement(found, engine, device)
        return
    with pytest.raises(EngineError, match=error) as raised:
        require_agreement(found, engine, device)
    assert "leave --locked out" in raised.value.hint


class _Log:
    def write(self, text: str) -> None:
        """Nobody reads it."""


class _PlainIndex:
    """A uv whose index has no CPU build of torch; asked for torch's own index it finds all."""

    settings = cast("UvSettings", type("Settings", (), {"no_index": False}))
    log = _Log()

    def run(self, arguments: Sequence[str], **_: Any) -> UvFailure | None:
        if "--torch-backend" not in arguments:
            return UvFailure(("Because there is no version of torch==2.13.0+cpu and you require it",), "")
        frozen = Path(arguments[2]).read_text().split()
        entries = (
            f'[[packages]]\nname = "{name}"\nwheels = [{{hashes = {{sha256 = "{name}00"}}}}]\n'
            for name in (line.partition("==")[0] for line in frozen)
        )
        Path(arguments[arguments.index("--output-file") + 1]).write_text("".join(entries))
        return None


def test_own_packages_with_hashes_also_where_the_index_has_no_torch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packages = {
        "torch": Package("2.13.0+cpu", "", own=True, indexed=True),
        "numpy": Package("2.3.5", "", own=False, indexed=True),
        "mine": Package("1.0", "", own=True),
    }
    monkeypatch.delenv("UV_TORCH_BACKEND", raising=False)
    monkeypatch.setattr(lock, "read_python", lambda path: Python(path, (3, 12, 1), True, packages))
    release = next(r for r in read_releases() if r.device == "cpu")
    uv = cast("Uv", _PlainIndex())
    made = record_lock(Path("python"), tmp_path, release, "3.12.1", uv, tmp_path / "engine.lock")
    assert (made.packages, made.hashed) == (("torch==2.13.0+cpu",), True)
