"""Finding the unit of a home among files that others wrote, too."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmhost.paths import Home
from llmhost.supervise import units
from llmhost.supervise.units import find_unit


def write(folder: Path, name: str, home: str, linger: bool = False) -> None:
    head = f'# Written by hand: "x"\n# home: "{home}"\n# account: "alice"\n# linger: {str(linger).lower()}\n[Unit]\n'
    (folder / name).write_text(head)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(units, "SYSTEM_UNITS", str(tmp_path))
    monkeypatch.setattr(units, "LINGER", str(tmp_path / "linger"))
    return tmp_path


def test_the_unit_of_this_home_is_found_by_what_it_says(folder: Path) -> None:
    home = Home(folder / "h")
    assert find_unit(home) is None
    write(folder, "llmhost.service", "/somewhere/else")
    (folder / "llmhost-broken.service").write_text("# home: {\n")
    (folder / "other.service").write_text(f'# home: "{home.root}"\n')
    assert find_unit(home) is None
    write(folder, "llmhost-two.service", str(home.root))
    found = find_unit(home)
    assert found is not None
    assert (found.name, found.scope, found.account, found.enabled, found.at_boot) == (
        "llmhost-two.service", "system", "alice", False, False,
    )  # fmt: skip


def test_enabled_is_what_is_linked(folder: Path) -> None:
    home = Home(folder / "h")
    write(folder, "llmhost.service", str(home.root))
    (folder / "multi-user.target.wants").mkdir()
    (folder / "multi-user.target.wants/llmhost.service").symlink_to("../llmhost.service")
    found = find_unit(home)
    assert found is not None
    assert found.at_boot
    assert found.to_dict() == {"unit": "llmhost.service", "scope": "system", "account": "alice", "at_boot": True}
    of_a_user = found._replace(scope="user")
    assert not of_a_user.at_boot
    (folder / "linger").mkdir()
    (folder / "linger/alice").touch()
    assert of_a_user.at_boot
