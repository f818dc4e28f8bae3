"""`llmhost logs`: what the services say, each line with its name in front."""

from __future__ import annotations

import click

from llmhost.cli import Session, console
from llmhost.cli.completion import complete_services

COLOURS = ("cyan", "yellow", "green", "magenta", "blue", "bright_cyan", "bright_yellow", "bright_green")


@click.command("logs")
@click.argument("services", nargs=-1, shell_complete=complete_services)
@click.option("-f", "--follow", is_flag=True, help="Go on with what is added, until Ctrl-C.")
@click.option("-n", "--lines", type=click.IntRange(min=0), default=100, show_default=True, help="Last lines of each.")
@click.option("--ansi", is_flag=True, help="Let terminal sequences of the programs through.")
@click.pass_obj
def logs_command(session: Session, services: tuple[str, ...], follow: bool, lines: int, ansi: bool) -> None:
    """Show the logs of SERVICES (default: all, and the gateway's). `gateway` and `supervisord` are names, too."""
    from llmhost.supervise.logs import follow_logs
    from llmhost.workflow import log_files

    files = log_files(session.home, services)
    width = max(map(len, files))
    prefixes = {
        name: click.style(f"{name:{width}} | ", fg=COLOURS[index % len(COLOURS)]) for index, name in enumerate(files)
    }
    try:
        for name, line in follow_logs(files, lines, follow, ansi):
            console.result(prefixes[name] + line)
    except KeyboardInterrupt:
        # The way to end `logs -f`; nothing went wrong.
        return
