"""This machine as a home sees it."""

from __future__ import annotations

from collections.abc import Callable

from llmhost import config as configuration
from llmhost.config import Config
from llmhost.errors import ConfigError
from llmhost.facts import MachineFacts
from llmhost.paths import Home
from llmhost.probe.machine import read_machine
from llmhost.probe.model import models_directory


def machine_facts(home: Home, note: Callable[[str], None]) -> MachineFacts:
    """The facts of this machine, with the models_dir of llmhost.yaml where there is one that can be read."""
    try:
        config = configuration.load(home.config_file) if home.config_file.exists() else Config()
    except ConfigError as e:
        note(f"{e.message}; models are looked for in {home.models}")
        config = Config()
    return read_machine(home, models_directory(home, config))
