"""A thousand starts and stops, and two hundred services: nothing leaks, and it still works."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

import pytest

from llmhost.supervise import daemon, lifecycle
from llmhost.supervise.guarding.processes import descendants, read
from llmhost.supervise.rpc import Supervisor
from tests.faults.conftest import record, wait_for
from tests.integration.supervise.conftest import House, house, place  # noqa: F401  (fixtures)

pytestmark = [pytest.mark.integration, pytest.mark.alone, pytest.mark.timeout(3600)]

TINY_ENGINE = Path(__file__).parents[1] / "fakes" / "tiny_engine.py"
SERVICES, ROUNDS = 20, 50
"""A thousand starts and stops: twenty at the same time."""
MANY = int(os.environ.get("LLMHOST_FAULTS_MANY", "200"))


def open_files(pid: int) -> list[str]:
    """What a process has open, by kind, once our own connections to it are gone."""
    return list(wait_for(lambda: (found := kinds(Path(f"/proc/{pid}/fd"))).count("socket") == 1 and found))


def kinds(descriptors: Path) -> list[str]:
    found = []
    for descriptor in descriptors.iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed since it was listed
            found.append(os.readlink(descriptor).split(":")[0])
    return sorted(found)


def test_a_thousand_starts_and_stops(house: House) -> None:  # noqa: F811
    house.engine = TINY_ENGINE
    for n in range(SERVICES):
        house.service(f"chat{n}")
    house.write()
    daemon.ensure_running(house.home)
    names = house.programs()
    lifecycle.converge(house.home, ())
    supervisor = Supervisor(house.home.supervisor_socket).pid()
    begin, before = time.monotonic(), None
    for _ in range(ROUNDS):
        lifecycle.start(house.home, names)
        states = lifecycle.wait_ready(house.home, names, 900)
        assert {s.state for s in states.values()} == {"ready"}
        lifecycle.stop(house.home, names)
        now = (open_files(supervisor), descendants(supervisor), sorted(p.name for p in house.home.run.iterdir()))
        before = before or now
        assert now == before
    assert house.left() == [supervisor]
    record(f"{SERVICES * ROUNDS} starts and stops", "no process, descriptor, socket or file more than after the first",
           recovered=(time.monotonic() - begin) / ROUNDS)  # fmt: skip


def test_many_services(house: House) -> None:  # noqa: F811
    house.engine = TINY_ENGINE
    for n in range(MANY):
        house.service(f"chat{n}")
    house.write()
    daemon.ensure_running(house.home)
    begin = time.monotonic()
    names = house.programs()
    lifecycle.converge(house.home, names)
    states = lifecycle.wait_ready(house.home, names, 900)
    assert {s.state for s in states.values()} == {"ready"}
    started = time.monotonic() - begin
    guards = [s.pid for s in states.values() if s.pid]
    largest = max(int(read(f"/proc/{pid}/status").partition(b"VmRSS:")[2].split()[0]) for pid in guards)
    assert largest <= 15 * 1024
    os.kill(guards[0], 9)
    assert house.wait(names[0], state="ready", restarts=1)
    assert sum(r["restarts"] for r in house.replicas().values()) == 1
    record(f"{MANY} services", f"all ready; largest guard {largest / 1024:.1f} MiB; a killed guard harms no other",
           recovered=started)  # fmt: skip
