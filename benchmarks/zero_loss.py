"""What every kind of change of a running home costs a client that asks at a steady rate.

    python benchmarks/zero_loss.py [--write] [--only TEXT]
    python benchmarks/zero_loss.py --vllm HOME [--write]

Through real supervisord and Envoy. By default a fake engine stands in for vLLM, each change is made in a home of its
own, and the changes are those of `tests/integration/workflow/changes.py`. With --vllm a shorter list is lived through
in one home, with the engine that lies in HOME and the demo's chat model. Prints a markdown table, --write puts it into
docs/operations.md. Half of the requests are short, the others are streams that overlap. The longest wait is that of
any request for the beginning of its answer, counted from when it was due, or of any stream for its next piece. Exit
status 1 when anything was lost.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from tests import measured  # noqa: E402
from tests.integration.workflow import changes  # noqa: E402
from tests.integration.workflow.changes import Change, live_through, scene  # noqa: E402
from tests.steady import Steady  # noqa: E402

PAGE = ROOT / "docs" / "operations.md"
RATE, VLLM_RATE = 25.0, 5.0
"""Requests per second; two cores that also load an engine answer no more than a few."""
VLLM_STREAM = {"max_tokens": 32, "min_tokens": 32, "ignore_eos": True}
ARGS = "max_num_seqs: 8, dtype: float32, enforce_eager: true"
HEAD = ("change", "made by", "requests", "of them streams", "failed", "cut", "longest wait")

Row = tuple[Change, Steady]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vllm", type=Path, metavar="HOME", help="a home with an engine")
    parser.add_argument("--only", default="", metavar="TEXT", help="changes with this in their name")
    parser.add_argument("--write", action="store_true", help="put the table into docs/operations.md")
    options = parser.parse_args()
    rows = list(_shown(_with_vllm(options.vllm, options.only) if options.vllm else _with_fake(options.only)))
    if options.write:
        name, home = ("zero loss vllm", " --vllm HOME") if options.vllm else ("zero loss", "")
        text = measured.table(HEAD, [*map(_row, rows), _total(rows)], 5)
        measured.write(PAGE, name, text, f"python benchmarks/zero_loss.py{home} --write")
    return int(any(client.lost for _, client in rows))


def _with_fake(only: str) -> Iterator[Row]:
    for change in (changes.NOTHING, *changes.CHANGES):
        if only in change.name:
            with scene() as there:
                yield change, live_through(there, change, Steady(there.installed.port, changes.ASKED, RATE))


def _with_vllm(home: Path, only: str) -> Iterator[Row]:
    with scene((home / "engines").resolve()) as there:
        for change in vllm_changes():
            if only in change.name:
                client = Steady(there.installed.port, changes.ASKED, VLLM_RATE, stream=VLLM_STREAM)
                yield change, live_through(there, change, client)


def vllm_changes() -> tuple[Change, ...]:
    """In an order in which little has to be started: each begins where the one before ended."""
    one, two, edited = vllm_chat(), vllm_chat("replicas: 2"), vllm_chat("env: {EDITED: '1'}")
    both = f"{one}embedding: {{model: 'demo:embed', args: {{{ARGS}}}}}\n"
    return (
        replace(changes.NOTHING, before=one),
        Change("add a service", one, both),
        Change("remove a service", both, one),
        Change("1 replica → 2", one, two),
        Change("restart, 2 replicas", two, None, ("restart", "--rolling", "chat")),
        Change("2 replicas → 1", two, one),
        Change("edit a service with 1 replica", one, edited, ("up", "--surge")),
        Change("restart, 1 replica", edited, None, ("restart", "--surge", "chat")),
        replace(changes.ROTATE_KEY, before=edited),
        replace(changes.NEW_CERTIFICATE, before=edited),
    )


def vllm_chat(more: str = "") -> str:
    """The demo's chat model, under the name that the client asks for."""
    args = f"args: {{max_model_len: 2048, {ARGS}}}"
    return changes.chat(f"{args}, {more}" if more else args).replace("MODEL", "'demo:chat'")


def _shown(rows: Iterable[Row]) -> Iterator[Row]:
    """Print each when it is there."""
    print(measured.table(HEAD, (), 5), end="")
    for row in rows:
        print(measured.row(_row(row)), end="", flush=True)
        for lost in row[1].lost[:5]:
            print(f"    {lost}", file=sys.stderr)
        yield row


def _row(row: Row) -> tuple[object, ...]:
    change, client = row
    made = change.shown or f"`{' '.join(change.command)}`"
    return (change.name, made, client.count, client.streams, len(client.failed), len(client.cut), _waited(client))


def _waited(client: Steady) -> str:
    return f"{client.longest:.2f} s"


def _total(rows: Iterable[Row]) -> tuple[object, ...]:
    clients = [client for _, client in rows]
    counts = ((c.count, c.streams, len(c.failed), len(c.cut)) for c in clients)
    numbers = [sum(column) for column in zip(*counts, strict=True)]
    return ("together", "", *numbers, _waited(max(clients, key=lambda c: c.longest)))


if __name__ == "__main__":
    sys.exit(main())
