"""What makes a start impossible, looked at before it: a few milliseconds, and none of it starts a program."""

from __future__ import annotations

from llmhost.config import Config
from llmhost.diagnosis.gpus import check_driver
from llmhost.diagnosis.resources import check_limits, check_shared_memory, check_watchers
from llmhost.diagnosis.subject import Limits, Subject
from llmhost.env import find_engine
from llmhost.env.manifest import read_manifest
from llmhost.errors import MachineError
from llmhost.paths import Home
from llmhost.probe.machine import read_essentials
from llmhost.probe.model import models_directory
from llmhost.supervise import daemon
from llmhost.supervise.units import managed


def require_startable(home: Home, config: Config) -> None:
    """Raise MachineError for the first thing that would make every start fail; `llmhost doctor` shows all of them.

    Disks are left out: who writes much (models, engines) looks for himself, and knows how much.
    """
    if not any(service.replicas for service in config.services.values()):
        return  # others serve everything
    engine = find_engine(home, config.engine)
    manifest = read_manifest(home.engine_dir(engine.name)) if engine else None
    on_gpus = (engine.device if engine else config.engine.device) == "cuda"
    subject = Subject(
        facts=read_essentials(home, models_directory(home, config), gpus=on_gpus),
        limits=Limits.read(),
        config=config,
        engine=engine,
        packages=manifest.packages if manifest else {},
    )
    # What runs already, and what systemd starts, has limits of its own.
    limited = not daemon.is_running(home) and managed(home) is None
    checks = [*(check_limits(subject) if limited else ()), *check_watchers(subject), *check_shared_memory(subject)]
    for check in (*checks, *(check_driver(subject) if on_gpus else ())):
        if check.status == "fail":
            raise MachineError(check.message, f"{check.remedy}; `llmhost doctor` looks at everything")
