"""Tables of measured figures in the pages of docs/, each between two comments that carry its name."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]


def replaced(page: str, name: str, text: str, command: str) -> str:
    """The page with the part between the comments of this name replaced; raises ValueError when they are not there.

    ``command`` is what measured it, as it can be run again.
    """
    begin, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
    if page.count(begin) != 1 or end not in page.partition(begin)[2]:
        raise ValueError(f"the page has no part {begin.strip()} … {end}")
    before, _, rest = page.partition(begin)
    _, _, after = rest.partition(end)
    machine = f"{os.cpu_count()} cores, Linux {platform.release()}, Python {platform.python_version()}"
    return f"{before}{begin}Measured by `{command}` on {machine}.\n\n{text}{end}{after}"


def write(page: Path, name: str, text: str, command: str) -> None:
    """Replace that part of a file."""
    page.write_text(replaced(page.read_text(encoding="utf-8"), name, text, command), encoding="utf-8")


def table(head: Sequence[str], rows: Iterable[Sequence[object]], numbers: int) -> str:
    """As Markdown; the last so many columns are numbers."""
    rule = ["---"] * (len(head) - numbers) + ["---:"] * numbers
    return "".join([row(head), f"|{'|'.join(rule)}|\n", *map(row, rows)])


def row(cells: Iterable[object]) -> str:
    return f"| {' | '.join(map(str, cells))} |\n"
