"""A command that ends together with supervisord but needs no guard: the gateway.

Asks the kernel for SIGTERM on the death of supervisord, then becomes the command (exec), so it costs nothing; with
certificates to look after, a child stays (`llmhost.supervise.guarding.refresh`).
"""

from __future__ import annotations

import os
import signal

from llmhost.supervise.guarding.processes import PR_SET_PDEATHSIG, prctl, say
from llmhost.supervise.guarding.refresh import start_refresher


def tether(command: list[str], refreshed: list[str]) -> int:
    """Never returns when all goes well; 127 when the command cannot be run."""
    if not command:
        say("usage: guard.py --exec -- COMMAND…")
        return 127
    supervisor = os.getppid()
    prctl(PR_SET_PDEATHSIG, signal.SIGTERM)  # survives exec
    if os.getppid() != supervisor:
        return 0
    if refreshed:
        start_refresher(refreshed)
    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores them, which would be inherited
        signal.signal(number, signal.SIG_DFL)
    try:
        os.execvp(command[0], command)
    except OSError as e:
        say(f"cannot run {command[0]}: {e.strerror}")
    return 127
