"""Waiting for GPUs, with a driver that is slow, late or short of one."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from llmhost import config
from llmhost.boot.gpus import ATTEMPTS, Look, await_gpus, gpus_needed
from llmhost.errors import SupervisorError
from llmhost.paths import Home
from llmhost.plan import stored
from llmhost.plan.build import make_plan
from tests.samples import machine, model


def home_with(place: Path, gpus: tuple[int, ...]) -> Home:
    home = Home(place)
    for folder in (home.conf, home.run):
        folder.mkdir()
    plan = make_plan(
        config.parse("services: {a: {model: /m}, b: {model: /m}}"), machine(), dict.fromkeys("ab", model())
    )
    first = plan.services[0]
    program = dataclasses.replace(first.replicas[0], gpus=gpus)
    services = (dataclasses.replace(first, replicas=(program,)), *plan.services[1:])
    home.plan_file.write_text(json.dumps(stored.to_dict(dataclasses.replace(plan, services=services))))
    return home


class Driver:
    """Shows what it is told, one after the other, then the last for ever."""

    def __init__(self, *looks: Look) -> None:
        self.looks, self.asked = list(looks), 0

    def __call__(self) -> Look:
        self.asked += 1
        return self.looks.pop(0) if len(self.looks) > 1 else self.looks[0]


def test_nothing_is_asked_on_a_cpu(tmp_path: Path) -> None:
    driver = Driver(Look(0, ()))
    assert await_gpus(home_with(tmp_path, ()), print, look=driver)
    assert driver.asked == 0
    assert gpus_needed(Home(tmp_path / "nothing")) == 0


def test_it_goes_on_as_soon_as_all_are_there(tmp_path: Path) -> None:
    driver = Driver(Look(0, ()), Look(1, ()), Look(4, ()))
    assert await_gpus(home_with(tmp_path, (2, 3)), print, poll=0, look=driver)
    assert driver.asked == 3


def test_a_gpu_that_never_comes_does_not_keep_the_others_down(tmp_path: Path) -> None:
    said: list[str] = []
    assert not await_gpus(home_with(tmp_path, (0, 1)), said.append, seconds=0, poll=0, look=Driver(Look(1, ())))
    assert said == ["the plan needs 2 GPUs and the driver shows 1: starting what can be started"]


def test_a_driver_that_came_after_the_unit_makes_it_start_anew_but_not_for_ever(tmp_path: Path) -> None:
    home, late = home_with(tmp_path, (0,)), Look(0, ("/dev/nvidia-uvm",))
    for _ in range(ATTEMPTS):
        with pytest.raises(SupervisorError, match="/dev/nvidia-uvm"):
            await_gpus(home, print, look=Driver(late))
    assert not await_gpus(home, print, seconds=0, poll=0, look=Driver(late))
