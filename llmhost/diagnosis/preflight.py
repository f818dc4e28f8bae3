"""What makes a start impossible, looked at before it: a few milliseconds, and none of it starts a program."""

from __future__ import annotations

from llmhost.config import Config
from llmhost.diagnosis.gpus import check_driver
from llmhost.diagnosis.resources import check_disk, check_limits, check_shared_memory
from llmhost.diagnosis.subject import Limits, Subject
from llmhost.env.manifest import read_manifest
from llmhost.errors import MachineError
from llmhost.facts import EngineFacts
from llmhost.paths import Home
from llmhost.probe.machine import read_essentials
from llmhost.probe.model import models_directory


def require_startable(home: Home, config: Config, engine: EngineFacts) -> None:
    """Raise MachineError for the first thing that would make every start fail; `llmhost doctor` shows all of them."""
    manifest = read_manifest(home.engine_dir(config.engine.name))
    subject = Subject(
        facts=read_essentials(home, models_directory(home, config)),
        limits=Limits.read(),
        config=config,
        engine=engine,
        packages=manifest.packages if manifest else {},
    )
    for check in (
        *check_limits(subject),
        *check_shared_memory(subject),
        *check_disk(subject, {}),
        *check_driver(subject),
    ):
        if check.status == "fail":
            raise MachineError(check.message, f"{check.remedy}; `llmhost doctor` looks at everything")
