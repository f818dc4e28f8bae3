"""Checks of a home: who may look into it, and whether what should run there can be reached."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import psutil

from llmhost.diagnosis.findings import Check, fail, ok, warn
from llmhost.diagnosis.gpus import Holder
from llmhost.errors import LlmhostError, SupervisorError
from llmhost.facts import GpuProcess
from llmhost.homedir import is_ours, require_claimable
from llmhost.paths import Home
from llmhost.supervise import daemon, owned
from llmhost.supervise.leftovers import Leftovers
from llmhost.supervise.rpc import Supervisor
from llmhost.supervise.units import owner

ANSWER_SECONDS = 5.0
"""Seconds for supervisord to say how it is."""


def check_home(home: Home) -> Iterator[Check]:
    """It can be used, is this user's, and what is private there is."""
    try:
        require_claimable(home)
    except LlmhostError as e:
        yield fail("home", e.message, e.hint)
        return
    if not is_ours(home):
        yield ok("home", f"{home.root} is not there yet; `llmhost init` and `llmhost up` make it")
        return
    problems = [*_ownership(home), *_open(home), *_unpacked(home)]
    yield from problems
    if not problems:
        yield ok("home", str(home.root))


def _ownership(home: Home) -> Iterator[Check]:
    uid = home.root.stat().st_uid
    if uid != os.geteuid():
        yield warn(
            "home",
            f"{home.root} belongs to {owner(home)}, and this is another user",
            f"run llmhost as {owner(home)}: what another one writes there, that one cannot replace",
        )
    elif os.statvfs(home.root).f_flag & os.ST_RDONLY:
        yield fail("home", f"{home.root} is on a file system that is read-only", "see `dmesg` and `mount`")
    elif not os.access(home.root, os.W_OK | os.X_OK):
        yield fail("home", f"{home.root} cannot be written to", f"`chmod u+rwx {home.root}`")


def _open(home: Home) -> Iterator[Check]:
    if home.root.stat().st_mode & stat.S_IWOTH:
        yield fail(
            "home", f"everybody may write into {home.root}, and so run code as its owner", f"`chmod o-w {home.root}`"
        )
    private = (home.conf, home.run, home.logs, home.keys_file, *sorted(home.conf.glob("guard/*.json")))
    for path in private:
        if (mode := _mode(path)) & 0o077:
            what = "look into" if path.is_dir() else "read"
            yield warn(
                "home", f"others may {what} {path} (mode {mode:o}), which may hold secrets", f"`chmod go= {path}`"
            )


def _unpacked(home: Home) -> Iterator[Check]:
    """What `llmhost bundle install` has in the home while it works (`llmhost.bundle.carried.unpacked_dir`)."""
    for path in sorted(home.root.glob(".bundle-*")):
        yield warn(
            "home",
            f"{path} is what an unfinished installation of a bundle has unpacked",
            f"run that again, it goes on from there; or `rm -r {path}`",
        )


def _mode(path: Path) -> int:
    try:
        return stat.S_IMODE(path.stat().st_mode)
    except OSError:
        return 0


def check_supervisord(home: Home) -> Check:
    """supervisord answers, where it runs."""
    if not daemon.is_running(home):
        return ok("supervisord", "not running")
    try:
        state = Supervisor(home.supervisor_socket, ANSWER_SECONDS).state()
    except SupervisorError as e:
        log = home.log_file("supervisord")
        return fail(
            "supervisord",
            f"it runs, and does not answer: {e.message}",
            f"`llmhost down` ends it, `llmhost up` starts everything again; its log is {log}",
        )
    return ok("supervisord", f"running, and it answers ({state.lower()})")


def check_leftovers(found: Leftovers) -> Iterator[Check]:
    """What a former life left."""
    for pid, command in found.processes.items():
        yield fail("leftovers", f"process {pid}  {command}{since_words(pid)}", "`llmhost doctor --sweep` ends it")
    for path in found.files:
        yield fail("leftovers", f"file {path}", "`llmhost doctor --sweep` removes it")
    if not found:
        yield ok("leftovers", "nothing is left of a former life")


def since_words(pid: int) -> str:
    """`` (since 2026-01-31 12:00)``."""
    started = since(pid)
    return f" (since {started:%Y-%m-%d %H:%M})" if started else ""


def since(pid: int) -> datetime | None:
    """When a process started, local time; None when it is gone or not ours to see."""
    try:
        return datetime.fromtimestamp(psutil.Process(pid).create_time()).astimezone()
    except psutil.Error:
        return None


def holders(home: Home, processes: tuple[GpuProcess, ...], found: Leftovers) -> list[Holder]:
    """Who holds memory of GPUs, without the engines of this home that run in order.

    In a container the driver may tell process ids that mean nothing in it: while engines run, those are taken for them.
    """
    ours = owned.descendants(home)
    ours |= {p.pid for p in processes if ours and not psutil.pid_exists(p.pid)}
    return [
        Holder(p.pid, p.gpu, p.used, _name(p.pid), since(p.pid), p.pid in found.processes)
        for p in processes
        if p.pid not in ours
    ]


def _name(pid: int) -> str:
    try:
        return psutil.Process(pid).name()
    except psutil.Error:
        return "a process that this user cannot see"
