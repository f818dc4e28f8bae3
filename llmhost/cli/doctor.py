"""`llmhost doctor`: what a former life left, and how to get rid of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from llmhost.cli import Session, console

if TYPE_CHECKING:
    from llmhost.supervise.leftovers import Leftovers


@click.command("doctor")
@click.option("--sweep", is_flag=True, help="Kill these processes and delete these files.")
@click.option("--json", "as_json", is_flag=True, help="As JSON: {ok, swept, processes: [{pid, command}], files}.")
@click.pass_obj
def doctor_command(session: Session, sweep: bool, as_json: bool) -> int:
    """Look for leftovers of a former life: engines whose guard is dead, their shared memory, sockets without a server.

    They are there when something was killed that could not clean up, and they may hold GPU memory. `llmhost up`,
    `start` and `down` remove what is in their way by themselves. What runs in order is never touched. Exit status 1
    when something was found and left.
    """
    from llmhost.homedir import is_ours
    from llmhost.supervise import leftovers
    from llmhost.supervise.lock import home_lock, on_wait

    found = leftovers.Leftovers({}, ())
    if is_ours(session.home):
        on_wait.set(console.remark)
        with home_lock(session.home, "doctor"):
            found = leftovers.find(session.home)
            if sweep:
                leftovers.remove(found)
    if as_json:
        console.json_result(
            {
                "ok": sweep or not found,
                "swept": sweep,
                "processes": [{"pid": pid, "command": command} for pid, command in found.processes.items()],
                "files": [str(path) for path in found.files],
            }
        )
    else:
        _show(found, sweep)
    return 1 if found and not sweep else 0


def _show(found: Leftovers, sweep: bool) -> None:
    for pid, command in found.processes.items():
        console.result(f"{'killed' if sweep else 'process'} {pid}  {command}")
    for path in found.files:
        console.result(f"{'removed' if sweep else 'file'} {path}")
    if not found:
        console.result("nothing is left of a former life")
    elif not sweep:
        console.remark("`llmhost doctor --sweep` removes all of this")
