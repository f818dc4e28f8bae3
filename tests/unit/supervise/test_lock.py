"""The lock of a home."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest

from llmhost.errors import BusyError, HomeError
from llmhost.paths import Home
from llmhost.supervise import turns
from llmhost.supervise.lock import WAIT_ENV, at_work, home_lock, on_wait


def test_one_that_waits_for_too_long_is_told_about_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(WAIT_ENV, "0.2")
    home = Home(tmp_path)
    with (
        home_lock(home, "up --no-wait"),
        pytest.raises(BusyError, match=rf"`llmhost up --no-wait` \(pid {os.getpid()}\)"),
        home_lock(home, "down"),
    ):
        pytest.fail("two at once")


def test_one_after_the_other(tmp_path: Path) -> None:
    home = Home(tmp_path)
    for command in ("up", "down"):
        with home_lock(home, command):
            assert home.lock_file.read_text() == f"{os.getpid()} {command}"
    assert home.lock_file.read_text() == ""
    assert list((home.run / "turns").iterdir()) == []


def test_what_a_killed_trial_left_goes_with_the_next_command(tmp_path: Path) -> None:
    """Its file may hold secrets of a service; while the trial holds the home, nobody takes it away."""
    home = Home(tmp_path)
    home.run.mkdir()
    (home.run / "trial.ab12.json").touch()
    (home.run / "chat-0.state.json").touch()
    with home_lock(home, "engine"):
        assert [f.name for f in home.run.glob("*.json")] == ["chat-0.state.json"]
        (home.run / "trial.cd34.json").touch()
    assert (home.run / "trial.cd34.json").exists()


def test_they_take_turns_in_the_order_in_which_they_came(tmp_path: Path) -> None:
    home = Home(tmp_path)
    done: list[str] = []
    remarks: list[str] = []

    def command(name: str) -> None:
        on_wait.set(remarks.append)
        with home_lock(home, name):
            done.append(name)

    names = [f"restart {n}" for n in range(5)]
    threads = []
    with home_lock(home, "up"):
        for name in names:
            threads.append(threading.Thread(target=command, args=(name,)))
            threads[-1].start()
            while len(remarks) < len(threads):
                threading.Event().wait(0.01)
        assert done == []
    for thread in threads:
        thread.join(30)
    assert done == names
    assert remarks == [f"waiting for `llmhost up` (pid {os.getpid()}) to finish"] * 5


@pytest.mark.parametrize("text", ["soon", ""])
def test_a_time_that_is_none_is_the_usual_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv(WAIT_ENV, text)
    with home_lock(Home(tmp_path), "up"):
        pass


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


def test_who_is_at_work_can_be_asked(tmp_path: Path) -> None:
    home = Home(tmp_path)
    assert not at_work(home)
    with home_lock(home, "up"):
        assert at_work(home)
    assert not at_work(home)
    (home.run / "turns" / "7").touch()  # of an owner that was killed
    assert not at_work(home)
    with home_lock(home, "up", wait=0):
        assert at_work(home)


@pytest.mark.parametrize("number", [errno.EROFS, errno.ENOSPC])
def test_where_nothing_can_be_written_commands_take_turns_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """`stop` and `down` must work there."""
    home = Home(tmp_path)

    def refuse(_: Path) -> object:
        raise OSError(number, os.strerror(number))

    monkeypatch.setenv(WAIT_ENV, "0.2")
    with home_lock(home, "up"), pytest.MonkeyPatch.context() as full:  # it came while there was room
        full.setattr(turns, "ticket", refuse)
        with pytest.raises(BusyError, match="`llmhost up`"), home_lock(home, "down"):
            pytest.fail("two at once")
    monkeypatch.setattr(turns, "ticket", refuse)
    with home_lock(home, "stop"), pytest.raises(BusyError, match="`llmhost stop`"), home_lock(home, "down"):
        pytest.fail("two at once")
    with home_lock(home, "down"):
        pass
