"""The guard: the small parent of every engine process.

supervisord runs it as ``<python> -I -S guard.py <spec.json> -- <engine command…>``. It takes the start locks, starts
the engine, waits until a real request works, watches it, and leaves nothing behind when the engine ends. The spec is
described at `llmhost.supervise.guarding.spec.Spec`, the state file at `llmhost.supervise.guarding.state`.

A failed engine is started again by its guard, which waits out the back-off itself. Exit status: 0 after a wanted stop
(SIGTERM, SIGINT); 78 when trying again is pointless. A guard that ended in any other way was killed, and supervisord
starts it again. Hence ``autorestart=unexpected``, ``exitcodes=0,78``, ``startsecs=0``, ``stopasgroup=false``,
``killasgroup=false``, and a ``stopwaitsecs`` of at least ``stop_timeout`` plus what `llmhost.supervise.guarding.stop`
may need.

``guard.py --exec -- <command…>`` only ties a command to the life of supervisord and becomes it; with
``--keep <listing> --`` it stays and starts the command again at once when it ends (the gateway). The listing names
certificates that the command must read again when they change; it may be missing.

This file only finds its modules: ``-I -S`` keeps site-packages, and with them memory and surprises, out.
"""

import os
import sys

if __name__ == "__main__":
    sys.path.append(os.path.abspath(os.path.join(os.path.dirname(__file__), "..", "..")))
    if sys.argv[1:2] in (["--exec"], ["--keep"]):  # without the modules of a guard, which need memory
        from llmhost.supervise.guarding.tether import main as tether

        sys.exit(tether(sys.argv[1:]))
    from llmhost.supervise.guarding.life import main

    sys.exit(main(sys.argv[1:]))
