"""Commands that need no guard but must end together with supervisord: the gateway.

`tether` costs nothing: it asks the kernel for SIGTERM on the death of supervisord, and becomes the command; with
certificates to look after, a child stays (`llmhost.supervise.guarding.refresh`). `keep` stays as its parent, to start
it again at once: supervisord looks at its children once a second, which is longer than clients go on trying.
"""

from __future__ import annotations

import os
import signal
import time

from llmhost.supervise.guarding.kernel import PR_SET_PDEATHSIG, prctl
from llmhost.supervise.guarding.processes import kill, say

GOOD_SECONDS = 1.0
"""A command that ends sooner is left to supervisord, which knows when to give up."""


def main(argv: list[str]) -> int:
    """The exit status of ``--exec [FILE…] -- COMMAND…`` or ``--keep [FILE…] -- COMMAND…``."""
    end = argv.index("--") if "--" in argv else len(argv)
    command, refreshed = argv[end + 1 :], argv[1:end]
    if not command:
        say(f"usage: guard.py {argv[0]} [FILE…] -- COMMAND…")
        return 127
    return keep(command, refreshed) if argv[0] == "--keep" else tether(command, refreshed)


def tether(command: list[str], refreshed: list[str]) -> int:
    """Never returns when all goes well; 127 when the command cannot be run."""
    supervisor = os.getppid()
    prctl(PR_SET_PDEATHSIG, signal.SIGTERM)  # survives exec
    if os.getppid() != supervisor:
        return 0
    if refreshed:
        from llmhost.supervise.guarding.refresh import start_refresher  # noqa: PLC0415 (needs memory, few need it)

        start_refresher(refreshed)
    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores them, which would be inherited
        signal.signal(number, signal.SIG_DFL)
    try:
        os.execvp(command[0], command)
    except OSError as e:
        say(f"cannot run {command[0]}: {e.strerror}")
    return 127


def keep(command: list[str], refreshed: list[str]) -> int:
    """Run a command and start it again when it ends although nobody wants it to; its exit status in the end."""
    supervisor = os.getppid()
    keeper = _Keeper()
    prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != supervisor:
        return 0
    while True:
        begin = time.monotonic()
        status = keeper.run(command, refreshed)
        if keeper.stop_wanted or time.monotonic() - begin < GOOD_SECONDS:
            return status
        say(f"{os.path.basename(command[0])} ended with status {status} and is started again")


class _Keeper:
    def __init__(self) -> None:
        self.child = 0
        self.stop_wanted = False
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
            signal.signal(number, self._on_stop)

    def _on_stop(self, number: int, _: object) -> None:
        self.stop_wanted = True
        if self.child:
            kill(self.child, number)

    def run(self, command: list[str], refreshed: list[str]) -> int:
        held = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT}
        signal.pthread_sigmask(signal.SIG_BLOCK, held)  # a stop must not fall between fork and the note of it
        if self.stop_wanted:
            return 0
        self.child = os.fork()
        if self.child == 0:
            for number in held:
                signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, held)
            os._exit(tether(command, refreshed))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, held)
        _, status = os.waitpid(self.child, 0)
        self.child = 0
        code = os.waitstatus_to_exitcode(status)
        return code if code >= 0 else 128 - code
