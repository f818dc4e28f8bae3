"""Writing: what would change is known first, each file is replaced whole, strangers' directories are left alone."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from llmhost import writer
from llmhost.errors import HomeError
from llmhost.files import RenderedFile
from llmhost.homedir import claim
from llmhost.paths import Home


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


def test_a_first_write_is_all_new_and_a_second_changes_nothing(home: Home) -> None:
    files = [RenderedFile("conf/a", "1\n"), RenderedFile("conf/sub/b", "2\n", mode=0o644)]
    first = writer.changes(home, files)
    assert [(c.path, c.old, c.new) for c in first] == [("conf/a", None, "1\n"), ("conf/sub/b", None, "2\n")]
    writer.apply(home, first)
    assert (home.conf / "a").stat().st_mode & 0o777 == 0o600
    assert (home.conf / "sub/b").stat().st_mode & 0o777 == 0o644
    assert writer.changes(home, files) == ()


def test_a_file_that_nothing_renders_any_more_is_removed(home: Home) -> None:
    writer.apply(home, writer.changes(home, [RenderedFile("conf/a", "1\n"), RenderedFile("conf/b", "2\n")]))
    found = writer.changes(home, [RenderedFile("conf/a", "3\n")])
    assert [(c.path, c.new) for c in found] == [("conf/a", "3\n"), ("conf/b", None)]
    assert "-1\n+3\n" in found[0].diff()
    assert found[1].diff().splitlines()[:2] == ["--- a/conf/b", "+++ /dev/null"]
    writer.apply(home, found)
    assert sorted(p.name for p in home.conf.iterdir()) == ["a"]


def test_a_mode_that_somebody_widened_is_a_change(home: Home) -> None:
    files = [RenderedFile("conf/a", "1\n")]
    writer.apply(home, writer.changes(home, files))
    (home.conf / "a").chmod(0o644)
    writer.apply(home, writer.changes(home, files))
    assert (home.conf / "a").stat().st_mode & 0o777 == 0o600


def test_a_failed_write_keeps_the_old_file_and_leaves_nothing_behind(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer.apply(home, writer.changes(home, [RenderedFile("conf/a", "old\n")]))

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(HomeError, match=r"cannot write .*/conf/a: No space left on device"):
        writer.apply(home, writer.changes(home, [RenderedFile("conf/a", "new\n")]))
    assert [(p.name, p.read_text()) for p in home.conf.iterdir()] == [("a", "old\n")]


def test_claiming_makes_a_private_home_and_is_idempotent(home: Home) -> None:
    claim(home)
    claim(home)
    modes = {p.name: p.stat().st_mode & 0o777 for p in home.root.iterdir() if p.is_dir()}
    assert modes == {"conf": 0o700, "run": 0o700, "logs": 0o700}


def test_a_directory_with_an_llmhost_yaml_is_a_home(home: Home) -> None:
    home.root.mkdir()
    home.config_file.write_text("services: {}\n")
    claim(home)
    assert home.marker.is_file()


def test_a_foreign_directory_is_refused_untouched(home: Home) -> None:
    home.root.mkdir()
    (home.root / "thesis.tex").write_text("years of work")
    with pytest.raises(HomeError, match=r"not a home of llmhost and not empty \(it holds thesis.tex\)"):
        claim(home)
    assert [p.name for p in home.root.iterdir()] == ["thesis.tex"]


def test_a_file_is_no_home(home: Home) -> None:
    home.root.write_text("")
    with pytest.raises(HomeError, match="is a file"):
        claim(home)


def test_a_path_too_long_for_a_socket_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    long = Home(tmp_path / ("x" * 100))
    with pytest.raises(HomeError, match="bytes too long: unix socket paths end at 107 bytes"):
        claim(long)
    assert not long.root.exists()


def test_the_longest_home_that_is_allowed_holds_every_socket() -> None:
    fixed = len("/run/supervisor.sock.4194304")
    Home(Path("/" + "h" * (107 - fixed - 1))).check_socket_paths()
    with pytest.raises(HomeError, match="is 1 bytes too long"):
        Home(Path("/" + "h" * (107 - fixed))).check_socket_paths()
