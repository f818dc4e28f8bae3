"""`llmhost doctor`: what is wrong, and what to do about it; and what a former life left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from llmhost.cli import Session, console

if TYPE_CHECKING:
    from llmhost.diagnosis import Check
    from llmhost.paths import Home
    from llmhost.supervise.leftovers import Leftovers

COLOURS = {"ok": "green", "warn": "yellow", "fail": "red"}


@click.command("doctor")
@click.option(
    "--deep", is_flag=True, help="Import what an engine imports, and look for undefined symbols: half a minute."
)
@click.option("--sweep", is_flag=True, help="Kill the processes and delete the files that a former life left.")
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="As JSON: {ok, swept, checks: [{name, status, message, remedy}], processes: [{pid, command}], files}.",
)
@click.pass_obj
def doctor_command(session: Session, deep: bool, sweep: bool, as_json: bool) -> int:
    """Look at everything that a start needs: each check is ok, warn or fail, with a remedy.

    Home and its permissions, llmhost.yaml, disks, /dev/shm, limits, GPUs and their driver, who holds their memory, CUDA
    toolkits, compilers, the engine's files, models, whether all services fit, ports, supervisord, the systemd unit.

    And leftovers of a former life: engines whose guard is dead, their shared memory, sockets without a server. They
    are there when something was killed that could not clean up, and they may hold GPU memory; `--sweep` removes them
    and looks at nothing else. `llmhost up`, `start` and `down` remove what is in their way by themselves. What runs in
    order is never touched.

    Exit status 1 when a check failed; warnings are none.
    """
    found = _leftovers(session.home, sweep)
    if sweep:
        _swept(found, as_json)
        return 0
    from llmhost.doctor import examine

    checks = examine(session.home, found, deep=deep)
    failed = [check for check in checks if check.status == "fail"]
    if as_json:
        console.json_result(
            {"ok": not failed, "swept": False, "checks": [asdict(c) for c in checks], **_to_json(found)}
        )
    else:
        show_checks(checks)
        if found:
            console.remark("`llmhost doctor --sweep` removes what is left of a former life")
    return 1 if failed else 0


def _leftovers(home: Home, sweep: bool) -> Leftovers:
    from llmhost.homedir import is_ours
    from llmhost.supervise import leftovers
    from llmhost.supervise.lock import home_lock, on_wait

    if not is_ours(home):
        return leftovers.Leftovers({}, ())
    on_wait.set(console.remark)
    with home_lock(home, "doctor"):
        found = leftovers.find(home)
        if sweep:
            leftovers.remove(found)
    return found


def _to_json(found: Leftovers) -> dict[str, object]:
    return {
        "processes": [{"pid": pid, "command": command} for pid, command in found.processes.items()],
        "files": [str(path) for path in found.files],
    }


def _swept(found: Leftovers, as_json: bool) -> None:
    if as_json:
        console.json_result({"ok": True, "swept": True, **_to_json(found)})
        return
    for pid, command in found.processes.items():
        console.result(f"killed {pid}  {command}")
    for path in found.files:
        console.result(f"removed {path}")
    if not found:
        console.result("nothing is left of a former life")


def show_checks(checks: Sequence[Check]) -> None:
    """Each with its remedy, and how many went wrong."""
    width = max(len(check.name) for check in checks)
    for check in checks:
        status = click.style(f"{check.status:4}", fg=COLOURS[check.status])
        console.result(f"{status}  {check.name:{width}}  {check.message}")
        if check.remedy:
            console.result(f"{'':{6 + width}}  -> {check.remedy}")
    failed, warned = (sum(check.status == status for check in checks) for status in ("fail", "warn"))
    console.result(f"\n{len(checks)} checks: {failed or 'none'} failed, {warned or 'none'} with a warning")
