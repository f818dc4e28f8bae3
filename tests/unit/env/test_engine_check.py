"""Which modules are compiled ahead of the import check."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from llmhost.env import engine_check


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("import a", ["a"]),
        ("import a.b as c, d  # why", ["a.b", "d"]),
        ("from a import b", ["a", "a.b"]),
        ("from a.b import c as d, E", ["a.b", "a.b.c", "a.b.E"]),
        ("from a import (\n    b,\n    c as x,\n)", ["a", "a.b", "a.c"]),
        ("from . import b", ["p.q", "p.q.b"]),
        ("from .a import b", ["p.q.a", "p.q.a.b"]),
        ("from ..a import b", ["p.a", "p.a.b"]),
        ("from a import *", ["a"]),
        ("if TYPE_CHECKING:\n    import a\ndef f():\n    import b", []),
        ("x = 'import a'\nimportant = 1", []),
    ],
)
def test_imports(text: str, names: list[str]) -> None:
    assert list(engine_check.imports(text, "p.q")) == names


def test_follows_imports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {
        "a/__init__.py": "",
        "a/b.py": "from . import c\nimport torch.x\nimport broken, os, missing",
        "a/c.py": "from a.b import thing",
        "a/unused.py": "",
        "torch/__init__.py": "raise SystemExit('imported')",
        "torch/x.py": "",
        "broken.py": "def (",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(engine_check, "SITE_PACKAGES", str(tmp_path))
    monkeypatch.setattr(sys, "pycache_prefix", None)
    engine_check.compile_ahead(("a.b",))
    compiled = {path.name.partition(".")[0] for path in tmp_path.rglob("*.pyc") if path.parent.parent.name == "a"}
    assert compiled == {"__init__", "b", "c"}
    assert len(list(tmp_path.glob("torch/__pycache__/*.pyc"))) == 2
