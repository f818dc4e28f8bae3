"""Starting an engine: a session of its own, dead with its guard, its environment as it was planned."""

from __future__ import annotations

import os
import signal

from llmhost.supervise.guarding.kernel import PR_SET_PDEATHSIG, prctl
from llmhost.supervise.guarding.spec import Spec


def launch(spec: Spec) -> int:
    """The process id of the engine; raises OSError when it cannot be run."""
    report, report_in = os.pipe2(os.O_CLOEXEC)
    guard = os.getpid()
    engine = os.fork()
    if engine == 0:
        _become_engine(spec, guard, report_in)
    os.close(report_in)
    trouble = os.read(report, 16)  # empty when exec worked and closed the other end
    os.close(report)
    if trouble:
        raise OSError(int(trouble), os.strerror(int(trouble)))
    return engine


def _become_engine(spec: Spec, guard: int, report: int) -> None:
    """In the child. Never returns."""
    try:
        os.setsid()
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() == guard:
            for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores them, which would be inherited
                signal.signal(number, signal.SIG_DFL)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            if spec.cores:
                os.sched_setaffinity(0, spec.cores)
            # Else setproctitle, which vLLM uses, overwrites /proc/PID/environ and with it our mark.
            env = {**os.environb, b"SPT_NOENV": b"1", **spec.env}
            if spec.bin:
                env[b"PATH"] = spec.bin + b":" + env.get(b"PATH", os.defpath.encode())
            os.execvpe(spec.command[0], spec.command, env)
    except OSError as e:
        os.write(report, str(e.errno).encode())
    finally:
        os._exit(127)
