"""The command line. Commands load when they are run, so that `llmhost --help` and `status` stay fast."""

from __future__ import annotations

import importlib
from dataclasses import dataclass

import click

from llmhost import __version__
from llmhost.paths import HOME_ENV, Home


@dataclass(frozen=True)
class Session:
    """What the global options say; every command gets it through ``click.pass_obj``."""

    home: Home


COMMANDS: dict[str, tuple[str, str]] = {
    "init": ("llmhost.cli.config", "Write a commented llmhost.yaml."),
    "import": ("llmhost.cli.migrate", "Make an llmhost.yaml of a docker compose file or a supervisord.conf."),
    "config": ("llmhost.cli.config", "Show, validate or describe llmhost.yaml."),
    "facts": ("llmhost.cli.facts", "Show what this machine has: GPUs, driver, CUDA, Pythons, memory."),
    "setup": ("llmhost.cli.setup", "Build the engine environment that runs vLLM."),
    "engine": ("llmhost.cli.engine", "List, upgrade, choose and remove engines."),
    "pull": ("llmhost.cli.models", "Fetch models from Hugging Face or ModelScope."),
    "models": ("llmhost.cli.models", "List, verify and remove the models that are here."),
    "login": ("llmhost.cli.models", "Keep a token for Hugging Face or ModelScope."),
    "inspect": ("llmhost.cli.inspect", "Show what a model is: kind, size, memory, parsers."),
    "plan": ("llmhost.cli.plan", "Show what runs where with which flags."),
    "render": ("llmhost.cli.plan", "Show or write the files of supervisord and the gateway."),
    "up": ("llmhost.cli.lifecycle", "Make this machine serve what llmhost.yaml says."),
    "down": ("llmhost.cli.lifecycle", "Stop everything, supervisord and the gateway too."),
    "start": ("llmhost.cli.lifecycle", "Start services and wait until they are ready."),
    "stop": ("llmhost.cli.lifecycle", "Stop services."),
    "restart": ("llmhost.cli.lifecycle", "Restart services and wait until they are ready."),
    "status": ("llmhost.cli.status", "Show the state of every service."),
    "logs": ("llmhost.cli.logs", "Show or follow the logs of services."),
    "keys": ("llmhost.cli.keys", "Make, list, rotate and revoke API keys."),
    "check": ("llmhost.cli.check", "Ask running services whether they do what they are for."),
    "top": ("llmhost.cli.top", "Show what the services do just now: requests, tokens, queues, memory."),
    "bundle": ("llmhost.cli.bundle", "Bring everything to a machine without a network."),
    "metrics": ("llmhost.cli.metrics", "Show the metrics; write targets, alert rules and a dashboard."),
    "doctor": ("llmhost.cli.doctor", "Find what is wrong, with a remedy; remove what a former life left."),
    "node": ("llmhost.cli.nodes", "Add, list, sync, examine and remove the nodes that share the services."),
    "move": ("llmhost.cli.move", "Move a service to another node without losing a request."),
    "enable": ("llmhost.cli.boot", "Start with the machine, through systemd."),
    "disable": ("llmhost.cli.boot", "Do not start with the machine any more."),
    "completion": ("llmhost.cli.completion", "Print the completion script for a shell."),
}
"""Name -> module that defines it and the line that `--help` shows, so that help imports none of them."""

HIDDEN = {"boot": "llmhost.cli.boot"}
"""Commands for the systemd unit: they are not listed."""

EPILOG = """\b
A first run, without a GPU or a model hub:
  llmhost up --demo      three tiny models behind http://127.0.0.1:8000/v1
  llmhost check          asks each of them something
  llmhost down           stops everything

\b
Exit status: 0 done, 1 failed, 2 wrong usage, 3 not ready, 4 another command is at work, 130 interrupted.
"""


class LazyGroup(click.Group):
    """A group whose commands live in modules that are imported when the command runs."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS and cmd_name not in HIDDEN:
            return None
        module = importlib.import_module(HIDDEN.get(cmd_name) or COMMANDS[cmd_name][0])
        command: click.Command = getattr(module, f"{cmd_name}_command")
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name not in COMMANDS and name not in HIDDEN and not name.startswith("-"):
            import difflib

            close = difflib.get_close_matches(name, COMMANDS, n=1)
            ctx.fail(f"no such command: {name}" + (f" (did you mean {close[0]}?)" if close else ""))
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])


@click.group(cls=LazyGroup, epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--home", metavar="DIR", help=f"Everything of an installation is below it. [default: ${HOME_ENV} or ~/.llmhost]"
)
@click.option("--debug", is_flag=True, help="Show tracebacks.")
@click.version_option(__version__, prog_name="llmhost")
@click.pass_context
def cli(ctx: click.Context, home: str | None, debug: bool) -> None:  # noqa: ARG001  (read from argv by __main__)
    """vLLM services on bare metal: chat, embedding and rerank behind one OpenAI-compatible port.

    One llmhost.yaml names the services; `llmhost up` builds the engine, starts everything and waits until it is ready.
    """
    ctx.obj = Session(Home.resolve(home))
