"""Whose files count: homes on this machine, each with its llmhost, without ssh in between."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from llmhost.errors import NodeError, SshError
from llmhost.fleet import files
from llmhost.fleet.members import PROGRAM, Member
from llmhost.fleet.sync import sync
from llmhost.paths import Home
from llmhost.run import Completed, capture
from llmhost.ssh import Link, Target


class Wire(Link):
    """The way to a home on this machine; may be cut."""

    up = True

    def connect(self) -> None:
        if not self.up:
            raise SshError("it does not answer", "", "no answer")

    def run(
        self, words: Sequence[str], *, given: str | Path | None = None, timeout: float = 60, check: bool = True
    ) -> Completed:
        done = capture(words, given=given, timeout=timeout, check=False)
        if check and done.returncode:
            raise self.failed(done)
        return done


def make(root: Path) -> Home:
    program = root / PROGRAM
    program.parent.mkdir(parents=True)
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -P -m llmhost "$@"\n', encoding="utf-8")
    program.chmod(0o755)
    home = Home(root)
    home.marker.touch()
    home.node_file.write_text(root.name + "\n", encoding="utf-8")
    return home


@pytest.fixture
def two(tmp_path: Path) -> tuple[Home, Home]:
    a, b = make(tmp_path / "a"), make(tmp_path / "b")
    a.config_file.write_text("services: {}\n", encoding="utf-8")
    a.nodes_shared.mkdir(parents=True)
    a.placement_file.write_text("{}\n", encoding="utf-8")
    assert sync(a, seen(a, b)).changed == ("b",)
    return a, b


def seen(own: Home, other: Home, *, up: bool = True) -> list[Member]:
    wire = Wire(Target(other.root.name), other.run_ssh)
    wire.up = up
    own_member = Member(own.root.name, "127.0.0.1", own.root, None)
    return [own_member, Member(other.root.name, "127.0.0.2", other.root, wire)]


def edit(home: Home) -> None:
    home.config_file.write_text(f"services: {{}}  # by hand on {home.root.name}\n", encoding="utf-8")


def test_what_reached_nobody_still_counts_as_edited(two: tuple[Home, Home]) -> None:
    a, b = two
    for own, other in ((a, b), (b, a)):
        edit(own)
        assert list(sync(own, seen(own, other, up=False)).failed) == [other.root.name]
        assert files.read_state(own).edited == ("llmhost.yaml",)
    for own, other in ((a, b), (b, a)):
        with pytest.raises(NodeError, match=f"llmhost.yaml of {other.root.name} was changed there"):
            sync(own, seen(own, other))
    assert sync(a, seen(a, b), force=True).changed == ("b",)
    assert files.read_state(a).edited == files.read_state(b).edited == ()


def test_files_that_a_node_refused_still_count_as_edited(two: tuple[Home, Home]) -> None:
    a, b = two
    before = files.read_state(a).record
    a.config_file.write_text("services: [\n", encoding="utf-8")
    assert list(sync(a, seen(a, b)).failed) == ["b"]
    assert files.read_state(a).record == before


def test_an_older_node_replaces_nothing_newer(two: tuple[Home, Home]) -> None:
    a, b = two
    kept = files.read_state(b).record
    a.placement_file.write_text('{"newer": 1}\n', encoding="utf-8")
    assert sync(a, seen(a, b)).changed == ("b",)
    files.remember(b, kept)  # as if it had been cut off meanwhile
    b.placement_file.write_text("{}\n", encoding="utf-8")

    def first() -> None:
        b.placement_file.write_text("decided\n", encoding="utf-8")

    with pytest.raises(NodeError, match="a has newer files than this node, from a"):
        sync(b, seen(b, a), first=first)
    assert b.placement_file.read_text(encoding="utf-8") == "{}\n"
    assert "newer" in a.placement_file.read_text(encoding="utf-8")
    assert sync(a, seen(a, b), first=lambda: edit(a)).changed == ("b",)
    assert "by hand on a" in b.config_file.read_text(encoding="utf-8")
