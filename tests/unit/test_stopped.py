"""What stays stopped after which command."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmhost.errors import HomeError
from llmhost.paths import Home
from llmhost.stopped import Stopped, after_start, after_stop, not_stopped, read_stopped, write_stopped

EVERY = ("a", "b", "c")


def test_commands() -> None:
    nothing = Stopped()
    one = after_stop(nothing, ["a"], EVERY)
    assert one == Stopped(frozenset("a"))
    assert after_stop(one, ["b"], EVERY) == Stopped(frozenset("ab"))
    assert after_stop(one, [], EVERY) == Stopped(frozenset("abc"), gateway=True)
    assert after_start(one, ["a"], EVERY, alone=False) == nothing
    assert after_start(one, ["b"], EVERY, alone=False) == one
    assert after_start(one, ["b"], EVERY, alone=True) == Stopped(frozenset("ac"))
    assert after_start(after_stop(one, [], EVERY), [], EVERY, alone=True) == nothing


def test_it_is_kept_and_what_is_not_understood_stops_nothing(tmp_path: Path) -> None:
    home = Home(tmp_path)
    assert read_stopped(home) == Stopped()
    write_stopped(home, Stopped(frozenset({"a-b"}), gateway=True))
    assert read_stopped(home) == Stopped(frozenset({"a-b"}), gateway=True)
    assert not_stopped(home, ["a-b-0", "a-b-1", "a-0", "gateway"]) == ("a-0",)
    home.stopped_file.write_text("[]")
    assert read_stopped(home) == Stopped()
    assert not_stopped(home, ["gateway", "gateway-0"]) == ("gateway", "gateway-0")


def test_a_home_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("in the way")
    with pytest.raises(HomeError, match="cannot write"):
        write_stopped(Home(tmp_path), Stopped(frozenset("a")))
