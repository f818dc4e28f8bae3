"""An engine that is tried waits for its turn on a GPU as any other, and that is not held against it."""

from __future__ import annotations

import os
import socket
import threading
from dataclasses import replace

import pytest

from llmhost.errors import NotReadyError
from llmhost.render import guard_spec_path, render
from llmhost.supervise import trial
from llmhost.supervise.guarding.locks import lock_name
from llmhost.supervise.planfile import read_plan
from tests.integration.supervise.conftest import House

pytestmark = pytest.mark.integration

GPU = 50_000_000 + os.getpid()


def tried(house: House, told: list[str], seconds: float) -> None:
    """Its first service, on `GPU`."""
    house.write()
    house.home.logs.mkdir()
    house.home.run.mkdir(mode=0o700)
    plan = read_plan(house.home)
    assert plan is not None
    (service,) = house.services.values()
    program = replace(service.replicas[0], gpus=(GPU,))
    changed = replace(plan, services=(replace(service, replicas=(program,)),))
    spec = next(f for f in render(changed) if f.path == guard_spec_path(program.name))
    trial.try_program(house.home, changed, program, spec, seconds, told.append)


def test_the_wait_for_another_start_does_not_count(house: House) -> None:
    house.service("chat")
    told: list[str] = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.bind(lock_name(GPU))
        timer = threading.Timer(4, other.close)
        timer.start()
        tried(house, told, 2.5)
        timer.join()
    assert told[0] == "queued"
    assert house.left() == []


def test_one_that_is_not_ready_in_time(house: House) -> None:
    house.service("chat", "--wait-for", "/nonexistent")
    with pytest.raises(NotReadyError, match="not ready in time"):
        tried(house, [], 1)
    assert house.left() == []
