"""The lock of a home."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from llmhost.errors import BusyError, HomeError
from llmhost.paths import Home
from llmhost.supervise.lock import home_lock


def test_the_second_command_is_told_about_the_first(tmp_path: Path) -> None:
    home = Home(tmp_path)
    with (
        home_lock(home, "up --no-wait"),
        pytest.raises(BusyError, match=rf"`llmhost up --no-wait` \(pid {os.getpid()}\)"),
        home_lock(home, "down"),
    ):
        pytest.fail("two at once")


def test_they_take_turns(tmp_path: Path) -> None:
    home = Home(tmp_path)
    for command in ("up", "down"):
        with home_lock(home, command):
            assert home.lock_file.read_text() == f"{os.getpid()} {command}"
    assert home.lock_file.read_text() == ""


def test_an_error_inside_lets_go(tmp_path: Path) -> None:
    home = Home(tmp_path)
    with pytest.raises(ZeroDivisionError), home_lock(home, "up"):
        raise ZeroDivisionError
    with home_lock(home, "down"):
        pass


def test_the_run_directory_is_made_private(tmp_path: Path) -> None:
    with home_lock(Home(tmp_path), "up"):
        assert (tmp_path / "run").stat().st_mode & 0o777 == 0o700


def test_a_home_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file")
    with pytest.raises(HomeError, match="cannot open"), home_lock(Home(tmp_path), "up"):
        pass
