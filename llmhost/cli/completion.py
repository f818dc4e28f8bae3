"""`llmhost completion`: the script that makes a shell complete commands, options and service names."""

from __future__ import annotations

import json

import click
from click.shell_completion import CompletionItem, get_completion_class

from llmhost.cli import cli, console
from llmhost.gateway_address import ACCESS_LOG, GATEWAY_PROGRAM, METRICS_PROGRAM
from llmhost.paths import Home


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion_command(shell: str) -> None:
    """Print the completion script for SHELL.

    \b
    bash:  llmhost completion bash > ~/.local/share/bash-completion/completions/llmhost
    zsh:   llmhost completion zsh > ~/.zfunc/_llmhost     (a directory in $fpath)
    fish:  llmhost completion fish > ~/.config/fish/completions/llmhost.fish
    """
    kind = get_completion_class(shell)
    assert kind is not None
    console.result(kind(cli, {}, "llmhost", "_LLMHOST_COMPLETE").source())


def complete_services(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The services of the plan that is in force; nothing before the first `up`."""
    return [item for item in _services(ctx) if item.value.startswith(incomplete)]


def complete_logs(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The services, and what else has a log."""
    own = (CompletionItem(name) for name in (GATEWAY_PROGRAM, METRICS_PROGRAM, ACCESS_LOG, "supervisord"))
    return [item for item in (*_services(ctx), *own) if item.value.startswith(incomplete)]


def _services(ctx: click.Context) -> list[CompletionItem]:
    home = Home.resolve(ctx.find_root().params.get("home"))
    try:
        services = json.loads(home.plan_file.read_text(encoding="utf-8"))["services"]
    except (OSError, ValueError, KeyError):
        return []
    return [CompletionItem(s["name"], help=s["kind"]) for s in services]
