"""Faults of a home and of the machine around it."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from llmhost.paths import Home
from llmhost.supervise.guarding.processes import pids, read, running, state
from tests.faults.conftest import HANG_TIMEOUT, Town, make_town, record, tear_down, wait_for
from tests.integration.workflow.conftest import Installed, leftovers

pytestmark = pytest.mark.integration


def test_kill_of_supervisord(fresh: Town) -> None:
    """Without systemd: everything follows, and the next `up` brings it back."""
    fresh.up("--core --children 1 --stubborn-children")
    os.kill(fresh.installed.pids()["supervisor"], signal.SIGKILL)
    begin = time.monotonic()
    wait_for(lambda: not [line for line in leftovers(fresh.home) if not line.startswith(str(fresh.home.root))])
    gone = time.monotonic() - begin
    assert fresh.installed.status()["supervisor"]["state"] == "stopped"
    fresh.installed.run("up")
    assert fresh.answers()
    record("kill -9 of supervisord", "guards, engines and gateway follow; `up` (or systemd) brings all back",
           noticed=gone, recovered=time.monotonic() - begin)  # fmt: skip


def test_supervisord_is_stopped_by_a_signal(fresh: Town) -> None:
    """What runs goes on, and `down` still leaves nothing."""
    fresh.up()
    pid = fresh.installed.pids()["supervisor"]
    with fresh.client() as beside:
        os.kill(pid, signal.SIGSTOP)
        engine = fresh.says()["engine_pid"]
        os.kill(engine, signal.SIGKILL)  # its guard sees to it, whoever is stopped
        wait_for(lambda: fresh.says()["engine_pid"] not in (None, engine) and fresh.says()["state"] == "ready")
    begin = time.monotonic()
    said = fresh.installed.run("down").stderr
    held = f"services go on, a killed engine is restarted; `down` wakes it and leaves nothing; {beside.told()}"
    record("SIGSTOP of supervisord", held, recovered=time.monotonic() - begin)
    assert f"({pid}) was stopped (SIGSTOP)" in said
    assert leftovers(fresh.home) == []


def test_two_homes_on_one_machine(fresh: Town) -> None:
    directory = Path(tempfile.mkdtemp(prefix="lh", dir="/tmp"))
    other = make_town(directory)
    try:
        fresh.up()
        other.up()
        before = other.installed.pids()
        with other.client() as beside:
            os.kill(fresh.installed.pids()["gateway"], signal.SIGKILL)
            for program in ("harmed-0", "beside-0"):
                os.kill(fresh.says(program)["guard_pid"], signal.SIGKILL)
            wait_for(lambda: fresh.says().get("restarts") == 1 and fresh.says()["state"] == "ready")
            os.kill(fresh.installed.pids()["supervisor"], signal.SIGKILL)
            fresh.installed.run("down")
            fresh.installed.run("doctor", "--sweep")
        assert other.installed.pids() == before
        held = beside.told().replace("beside it", "in the other one")
        record("two homes: everything of one is killed", f"the other one does not notice; {held}")
    finally:
        tear_down(other)
        shutil.rmtree(directory)


def test_the_port_is_taken_while_down(fresh: Town) -> None:
    fresh.up()
    fresh.installed.run("down")
    with socket.socket() as thief:
        thief.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        thief.bind(("127.0.0.1", fresh.installed.port))
        thief.listen()
        error, _ = fresh.installed.refused("up")
        assert f"port {fresh.installed.port} on 127.0.0.1 is in use by" in error
    begin = time.monotonic()
    fresh.installed.run("up")
    record("port taken while down", "`up` names the owner and starts nothing; works when it is free",
           recovered=time.monotonic() - begin)  # fmt: skip


HARMLESS = (("up",), ("up",), ("stop", "harmed"), ("restart", "harmed"), ("start",))
"""Commands that concern one service, so that nobody who uses the other one may notice."""


def test_commands_that_are_killed_at_any_moment(fresh: Town) -> None:
    """Whatever they leave, the next command understands it; the seed is fixed, so that a failure can be seen again."""
    chance = random.Random(6)
    fresh.up()
    rounds = 12
    with fresh.client() as beside:
        for n in range(rounds - 4):
            _kill_on_its_way(fresh, n, chance.choice(HARMLESS), chance)
    for n in range(4):
        _kill_on_its_way(fresh, n, chance.choice([("down",), ("restart",), ("up",)]), chance)
    begin = time.monotonic()
    fresh.installed.run("up")
    fresh.installed.run("status")
    assert fresh.answers()
    assert json.loads(fresh.installed.run("doctor", "--json").stdout)["ok"] is True
    held = f"the next `up` has everything ready; {beside.told()} until all was restarted, too"
    record(f"kill -9 of {rounds} commands at random moments", held, recovered=time.monotonic() - begin)


def _kill_on_its_way(town: Town, n: int, command: tuple[str, ...], chance: random.Random) -> None:
    town.write("--core" if n % 2 else "--core --children 1")  # so that there is something to change
    with town.installed.popen(*command) as killed:
        time.sleep(chance.uniform(0.2, 2.5))
        killed.kill()
        killed.communicate()
    assert town.installed.status()["supervisor"]["state"] in ("running", "stopping", "stopped")


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """A file system of a few megabytes below a short path; needs root."""
    directory = Path(tempfile.mkdtemp(prefix="lh", dir="/tmp"))
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24m", "lhfaults", str(directory)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        directory.rmdir()
        pytest.skip(f"cannot mount a tmpfs: {mounted.stderr.decode().strip()}")
    yield directory
    subprocess.run(["umount", str(directory)], check=True)
    directory.rmdir()


@contextmanager
def full(directory: Path) -> Iterator[None]:
    """No byte is left on this file system."""
    fill(directory)
    try:
        yield
    finally:
        (directory / "filler").unlink()


def fill(directory: Path) -> bool:
    """Take every byte that is left; always true."""
    with (directory / "filler").open("ab") as file:
        for size in (2**20, 2**12, 1):
            with contextlib.suppress(OSError):
                while True:
                    os.write(file.fileno(), b"x" * size)
    return True


def test_a_disk_that_the_kernel_made_read_only(small_disk: Path) -> None:
    """What runs goes on; whatever stops something works, and whatever starts something says so before it stops it."""
    town = make_town(small_disk)
    try:
        town.up()
        with town.client() as beside, read_only(small_disk):
            before = town.installed.pids()
            assert "disk        read-only: services go on" in town.installed.run("status").stdout
            for command in (("restart", "harmed"), ("start",)):
                error, _ = town.installed.refused(*command)
                assert "on a file system that is read-only" in error
            assert town.installed.refused("up")[0].endswith("Read-only file system")
            assert "on a file system that is read-only" in town.installed.run("doctor", ok=1).stdout
            assert town.installed.pids() == before
            said = town.installed.run("stop", "harmed").stderr
            assert "Read-only file system: what is stopped now starts again with the machine" in said
            assert {s["name"]: s["state"] for s in town.installed.status()["services"]}["harmed"] == "stopped"
            held = f"services go on, `stop` and `down` work, nothing else changes anything; {beside.told()}"
        with read_only(small_disk):
            town.installed.run("down")
            assert [line for line in leftovers(town.home) if not line.startswith(str(town.home.root))] == []
        record("disk read-only", held)
    finally:
        tear_down(town)


@contextmanager
def read_only(directory: Path) -> Iterator[None]:
    """For every command; what has a file open already goes on to write it, which the kernel would not let it do."""
    subprocess.run(["mount", "--bind", str(directory), str(directory)], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", str(directory)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(directory)], check=True)


def test_a_guard_that_is_stopped_by_a_signal(fresh: Town) -> None:
    """Nobody watches the engine then, which `status` says, as it says when the engine ends."""
    fresh.up()
    guard, engine = fresh.process("guard"), fresh.process("API server")
    with fresh.client() as beside:
        os.kill(guard, signal.SIGSTOP)
        wait_for(lambda: state(guard) == "T")
        told = f"harmed-0: its guard ({guard}) is stopped by a signal"
        assert told in fresh.installed.run("status").stdout
        assert fresh.answers()
        os.kill(engine, signal.SIGKILL)
        wait_for(lambda: not running(engine))
        said = fresh.installed.run("status", ok=3).stdout
        assert "harmed-0: the engine has ended; its guard" in said
        assert {s["name"]: s["state"] for s in fresh.installed.status()["services"]}["harmed"] == "unhealthy"
        begin = time.monotonic()
        fresh.installed.run("restart", "harmed")  # tells it to go on
        assert fresh.answers()
        seconds = time.monotonic() - begin
    held = f"`status` says that nobody watches, and that the engine has ended; `restart` mends it; {beside.told()}"
    record("SIGSTOP of the guard, kill -9 of its engine", held, recovered=seconds)


def test_a_full_disk(small_disk: Path) -> None:
    """Services go on, whatever cannot be written; an engine that is killed meanwhile is started again."""
    town = make_town(small_disk)
    try:
        town.up()
        with (
            town.fault(
                "disk full during the run (state, logs)", "services go on, a killed engine is restarted"
            ) as fault,
            full(small_disk),
        ):
            engine = town.process("API server")
            fault.now()
            os.kill(engine, signal.SIGKILL)
            # What the end of the engine sets free is taken at once, as by somebody who writes all the time.
            wait_for(lambda: fill(small_disk) and town.says().get("restarts") == 1)
            wait_for(lambda: fill(small_disk) and town.answers())
            fault.seconds["recovered"] = time.monotonic() - fault.begin
            wait_for(lambda: fill(small_disk) and town.says().get("state") == "ready")
        with town.fault("disk full during `up` (render)", "one error, old files whole, nothing restarted") as fault:
            before, config = town.installed.pids(), town.home.plan_file.read_bytes()
            town.write("--core --children 1")
            with full(small_disk):
                error, _ = town.installed.refused("up")
                assert "No space left on device" in error
            assert town.home.plan_file.read_bytes() == config
            assert town.installed.pids() == before
            town.installed.run("up")
        with town.client() as beside:
            with full(small_disk):
                said = town.installed.run("stop", "harmed").stderr
                assert "stopped.json: No space left on device: what is stopped now starts again" in said
                assert {s["name"]: s["state"] for s in town.installed.status()["services"]}["harmed"] == "stopped"
            town.installed.run("start", "harmed")
            assert town.answers()
        record("disk full during `stop`", f"it stops, and says what it cannot remember; {beside.told()}")
        with full(small_disk):
            town.installed.run("down")
            assert leftovers(town.home) == []
    finally:
        tear_down(town)


def test_the_clock_jumps(fresh: Town, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A day forward and two back: nothing restarts for it, and back-off takes no longer."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler to build a clock that jumps")
    library, offset = place / "realtime.so", place / "offset"
    source = Path(__file__).parent / "realtime.c"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"], check=True)
    offset.write_text("0")
    monkeypatch.setenv("LD_PRELOAD", str(library))
    monkeypatch.setenv("REALTIME_OFFSET", str(offset))
    fresh.up()
    monkeypatch.delenv("LD_PRELOAD")
    before = fresh.installed.pids()
    with fresh.fault("clock jumps a day forward and two back", "nothing restarts; back-off as ever") as fault:
        for seconds in (86400, -86400):
            offset.write_text(str(seconds))
            for _ in range(20):
                assert fresh.answers()
                time.sleep(0.1)
        assert fresh.installed.pids() == before
        fault.now()
        os.kill(fresh.process("API server"), signal.SIGKILL)
        assert abs(fault.noticed(state="backoff")["since"] - time.time() + 86400) < 3600  # it did jump
        fault.recovered()


def test_the_network_is_gone(place: Path) -> None:
    """Engines are reached through unix sockets; the loopback, too, may go and come back."""
    with subprocess.Popen(["unshare", "--net", "sleep", "600"], stderr=subprocess.PIPE) as holder:
        wait_for(lambda: holder.poll() is not None or read(f"/proc/{holder.pid}/comm").strip() == b"sleep")
        if holder.poll() is not None:
            assert holder.stderr is not None
            pytest.skip(f"no network namespace: {holder.stderr.read().decode().strip()}")
        inside = ("nsenter", "--net", "--target", str(holder.pid))
        try:
            subprocess.run([*inside, "ip", "link", "set", "lo", "up"], check=True)
            _without_network(place, inside)
        finally:
            holder.kill()


def _without_network(place: Path, inside: tuple[str, ...]) -> None:
    class Inside(Installed):
        def command(self, *args: str) -> list[str]:
            return [*inside, sys.executable, "-m", "llmhost", "--home", str(self.home.root), *args]

    town = make_town(place)
    town = Town(Inside(Home(place / "h"), town.installed.port))
    try:
        town.up()
        before = town.installed.pids()
        subprocess.run([*inside, "ip", "link", "set", "lo", "down"], check=True)
        time.sleep(HANG_TIMEOUT)
        assert {s["state"] for s in town.installed.status()["services"]} == {"ready"}
        subprocess.run([*inside, "ip", "link", "set", "lo", "up"], check=True)
        begin = time.monotonic()
        ask = [*inside, "curl", "-sf", f"http://127.0.0.1:{town.installed.port}/v1/embeddings", "-d",
               '{"model": "beside", "input": "hi"}', "-H", "Content-Type: application/json"]  # fmt: skip
        wait_for(lambda: subprocess.run(ask, capture_output=True, check=False).returncode == 0)
        assert town.installed.pids() == before
        record("network gone, the loopback too", "nothing restarts; served as soon as it is back",
               recovered=time.monotonic() - begin)  # fmt: skip
    finally:
        tear_down(town)


@pytest.fixture
def little_memory() -> Iterator[Path]:
    """A memory control group below our own (version 1 or 2) that processes can be put into."""
    roots = [Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")]
    lines = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
    for root in roots:
        ours = next((path for _, name, path in lines if name == ("memory" if root.name == "memory" else "")), "/")
        group = root / ours.lstrip("/") / f"lhfaults{os.getpid()}"
        limit = "memory.limit_in_bytes" if root.name == "memory" else "memory.max"
        try:
            group.mkdir()
            (group / limit).write_text(str(64 * 2**20))
        except OSError:
            if group.is_dir():
                group.rmdir()
            continue
        yield group
        wait_for(lambda: not (group / "cgroup.procs").read_text())  # noqa: B023
        group.rmdir()
        return
    pytest.skip("no control group for memory that we may write")


def test_oom_kill(fresh: Town, little_memory: Path) -> None:
    """By the kernel, of an engine that takes more than it may have."""
    fresh.up()
    with fresh.fault("OOM kill by the kernel", "restarted") as fault:
        engine = fresh.process("API server")
        (little_memory / "cgroup.procs").write_text(str(engine))
        fault.now()
        request = b'POST /fake/allocate HTTP/1.1\r\nHost: x\r\nContent-Length: 17\r\n\r\n{"megabytes": 99}'
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(fresh.home.engine_socket("harmed-0")))
            connection.sendall(request)
            assert fault.noticed(state="backoff")["exit"]["signal"] == "SIGKILL"
        fault.recovered()


def processes_of(home: Home) -> int:
    """How many processes name this home on their command line or in their mark."""
    name = str(home.root).encode()
    return sum(name in read(f"/proc/{pid}/cmdline") + read(f"/proc/{pid}/environ") for pid in pids())
