"""Several hosts on one machine: each has a network, processes, a name and an sshd of its own, and a cable to a switch.

Linux namespaces (util-linux, iproute2, openssh-server; root). Directories are shared, but every host has its own home
directory of root, /run, /etc/hosts and /etc/passwd. What a host runs dies with it, and the namespaces with that:
nothing is left behind. A power cut and a pulled cable are what they are on a real host.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.systemd.box import CannotRun as CannotRun  # noqa: PLC0414
from tests.systemd.box import wait_for as wait_for  # noqa: PLC0414

PROGRAMS = {"sshd": "openssh-server", "ssh": "openssh-client", "ip": "iproute2", "unshare": "util-linux"}
"""What is needed -> its package."""
NETWORK = "10.77.0"
NAMESPACES = ("--net", "--mount", "--pid", "--uts", "--ipc")

BOOT = """set -e
hostname {name}
mount --make-rprivate /
mount -t tmpfs -o mode=755 run /run
mkdir /run/sshd
for file in hosts passwd; do mount --bind {root}/etc/$file /etc/$file; done
ip link set lo up
{sshd} -D -e -f {root}/etc/sshd_config &
while wait; do sleep 1; done
"""
"""Run as its first process: it reaps what daemons leave to it."""

SSHD = """HostKey {root}/etc/host_key
AuthorizedKeysFile {root}/.ssh/authorized_keys
PidFile none
UsePAM no
StrictModes no
PermitRootLogin yes
PasswordAuthentication no
KbdInteractiveAuthentication no
MaxStartups 100
SetEnv {environment}
"""


def require() -> None:
    """Raise CannotRun, with what to do about it, where hosts cannot be made."""
    if os.geteuid() != 0:
        raise CannotRun("only root can make network namespaces")
    for program, package in PROGRAMS.items():
        if _find(program) is None:
            raise CannotRun(f"{program} is not installed (package {package})")
    tried = subprocess.run(["unshare", *NAMESPACES, "--fork", "true"], capture_output=True, text=True, check=False)
    if tried.returncode:
        raise CannotRun(f"this machine allows no namespaces: {tried.stderr.strip()}")


class Host:
    """One host; ``root`` is the home directory of its only user, and what is there survives a power cut."""

    def __init__(self, network: Network, number: int, name: str) -> None:
        self.network, self.number, self.name = network, number, name
        self.address = f"{NETWORK}.{number}"
        self.root = network.place / name
        self.cable = f"port-{name}"
        """The switch's end of its cable."""
        self._outer: subprocess.Popen[bytes] | None = None

    @property
    def environment(self) -> dict[str, str]:
        """As after a login there; programs in ``bin`` of its root go first."""
        python = Path(os.path.realpath(sys.executable)).parent
        path = f"{self.root}/bin:{python}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        return {"PATH": path, "LANG": "C.UTF-8", **self.network.environment}

    def build(self) -> None:
        """Its disk: a host key, a key of its user, and no host that it knows."""
        (self.root / "etc").mkdir(parents=True)
        (self.root / ".ssh").mkdir(mode=0o700)
        for key in ("etc/host_key", ".ssh/id_ed25519"):
            _must("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", self.name, "-f", str(self.root / key))
        words = " ".join(shlex.quote(f"{name}={value}") for name, value in self.environment.items())
        (self.root / "etc/sshd_config").write_text(SSHD.format(root=self.root, environment=words), encoding="utf-8")
        lines = Path("/etc/passwd").read_text(encoding="utf-8").splitlines()
        users = [f"root:x:0:0:root:{self.root}:/bin/sh", *(line for line in lines if not line.startswith("root:"))]
        (self.root / "etc/passwd").write_text("\n".join(users) + "\n", encoding="utf-8")
        self.write_hosts({})

    def write_hosts(self, names: Mapping[str, str]) -> None:
        """Its /etc/hosts: name -> address, and localhost."""
        lines = ["127.0.0.1 localhost", *(f"{address} {name}" for name, address in names.items())]
        (self.root / "etc/hosts").write_text("\n".join(lines) + "\n", encoding="utf-8")

    def boot(self) -> None:
        """Power on: its network, its sshd, and whatever was written to start with it."""
        script = BOOT.format(name=self.name, root=self.root, sshd=_find("sshd"))
        with (self.root / "console").open("ab") as console:
            self._outer = subprocess.Popen(
                ["unshare", *NAMESPACES, "--fork", "--mount-proc", "--kill-child", "sh", "-c", script],
                stdin=subprocess.DEVNULL, stdout=console, stderr=console,
            )  # fmt: skip
        wait_for(lambda: self._first)
        self.network.plug(self)
        wait_for(lambda: ":0016 00000000:0000 0A" in Path(f"/proc/{self._first}/net/tcp").read_text())

    def cut(self) -> None:
        """Power off, in the middle of whatever it does."""
        if self._outer is not None:
            self._outer.kill()  # its first process is killed with it, and the kernel kills all others
            self._outer.wait()
            wait_for(lambda: not self.network.has(self.cable))
            self._outer = None

    def link(self, up: bool) -> None:
        """Plug its cable in, or pull it."""
        self.network.ip("link", "set", self.cable, "up" if up else "down")

    def command(self, *words: str) -> list[str]:
        """What runs these words there, in the home directory of its user."""
        assert self._first, f"{self.name} is off"
        environment = {"HOME": str(self.root), "USER": "root", **self.environment}
        return [
            "nsenter", "--target", str(self._first), *NAMESPACES, f"--wd={self.root}",
            "env", "-i", *(f"{name}={value}" for name, value in environment.items()), *words,
        ]  # fmt: skip

    def run(
        self, *words: str, ok: int | None = 0, patience: float = 300, stdin: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a program there; ``ok`` is the exit status that it must have (None: any), ``patience`` in seconds."""
        done = subprocess.run(
            self.command(*words), capture_output=True, text=True, timeout=patience, check=False, input=stdin or ""
        )
        said = f"{shlex.join(words)} on {self.name}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert ok is None or done.returncode == ok, said
        return done

    def popen(self, *words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(self.command(*words), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def llmhost(self, *words: str) -> list[str]:
        """The words that run this checkout's llmhost."""
        return [sys.executable, "-P", "-m", "llmhost", *words]

    def trust(self, *others: Host) -> None:
        """Its user may log in at the others, whose host keys it knows by address and by name."""
        own = (self.root / ".ssh/id_ed25519.pub").read_text(encoding="utf-8")
        for other in others:
            with (other.root / ".ssh/authorized_keys").open("a", encoding="utf-8") as file:
                file.write(own)
            key = " ".join((other.root / "etc/host_key.pub").read_text(encoding="utf-8").split()[:2])
            with (self.root / ".ssh/known_hosts").open("a", encoding="utf-8") as file:
                file.write(f"{other.address},{other.name} {key}\n")

    @property
    def _first(self) -> int:
        """Its first process, as seen from outside; 0 while there is none."""
        if self._outer is None:
            return 0
        assert self._outer.poll() is None, (self.root / "console").read_text(encoding="utf-8", errors="replace")
        children = Path(f"/proc/{self._outer.pid}/task/{self._outer.pid}/children").read_text().split()
        return int(children[0]) if children else 0


class Network:
    """Hosts on one switch."""

    def __init__(self, place: Path, environment: Mapping[str, str]) -> None:
        self.place, self.environment = place, environment
        self.hosts: dict[str, Host] = {}
        self._switch = subprocess.Popen(["unshare", "--net", "sleep", "infinity"])
        wait_for(lambda: os.readlink(f"/proc/{self._switch.pid}/ns/net") != os.readlink("/proc/self/ns/net"))
        self.ip("link", "add", "switch", "type", "bridge")
        self.ip("link", "set", "switch", "up")

    def add(self, name: str) -> Host:
        """One more host, which runs."""
        host = Host(self, len(self.hosts) + 1, name)
        self.hosts[name] = host
        host.build()
        for each in self.hosts.values():
            each.write_hosts({other.name: other.address for other in self.hosts.values()})
        host.boot()
        return host

    def plug(self, host: Host) -> None:
        """Lay a cable from the switch to a host that has just been switched on."""
        first = str(host._first)
        card = ("name", "eth0", "address", f"02:00:00:00:00:{host.number:02x}")  # the same after every boot
        self.ip("link", "add", host.cable, "type", "veth", "peer", *card, "netns", first)
        self.ip("link", "set", host.cable, "master", "switch", "up")
        host.run("ip", "address", "add", f"{host.address}/24", "dev", "eth0")
        host.run("ip", "link", "set", "eth0", "up")

    def ip(self, *words: str) -> str:
        return _must("nsenter", "--target", str(self._switch.pid), "--net", "ip", *words)

    def has(self, device: str) -> bool:
        return f" {device}@" in self.ip("link")

    def close(self) -> None:
        for host in self.hosts.values():
            host.cut()
        self._switch.kill()
        self._switch.wait()


@contextmanager
def network(place: Path, environment: Mapping[str, str] | None = None) -> Iterator[Network]:
    """A switch without hosts; everything is gone afterwards. ``environment`` is every login's. Raises CannotRun."""
    require()
    made = Network(place, environment or {})
    try:
        yield made
    finally:
        made.close()


def _find(program: str) -> str | None:
    path = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/sbin"))
    return shutil.which(program, path=path)


def _must(*words: str) -> str:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{shlex.join(words)}: {done.stderr}"
    return done.stdout
