"""Processes as /proc shows them."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import termios
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection


def descendants(root: int, without: Collection[int] = ()) -> list[int]:
    """All processes below `root`, zombies included; those of `without` and what is below them are left out."""
    children: dict[int, list[int]] = {}
    for pid in pids():
        stat = read(f"/proc/{pid}/stat")
        if stat and pid not in without:  # "pid (any name) state ppid …"
            children.setdefault(int(stat.rpartition(b")")[2].split()[1]), []).append(pid)
    found = list(children.get(root, ()))
    for pid in found:  # grows while it is walked
        found += children.get(pid, ())
    return found


def marked(variable: bytes) -> list[int]:
    """The other processes that were started with this ``NAME=value`` in their environment, as far as we may look."""
    return [pid for pid in pids() if pid != os.getpid() and variable in read(f"/proc/{pid}/environ").split(b"\0")]


def title(pid: int) -> str:
    """The name that a process goes by, '' when it is gone: at most 15 bytes (``VLLM::EngineCor``)."""
    return os.fsdecode(read(f"/proc/{pid}/comm").strip())


def running(pid: int) -> bool:
    """Not gone and not a zombie."""
    return state(pid) not in ("", "Z", "X")


def state(pid: int) -> str:
    """The letter of proc_pid_stat(5): ``T`` for one that is stopped; '' when it is gone."""
    return (read(f"/proc/{pid}/stat").rpartition(b")")[2].split() or [b""])[0].decode()


def describe(pid: int) -> str:
    """A process as a message names it."""
    return f"{title(pid) or 'process'} ({pid})"


def cpu_seconds(members: Collection[int]) -> float:
    """CPU time that these processes have used so far."""
    ticks = 0
    for pid in members:
        fields = read(f"/proc/{pid}/stat").rpartition(b")")[2].split()
        if len(fields) > 12:  # proc_pid_stat(5), counted from field 3: 14 utime, 15 stime
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def connections(address: bytes) -> int:
    """How many connections a server has on its unix socket or TCP port, those included that it has not accepted yet."""
    if not address.startswith(b"/"):
        return _tcp_connections(int(address.rpartition(b":")[2] or b"0"))
    wanted = b" " + address
    # Num RefCount Protocol Flags Type St Inode Path; 03 is SS_CONNECTED, 02 what waits for accept (net/unix/af_unix.c)
    lines = (line for line in read("/proc/net/unix").splitlines() if line.endswith(wanted))
    return sum(line.split(None, 7)[5] in (b"02", b"03") for line in lines)


def _tcp_connections(port: int) -> int:
    """Local address and state are the second and the fourth column; 01 is TCP_ESTABLISHED (proc(5))."""
    lines = (read(f"/proc/net/{table}").splitlines()[1:] for table in ("tcp", "tcp6"))
    own = b":%04X" % port
    return sum(fields[1].endswith(own) and fields[3] == b"01" for table in lines for fields in map(bytes.split, table))


def pids() -> list[int]:
    """Every process."""
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def read(path: str) -> bytes:
    """A file's content, b'' when it cannot be read (the process is gone, or somebody else's)."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return b""


def kill(pid: int, number: int) -> None:
    """Send a signal; a process that is gone or has become somebody else's is left alone."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


log_file: bytes | None = None
"""Where supervisord writes what is said, once a guard knows it."""
READ_SECONDS = 0.5
"""Seconds for supervisord to read what the engine said last."""


def _begun() -> bool:
    """Whether the log ends in the middle of a line of the engine's."""
    deadline = time.monotonic() + READ_SECONDS
    with contextlib.suppress(OSError):
        while (
            any(fcntl.ioctl(2, termios.FIONREAD, bytes(4))) and time.monotonic() < deadline
        ):  # of a pipe: not read yet
            time.sleep(0.01)
    try:
        with open(log_file or os.devnull, "rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read(1) != b"\n"
    except OSError:
        return False


def say(text: str) -> None:
    """One line with its time to the program's log. Never blocks for long and never fails: supervisord may be gone."""
    line = b"\n" * _begun() + (
        f"{time.strftime('%Y-%m-%d %H:%M:%S')} [guard] {text}".replace("\n", " ").encode("utf-8", "replace")[
            : select.PIPE_BUF - 1
        ]
        + b"\n"
    )
    with contextlib.suppress(OSError):
        poll = select.poll()
        poll.register(2, select.POLLOUT)
        if any(event & select.POLLOUT for _, event in poll.poll(1000)):
            os.write(2, line)
