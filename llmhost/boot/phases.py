"""What the unit runs before, after and instead of supervisord. systemd ends each of them after a while by itself."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from llmhost import balancing, deploy, planning, stopping, workflow, writer
from llmhost.boot.gpus import await_gpus
from llmhost.env import Progress
from llmhost.errors import BusyError, HomeError, LlmhostError, SupervisorError
from llmhost.machine import read_running
from llmhost.paths import Home
from llmhost.stopped import not_stopped
from llmhost.supervise import daemon, lifecycle
from llmhost.supervise.lock import home_lock
from llmhost.supervise.rpc import Supervisor
from llmhost.supervise.systemd import notify

LOCK_SECONDS = 20.0
"""Seconds to wait for another llmhost command before the services are started all the same."""
STOP_LOCK_SECONDS = 10.0
"""Seconds to wait for another llmhost command before everything is stopped all the same."""

Say = Callable[[str], None]


def prepare(home: Home, say: Say) -> None:
    """Before supervisord: wait for the GPUs, take over an edited llmhost.yaml, clear away a former life.

    llmhost.yaml is read and rendered anew, which an upgrade of llmhost needs, too; when that fails, what was in force
    stays so. Raises LlmhostError when there is nothing to start or supervisord runs outside of the unit.
    """
    daemon.secure(home)
    if daemon.is_running(home):
        raise SupervisorError(
            f"supervisord of {home.root} runs already, started by hand", "run `llmhost down`, or `llmhost enable --now`"
        )
    await_gpus(home, say)
    _apply(home, say)
    daemon.clear(home)


def _apply(home: Home, say: Say) -> None:
    try:
        ask = planning.read_inputs(home, insecure=False)
        workflow.withdraw_kernels(home, ask.machine.gpus, say)
        plan = ask.plan(read_running(home))
        with home_lock(home, "boot", wait=0), deploy.present_changes(home, plan) as changes:
            if changes:
                deploy.validate(home, plan)
            writer.apply(home, changes)
    except BusyError:
        return  # an `llmhost up` has just written everything, and waits for us
    except LlmhostError as e:
        if not home.supervisord_conf.exists():
            raise
        say(f"llmhost.yaml is not applied, what was in force is started: {e.message}")


def started(home: Home) -> tuple[str, ...]:
    """After supervisord: start all programs but those that were stopped on purpose; returns their names."""
    daemon.await_answer(home)
    try:
        with home_lock(home, "boot", LOCK_SECONDS):
            wanted = _start(home)
    except BusyError:
        wanted = _start(home)  # somebody builds an engine, say: what can run does not wait for that
    notify(f"STATUS={_status(wanted)}; see `llmhost status`")
    return wanted


def _start(home: Home) -> tuple[str, ...]:
    every = [p.name for p in Supervisor(home.supervisor_socket).programs()]
    wanted = not_stopped(home, every)
    with contextlib.suppress(HomeError):  # a full disk
        balancing.restore(home)
    lifecycle.start(home, wanted)
    return wanted


def _status(wanted: tuple[str, ...]) -> str:
    return f"started {', '.join(wanted)}" if wanted else "every service was stopped on purpose"


def reload(home: Home, progress: Progress) -> tuple[str, ...]:
    """Apply llmhost.yaml to what runs; returns when everything is started, not when it is ready."""
    wanted = workflow.reload(home, progress).programs
    notify(f"STATUS={_status(wanted)}; see `llmhost status`")
    return wanted


def stop(home: Home, told: stopping.Told) -> bool:
    """Stop everything, as `llmhost down` does; False when nothing ran. Another command is not waited for long."""
    seconds = daemon.stop_limit(home) + STOP_LOCK_SECONDS
    notify(f"EXTEND_TIMEOUT_USEC={int(seconds * 1e6)}", "STATUS=stopping: running requests may finish")
    try:
        with home_lock(home, "stop", STOP_LOCK_SECONDS):
            return stopping.stop_everything(home, told)
    except BusyError:
        return stopping.stop_everything(home, told)
