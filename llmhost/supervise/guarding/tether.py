"""Commands that need no guard but must end together with supervisord.

`tether` costs nothing: it asks the kernel for SIGTERM on the death of supervisord, and becomes the command. `keep`
stays as its parent, to start it again at once (the gateway): supervisord looks at its children once a second, which is
longer than clients go on trying. Meanwhile it looks after certificates (`llmhost.supervise.guarding.refresh`).
"""

from __future__ import annotations

import os
import signal
import time

from llmhost.supervise.guarding.kernel import PR_SET_PDEATHSIG, prctl
from llmhost.supervise.guarding.processes import kill, say
from llmhost.supervise.guarding.refresh import SECONDS, Refresher

GOOD_SECONDS = 1.0
"""A command that ends sooner is left to supervisord, which knows when to give up."""

STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)


def main(argv: list[str]) -> int:
    """The exit status of ``--exec -- COMMAND…`` or ``--keep LISTING -- COMMAND…``."""
    match argv:
        case ["--keep", listing, "--", command, *arguments]:
            return keep([command, *arguments], Refresher(listing))
        case ["--exec", "--", command, *arguments]:
            return tether([command, *arguments])
    say("usage: guard.py --exec -- COMMAND… | --keep LISTING -- COMMAND…")
    return 127


def tether(command: list[str]) -> int:
    """Never returns when all goes well; 127 when the command cannot be run."""
    supervisor = os.getppid()
    prctl(PR_SET_PDEATHSIG, signal.SIGTERM)  # survives exec
    if os.getppid() != supervisor:
        return 0
    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores them, which would be inherited
        signal.signal(number, signal.SIG_DFL)
    try:
        os.execvp(command[0], command)
    except OSError as e:
        say(f"cannot run {command[0]}: {e.strerror}")
    return 127


def keep(command: list[str], certificates: Refresher) -> int:
    """Run a command and start it again when it ends although nobody wants it to; its exit status in the end."""
    supervisor = os.getppid()
    keeper = _Keeper(certificates)
    prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != supervisor:
        return 0
    while True:
        begin = time.monotonic()
        status = keeper.run(command)
        if keeper.stop_wanted or time.monotonic() - begin < GOOD_SECONDS:
            return status
        say(f"{os.path.basename(command[0])} ended with status {status} and is started again")


class _Keeper:
    def __init__(self, certificates: Refresher) -> None:
        self.certificates = certificates
        self.child = 0
        self.stop_wanted = False
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})  # waited for, with a time
        for number in STOPS:
            signal.signal(number, self._on_stop)

    def _on_stop(self, number: int, _: object) -> None:
        self.stop_wanted = True
        if self.child:
            kill(self.child, number)

    def run(self, command: list[str]) -> int:
        signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)  # a stop must not fall between fork and the note of it
        if self.stop_wanted:
            return 0
        self.child = os.fork()
        if self.child == 0:
            for number in STOPS:
                signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {*STOPS, signal.SIGCHLD})
            os._exit(tether(command))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)
        code = os.waitstatus_to_exitcode(self._wait())
        self.child = 0
        return code if code >= 0 else 128 - code

    def _wait(self) -> int:
        """The status of the child, when it has ended."""
        while True:
            pid, status = os.waitpid(self.child, os.WNOHANG)
            if pid:
                return status
            signal.sigtimedwait({signal.SIGCHLD}, SECONDS)
            self.certificates.look()
