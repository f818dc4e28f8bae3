"""How fast `llmhost status` and `llmhost --help` are, against `supervisorctl status` and a bare `import click`.

Run: python benchmarks/status.py [--programs 3 100] [--rounds 15]. Prints a markdown table. Programs are sleepers under
a real supervisord, with a plan and the state files that their guards would have written. All commands are run in turn
in each round, so that a busy machine slows all of them; what is shown is the median of the rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from llmhost.facts import Tools  # noqa: E402
from llmhost.paths import Home  # noqa: E402
from llmhost.plan import stored  # noqa: E402
from llmhost.plan.types import EnginePlan, GatewayPlan, Plan, ProgramPlan, ServicePlan  # noqa: E402
from llmhost.supervise import daemon, lifecycle  # noqa: E402
from llmhost.supervise.status import read_status  # noqa: E402

CONF = """\
[unix_http_server]
file={socket}
[supervisord]
logfile={log}
pidfile={pid}
[rpcinterface:supervisor]
supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface
[supervisorctl]
serverurl=unix://{socket}
"""
PROGRAM = "[program:{name}]\ncommand=sleep 100000\nautostart=false\nstartsecs=0\nstdout_logfile=NONE\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--programs", type=int, nargs="+", default=[3, 100])
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    print("| what | llmhost | against | ratio |\n|---|---|---|---|")
    for count in options.programs:
        with running(count) as home:
            ours = script("llmhost.__main__", "--home", str(home.root), "status")
            theirs = script("supervisor.supervisorctl", "-c", str(home.supervisord_conf), "status")
            row(f"`status`, {count} programs", ours, "`supervisorctl status`", theirs, options.rounds)
    row(
        "`--help`",
        script("llmhost.__main__", "--help"),
        '`python -c "import click"`',
        (sys.executable, "-c", "import click"),
        options.rounds,
    )
    return 0


def script(module: str, *args: str) -> tuple[str, ...]:
    """What the installed console script of a package does."""
    return (sys.executable, "-c", f"import sys; from {module} import main; sys.exit(main())", *args)


def row(what: str, ours: Sequence[str], against: str, theirs: Sequence[str], rounds: int) -> None:
    """Measure two commands in turn and print them as one row."""
    times: dict[Sequence[str], list[float]] = {ours: [], theirs: []}
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    with tempfile.TemporaryDirectory() as cache:
        # As installed: both with compiled modules, which the first round makes and which does not count.
        environment["PYTHONPYCACHEPREFIX"] = cache
        for _ in range(rounds + 1):
            for command, taken in times.items():
                begin = time.perf_counter()
                subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, check=False)
                taken.append(time.perf_counter() - begin)
    mine, other = (statistics.median(taken[1:]) * 1000 for taken in times.values())
    print(f"| {what} | {mine:.0f} ms | {against} {other:.0f} ms | {mine / other:.2f} |", flush=True)


@contextmanager
def running(count: int) -> Iterator[Home]:
    """A home whose supervisord runs this many sleepers; each is ready as far as `status` can see."""
    home = Home(Path(tempfile.mkdtemp(prefix="lh", dir="/tmp")))
    try:
        names = [f"chat{n}-0" for n in range(count)]
        write(home, names)
        daemon.ensure_running(home)
        lifecycle.start(home, names)
        for state in (r for s in read_status(home).services for r in s.replicas):
            said = {"state": "ready", "guard_pid": state.pid, "engine_pid": state.pid, "restarts": 0, "error": None}
            home.state_file(state.name).write_text(json.dumps(said))
        assert all(s.state == "ready" for s in read_status(home).services)
        yield home
    finally:
        daemon.shutdown(home)
        shutil.rmtree(home.root)


def write(home: Home, names: Sequence[str]) -> None:
    """The files that `llmhost up` would have written, with sleepers for engines."""
    home.conf.mkdir()
    socket, log = home.supervisor_socket, home.log_file("supervisord")
    conf = CONF.format(socket=socket, log=log, pid=home.supervisord_pid_file)
    home.supervisord_conf.write_text(conf + "".join(PROGRAM.format(name=name) for name in names))
    plan = Plan(
        str(home.root),
        Tools(sys.executable, "guard.py", "envoy", "exporter.py"),
        EnginePlan("default", sys.executable, "cpu", "0"),
        GatewayPlan("127.0.0.1", 8000, 2**20),
        tuple(service(home, name) for name in names),
    )
    home.plan_file.write_text(json.dumps(stored.to_dict(plan)))


def service(home: Home, program: str) -> ServicePlan:
    argv = ("python", "-m", "vllm.entrypoints.openai.api_server", *(f"--flag-{n}={os.sep}value" for n in range(20)))
    replica = ProgramPlan(program, argv, {}, str(home.engine_socket(program)), (), (0,), 2**30, 2**28)
    name = program.removesuffix("-0")
    return ServicePlan(name, "chat", "", "hf:a/b", "/models/b", (name,), None, 600, 30, (replica,))


if __name__ == "__main__":
    sys.exit(main())
