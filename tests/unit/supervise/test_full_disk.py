"""supervisord's log files when nothing can be written any more, for which a limit of the file size stands in."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

SCRIPT = """
    import os, resource, signal, sys
    sys.path.insert(0, sys.argv[2])
    from llmhost.supervise.supervisord import RotatingFile
    from supervisor.loggers import Logger

    path = sys.argv[1]
    log = Logger(handlers=[RotatingFile(path, maxBytes=3000, backupCount=2)])
    log.handlers[0].setFormat("%(message)s")
    log.handlers[0].setLevel(0)

    def allow(size):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    log.info(b"first\\n")
    allow(2900)
    for _ in range(500):
        log.info(b"x" * 99 + b"\\n")
    full = os.path.getsize(path)
    allow(resource.RLIM_INFINITY)
    for n in range(100):
        log.info(b"after %d\\n" % n)
    log.close()
    print(full)
"""


def test_lines_are_lost_nothing_is_said_and_it_goes_on_when_there_is_room(tmp_path: Path) -> None:
    log = tmp_path / "log"
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(SCRIPT), str(log), str(Path(__file__).parents[3])],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert int(done.stdout) == 2900
    kept = "".join(p.read_text() for p in sorted(tmp_path.iterdir(), reverse=True))
    assert kept.startswith("first\n")
    assert kept.endswith("".join(f"after {n}\n" for n in range(50, 100)))
