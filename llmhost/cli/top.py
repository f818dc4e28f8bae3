"""`llmhost top`: what the services do just now."""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING

import click

from llmhost.cli import Session, console
from llmhost.cli.completion import complete_services

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

    from llmhost.metrics.figures import EngineFigures, Figures, Reading, ServiceFigures
    from llmhost.paths import Home

MIB, GIB = 2**20, 2**30
WINDOW = 10.0
"""Seconds that the live view looks back: two requests a minute apart must not make every figure jump."""


@click.command("top")
@click.argument("services", nargs=-1, shell_complete=complete_services)
@click.option("--once", is_flag=True, help="Print it once and end; also what happens without a terminal.")
@click.option("--json", "as_json", is_flag=True, help="Once, as JSON; the keys are described in docs/monitoring.md.")
@click.option(
    "--interval", type=click.FloatRange(min=1, max=60), default=2.0, show_default=True, metavar="SECONDS",
    help="Time between two looks; with --once and --json the time that is measured.",
)  # fmt: skip
@click.pass_obj
def top_command(session: Session, services: tuple[str, ...], once: bool, as_json: bool, interval: float) -> None:
    """Show what SERVICES (default: all) do: requests, tokens, waiting times, queues, caches, memory. Ctrl-C ends it.

    \b
    REQ/S    requests through the gateway, those that failed (5xx) behind a slash
    TOKENS/S tokens generated, and read from prompts
    TTFT     time to the first token: half of the requests, and 95 of 100, had it sooner
    RUN/WAIT requests in the engine, and queued in it
    KV       how full the KV cache is; a full one makes requests wait
    """
    from llmhost.in_force import load_plan, select_services

    names = {s.name for s in select_services(load_plan(session.home), services)}
    if as_json or once or not _terminal():
        found = _measure(session.home, interval)
        if as_json:
            data = found.to_dict()
            console.json_result({**data, "services": [s for s in data["services"] if s["name"] in names]})
        else:
            _print(_view(found, names))
        return
    try:
        _live(session.home, names, interval)
    except KeyboardInterrupt:
        # The way to end it; nothing went wrong.
        return


def _terminal() -> bool:
    import sys

    return sys.stdout.isatty()


def _read(home: Home) -> Reading:
    from llmhost.metrics.figures import Reading
    from llmhost.metrics.scraping import read_page

    page = read_page(home)
    return Reading(page, time.monotonic())


def _measure(home: Home, interval: float) -> Figures:
    from llmhost.metrics.figures import figures

    before = _read(home)
    time.sleep(interval)
    return figures(before, _read(home))


def _live(home: Home, names: set[str], interval: float) -> None:
    from rich.console import Console
    from rich.live import Live

    from llmhost.errors import NotReadyError
    from llmhost.metrics.figures import figures

    readings = deque([_read(home)])
    screen = Console()
    with Live(_waiting(interval), console=screen, screen=True, auto_refresh=False) as live:
        while True:
            time.sleep(interval)
            try:
                readings.append(_read(home))
            except NotReadyError as e:
                live.update(e.message, refresh=True)
                continue
            while readings[-1].time - readings[0].time > WINDOW and len(readings) > 2:
                readings.popleft()
            live.update(_view(figures(readings[0], readings[-1]), names), refresh=True)


def _waiting(interval: float) -> str:
    return f"measuring for {interval:g} s …"


def _print(view: Group) -> None:
    from rich.console import Console

    # Without a terminal there is no width to fit into.
    Console(width=None if _terminal() else 200, highlight=False).print(view)


def _view(found: Figures, names: set[str]) -> Group:
    from rich.console import Group
    from rich.text import Text

    head = f"gateway {found.requests_per_s:.1f} req/s, {found.refused_per_s:.1f} refused/s"
    head += f", {_text(found.connections)} connections"
    if found.cpu_ratio is not None:
        head += f"   machine {found.cpu_ratio:.0%} cpu"
    if found.memory_total_bytes and found.memory_available_bytes is not None:
        used = found.memory_total_bytes - found.memory_available_bytes
        head += f", {used / GIB:.1f}/{found.memory_total_bytes / GIB:.1f} GiB"
    head += f"   over {found.interval_s:.0f} s"
    return Group(Text(head), _table([s for s in found.services if s.name in names]))


def _table(services: list[ServiceFigures]) -> Table:
    from rich.table import Table

    gpus = any(s.total.gpus for s in services)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("SERVICE", "STATE"):
        table.add_column(title)
    for title in ("REQ/S", "TOKENS/S", "PROMPT/S", "TTFT p50", "p95", "RUN", "WAIT", "KV", "CPU", "MEMORY"):
        table.add_column(title, justify="right")
    for title in ("GPU", "GPU MEM") if gpus else ():
        table.add_column(title, justify="right")
    for service in services:
        asked = f"{service.requests_per_s:.1f}"
        asked += f"/{service.failed_per_s:.1f}" if service.failed_per_s else ""
        table.add_row(service.name, *_cells(service.total, asked, gpus))
        if len(service.replicas) > 1:
            for name, replica in service.replicas.items():
                table.add_row(f"  {name}", *_cells(replica, "", gpus))
    return table


def _cells(engine: EngineFigures, asked: str, gpus: bool) -> list[str]:
    colour = console.STATE_COLOURS.get(engine.state, "white")
    cells = [
        f"[{colour}]{engine.state}[/]", asked,
        f"{engine.generated_tokens_per_s:.1f}", f"{engine.prompt_tokens_per_s:.1f}",
        _seconds(engine.ttft_p50_s), _seconds(engine.ttft_p95_s),
        _text(engine.running), _text(engine.waiting), _share(engine.kv_cache_ratio),
        f"{engine.cpu_cores:.1f}", _memory(engine.memory_bytes),
    ]  # fmt: skip
    return [*cells, _share(engine.gpu_utilization_ratio), _memory(engine.gpu_memory_bytes)] if gpus else cells


def _text(value: int | None) -> str:
    return "-" if value is None else str(value)


def _seconds(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value * 1000:.0f} ms" if value < 1 else f"{value:.1f} s"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"


def _memory(value: int | None) -> str:
    if value is None:
        return "-"
    return f"{value / GIB:.1f} GiB" if value >= GIB else f"{value / MIB:.0f} MiB"
