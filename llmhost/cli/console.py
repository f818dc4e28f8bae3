"""The one place that prints. Results go to stdout, progress and remarks to stderr."""

from __future__ import annotations

import json
import sys
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

import click

STATE_COLOURS = {
    "ready": "green",
    "loading": "yellow",
    "queued": "yellow",
    "backoff": "yellow",
    "draining": "yellow",
    "unhealthy": "red",
    "failed": "red",
    "stopped": "bright_black",
}


def result(text: str = "") -> None:
    """A line of what the user asked for."""
    click.echo(text)


def json_result(data: Any) -> None:
    """The machine-readable form of a result."""
    click.echo(json.dumps(data, ensure_ascii=False, indent=2))


def json_line(data: Any) -> None:
    """One of many machine-readable results."""
    click.echo(json.dumps(data, ensure_ascii=False))


def remark(text: str) -> None:
    """A line about what is going on."""
    click.echo(text, err=True)


def report_error(message: str, hint: str) -> None:
    """One ``error:`` line and, where there is something to do about it, one ``hint:`` line."""
    click.echo(f"{click.style('error:', fg='red', bold=True)} {_one_line(message)}", err=True)
    if hint:
        click.echo(f"{click.style('hint:', fg='cyan')} {_one_line(hint)}", err=True)


def _one_line(text: str) -> str:
    return " ".join(text.split())


def state(name: str) -> str:
    """The name of a state in its colour."""
    return click.style(name, fg=STATE_COLOURS.get(name, "white"))


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Columns as wide as their widest cell. Plain text rather than rich: `status` must start fast."""
    body = [list(row) for row in rows]
    widths = [max(map(display_width, column)) for column in zip(head, *body, strict=True)]
    for line in ([click.style(h, bold=True) for h in head], *body):
        padded = (cell + " " * (width - display_width(cell)) for cell, width in zip(line, widths, strict=True))
        result("  ".join(padded).rstrip())


def display_width(text: str) -> int:
    """Columns that a text takes in a terminal: East Asian wide characters take two, escape sequences none."""
    plain = click.unstyle(text)
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else not unicodedata.combining(c) for c in plain)


def given() -> str:
    """All of standard input, in UTF-8."""
    return sys.stdin.buffer.read().decode("utf-8")


def stdout_is_terminal() -> bool:
    """Whether somebody reads the result."""
    return sys.stdout.isatty()


def stderr_is_terminal() -> bool:
    """Whether somebody is watching the progress."""
    return sys.stderr.isatty()
