"""`llmhost logs`: what the services say, each line with its name in front."""

from __future__ import annotations

import re
from datetime import datetime
from typing import TYPE_CHECKING

import click

from llmhost.cli import Session, console
from llmhost.cli import everywhere as fleet
from llmhost.cli.completion import complete_logs

if TYPE_CHECKING:
    from llmhost.supervise.logview import Selection

COLOURS = ("cyan", "yellow", "green", "magenta", "blue", "bright_cyan", "bright_yellow", "bright_green")


@click.command("logs")
@click.argument("services", nargs=-1, shell_complete=complete_logs)
@click.option("-f", "--follow", is_flag=True, help="Go on with what is added, until Ctrl-C.")
@click.option(
    "-n", "--lines", type=click.IntRange(0, 10**9),
    help="Last lines of each, after what the other options leave out. [default: 100; all with --since]",
)  # fmt: skip
@click.option("--since", metavar="WHEN", help="90s, 10m, 2h, 3d ago; 13:30 today; 2026-01-31 13:30.")
@click.option(
    "--level", type=click.Choice(("debug", "info", "warning", "error", "critical"), case_sensitive=False),
    default="debug", help="This serious at least; a traceback counts as the line before it.",
)  # fmt: skip
@click.option("--grep", metavar="REGEX", help="Lines with a match only; (?i) in front ignores case.")
@click.option("--json", "as_json", is_flag=True, help="An object each: time, program, level, text (or request).")
@click.option("--ansi", is_flag=True, help="Let terminal sequences of the programs through.")
@fleet.all_nodes()
@click.pass_obj
def logs_command(
    session: Session,
    services: tuple[str, ...],
    follow: bool,
    lines: int | None,
    since: str | None,
    level: str,
    grep: str | None,
    as_json: bool,
    ansi: bool,
    all_nodes: bool,
) -> int:
    """Show the logs of SERVICES (default: all, and the gateway's), merged in the order of time.

    `gateway`, `supervisord`, `metrics` and `access` are names, too; `access` is the log of requests, a JSON object a
    line: time, key, service, model, method, path, status, ms, bytes_in, bytes_out. It holds nothing of what was asked
    or answered.
    """
    if all_nodes:
        _selection(lines, since, level, grep)  # what is wrong is told once
        command, *rest = fleet.words_of(click.get_current_context(), "as_json")
        return fleet.show_logs(session, (command, "--json", *rest), follow=follow, as_json=as_json)
    from llmhost.errors import Interrupted
    from llmhost.in_force import log_files
    from llmhost.supervise.logview import view_logs

    selection = _selection(lines, since, level, grep)
    files = log_files(session.home, services)
    width = max(map(len, files))
    prefixes = {
        name: click.style(f"{name:{width}} | ", fg=COLOURS[index % len(COLOURS)]) for index, name in enumerate(files)
    }
    try:
        for line in view_logs(files, selection, follow, ansi):
            if as_json:
                console.json_line(line.to_dict())
            else:
                console.result(prefixes[line.program] + line.text)
    except KeyboardInterrupt:
        return Interrupted.exit_code  # the way to end `logs -f`: nothing to say about it
    return 0


def _selection(lines: int | None, since: str | None, level: str, grep: str | None) -> Selection:
    from llmhost.supervise.loglines import parse_since
    from llmhost.supervise.logview import Selection

    try:
        begin = None if since is None else parse_since(since, datetime.now())
    except ValueError:
        raise click.BadParameter(
            f"{since} is no time: 10m, 2h, 13:30, 2026-01-31 13:30", param_hint="--since"
        ) from None
    try:
        pattern = None if grep is None else re.compile(grep)
    except re.error as e:
        raise click.BadParameter(f"{grep} is no regular expression: {e}", param_hint="--grep") from None
    if lines is None and begin is None:
        lines = 100
    return Selection(lines, begin, level.lower(), pattern)
