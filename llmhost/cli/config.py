"""`llmhost init` and `llmhost config`: writing, showing and checking llmhost.yaml."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import click

from llmhost.cli import Session, console


@click.command("init")
@click.option("--demo", is_flag=True, help="With the three demo models that come with llmhost.")
@click.option("--port", type=click.IntRange(1, 65535), default=8000, show_default=True, help="Port of the gateway.")
@click.pass_obj
def init_command(session: Session, demo: bool, port: int) -> None:
    """Write a commented llmhost.yaml into the home; one that is already there is never touched."""
    from llmhost.errors import ConfigError
    from llmhost.first_config import write_config

    if not write_config(session.home, demo=demo, port=port):
        raise ConfigError(
            f"{session.home.config_file} already exists", "edit it, or choose another directory with --home"
        )
    console.result(f"wrote {session.home.config_file}")
    console.remark("edit it, then run `llmhost up`" if not demo else "run `llmhost up`")


@click.group("config")
def config_command() -> None:
    """Show, validate or describe llmhost.yaml."""


@config_command.command("show")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@click.option("--no-defaults", is_flag=True, help="Only what is written in the file.")
@click.pass_obj
def show(session: Session, as_json: bool, no_defaults: bool) -> None:
    """Print the configuration as llmhost understands it, defaults filled in.

    Values in env: and on_event: are not shown, they may be secrets.
    """
    from llmhost import config

    data = config.load(session.home.config_file).model_dump(mode="json", exclude_unset=no_defaults)
    for service in data.get("services", {}).values():
        if service.get("env"):
            service["env"] = dict.fromkeys(service["env"], "***")
    if data.get("on_event"):
        data["on_event"] = "***"
    if as_json:
        console.json_result(data)
    else:
        console.result(_to_yaml(data).rstrip())


@config_command.command("validate")
@click.argument("file", type=click.Path(dir_okay=False), required=False)
@click.option("--file-only", is_flag=True, help="The file alone, for another machine: no models, no engine.")
@click.pass_obj
def validate(session: Session, file: str | None, file_only: bool) -> None:
    """Check FILE (default: the home's llmhost.yaml) as `llmhost plan` does; nothing is started or written.

    Keys and values, the model directories and, once `llmhost setup` has built the engine, the flags under args: and
    whether everything fits this machine. What was not checked is said.
    """
    from pathlib import Path

    from llmhost import config
    from llmhost.planning import validate as check

    path = Path(file) if file else session.home.config_file
    found = config.load(path)
    flags = False if file_only else check(session.home, found)
    console.result(f"{path} is valid: {_counted(found.services)}")
    if not found.services:
        console.remark("`llmhost up` needs at least one, under services:")
    if file_only:
        console.remark("not checked: the models, the flags under args:, and whether this machine has room")
    elif not flags:
        console.remark(
            "not checked: the flags under args:, and whether this machine has room;"
            " that needs the engine and the environments, which `llmhost setup` builds"
        )


def _counted(services: Collection[str]) -> str:
    return f"{len(services)} service{'s' * (len(services) != 1)} ({', '.join(services)})" if services else "no services"


@config_command.command("schema")
@click.option("--markdown", "as_markdown", is_flag=True, help="As a page for people instead: docs/config.md.")
def schema(as_markdown: bool) -> None:
    """Print the JSON Schema of llmhost.yaml, for editors.

    In llmhost.yaml:  # yaml-language-server: $schema=./llmhost.schema.json
    """
    from llmhost import config

    if as_markdown:
        from llmhost.cli.reference import markdown

        console.result(markdown(config.schema()).rstrip())
    else:
        console.json_result(config.schema())


def _to_yaml(data: Any) -> str:
    from io import StringIO

    from ruamel.yaml import YAML

    yaml = YAML()
    yaml.default_flow_style = False
    text = StringIO()
    yaml.dump(data, text)
    return text.getvalue()
