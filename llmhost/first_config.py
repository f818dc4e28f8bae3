"""The first llmhost.yaml of a home, with comments, and the demo's."""

from __future__ import annotations

from llmhost import config as configuration
from llmhost import writer
from llmhost.errors import ConfigError
from llmhost.homedir import claim
from llmhost.paths import Home
from llmhost.templates import template_environment

DEFAULT_PORT = 8000


def write_config(home: Home, *, demo: bool, port: int = DEFAULT_PORT) -> bool:
    """Write a commented llmhost.yaml; False (and nothing is touched) when there is one already."""
    claim(home)
    if home.config_file.exists():
        return False
    writer.replace_file(home.config_file, _config_text(home, demo, port), mode=0o600)
    return True


def _config_text(home: Home, demo: bool, port: int) -> str:
    template = template_environment().get_template("llmhost.yaml.j2")
    return template.render(home=home.root, demo=demo, port=port)


def require_demo_config(home: Home, port: int | None) -> None:
    """Write the demo's llmhost.yaml, or make sure that the one that is there is the demo's, with this port if given."""
    if write_config(home, demo=True, port=port or DEFAULT_PORT):
        return
    config = configuration.load(home.config_file)
    if not any(service.model.startswith("demo:") for service in config.services.values()):
        raise ConfigError(
            f"{home.config_file} exists and is not the demo",
            "run `llmhost up` for it, or give the demo a home of its own with --home",
        )
    if port is None or port == config.gateway.port:
        return
    if home.config_file.read_text(encoding="utf-8") != _config_text(home, True, config.gateway.port):
        raise ConfigError(
            f"{home.config_file} has been edited and says gateway.port {config.gateway.port}, not {port}",
            "change the port there, or leave --port out",
        )
    writer.replace_file(home.config_file, _config_text(home, True, port), mode=0o600)
