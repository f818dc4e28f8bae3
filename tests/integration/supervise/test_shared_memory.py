"""Shared memory of an engine goes with it, however it ends, unless somebody else has it."""

from __future__ import annotations

import mmap
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from llmhost.supervise import leftovers
from llmhost.supervise.guarding import shm
from llmhost.supervise.guarding.processes import descendants, read
from tests.integration.supervise.conftest import House, LoneGuard, bring_up, pairs, wait_for

pytestmark = pytest.mark.integration


def segment(file: Path) -> Path:
    """The one that the engine has made."""
    wait_for(lambda: file.exists() and file.read_text())
    return Path(shm.FOLDER, file.read_text())


def trackers(root: int) -> list[int]:
    return [pid for pid in descendants(root) if shm.TRACKER in read(f"/proc/{pid}/cmdline")]


@contextmanager
def mapped(path: Path) -> Iterator[None]:
    """Held by us; the descriptor alone is closed again, as programs do."""
    fd = os.open(path, os.O_RDWR)
    with mmap.mmap(fd, 4096):
        os.close(fd)
        yield


def kill_everything(root: int) -> None:
    """At the same moment, resource tracker included: nobody can clean up."""
    members = [root, *descendants(root)]
    for pid in members:
        os.kill(pid, signal.SIGSTOP)
    for pid in members:
        os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("tracked", [True, False])
@pytest.mark.parametrize("victim", ["engine", "guard", "both"])
def test_no_segment_outlives_a_killed_engine(guard: LoneGuard, place: Path, victim: str, tracked: bool) -> None:
    """Whoever is killed, with the resource tracker or without."""
    file = place / "name"
    process = guard.start("--shared-memory", str(file))
    said = guard.wait("ready")
    path = segment(file)
    wait_for(lambda: shm.read_record(shm.record_file(os.fsencode(guard.spec["state_file"]))))
    (tracker,) = trackers(process.pid)
    victims = {"engine": [said["engine_pid"]], "guard": [process.pid], "both": [process.pid, said["engine_pid"]]}[
        victim
    ]
    victims += [] if tracked else [tracker]
    for pid in victims:
        os.kill(pid, signal.SIGSTOP)
    assert path.exists()
    for pid in victims:
        os.kill(pid, signal.SIGKILL)
    if victim != "engine":
        process.wait()
        file.unlink()
        process = guard.start("--shared-memory", str(file))
    wait_for(lambda: not path.exists())
    guard.wait("ready", process)
    again = segment(file)
    process.send_signal(signal.SIGTERM)
    process.wait()
    assert not again.exists()


def test_a_segment_that_somebody_else_has_mapped_stays(guard: LoneGuard, place: Path) -> None:
    file = place / "name"
    process = guard.start("--shared-memory", str(file))
    guard.wait("ready")
    path = segment(file)
    wait_for(lambda: shm.read_record(shm.record_file(os.fsencode(guard.spec["state_file"]))))
    (tracker,) = trackers(process.pid)
    try:
        with mapped(path):
            os.kill(tracker, signal.SIGKILL)
            process.send_signal(signal.SIGTERM)
            process.wait()
            assert path.exists()
    finally:
        path.unlink(missing_ok=True)


def test_what_a_massacre_left_is_found_and_swept_by_doctor_and_by_the_next_start(house: House, place: Path) -> None:
    file = place / "name"
    house.service("chat", "--shared-memory", str(file))
    for sweep in (True, False):
        file.unlink(missing_ok=True)
        bring_up(house)
        path = segment(file)
        wait_for((house.home.run / "chat-0.shm.json").exists)
        assert leftovers.find(house.home).files == ()
        supervisor = int(house.home.supervisord_pid_file.read_text())
        guard, engine = pairs(house)["chat-0"]
        kill_everything(supervisor)
        wait_for(lambda: not house.left())
        assert guard
        assert engine
        assert path.exists()
        found = leftovers.find(house.home)
        assert path in found.files
        if sweep:
            with mapped(path):
                assert path not in leftovers.find(house.home).files
            leftovers.remove(found)
            assert not path.exists()
    bring_up(house)
    assert not path.exists()
