"""A machine of its own for a test: a real systemd in a container that shares this machine's /usr, booted in a second.

systemd-nspawn (Debian and Ubuntu: package systemd-container) on a directory of a few links and files. It can reboot and
lose its power. What the tests need of this Python is bound into it, read-only; llmhost itself is a copy, as installed.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).parents[2]
APP = "/opt/llmhost"
PACKAGES = "/opt/packages"
PYTHON = f"{APP}/venv/bin/python"
ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LANG": "C.UTF-8",
    "HOME": "/root",
    "SYSTEMD_COLORS": "0",
    "SYSTEMD_PAGER": "",
    "PYTHONDONTWRITEBYTECODE": "1",
}
COPIED = (
    "passwd", "group", "shadow", "gshadow", "nsswitch.conf", "ld.so.cache", "ld.so.conf", "ld.so.conf.d",
    "alternatives", "pam.d", "security", "login.defs", "ssl", "dbus-1",
)  # fmt: skip
PATIENCE = 300.0


class CannotRun(Exception):
    """Why there can be no such machine here."""


def wait_for(what: Callable[[], Any], seconds: float = PATIENCE) -> Any:
    """The first true answer."""
    deadline = time.monotonic() + seconds
    while not (answer := what()):
        assert time.monotonic() < deadline, f"waited {seconds} s in vain"
        time.sleep(0.05)
    return answer


class Box:
    """One such machine; `root` is its root directory, and what is written there is on its disk."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.console = root.with_name(f"{root.name}.console")
        self._nspawn: subprocess.Popen[bytes] | None = None
        self._leader = 0

    def build(self) -> None:
        """The root directory; raises CannotRun where a container cannot be made at all."""
        if os.geteuid() != 0:
            raise CannotRun("only root can run systemd-nspawn")
        if shutil.which("systemd-nspawn") is None:
            raise CannotRun("systemd-nspawn is not installed (package systemd-container)")
        for name in (
            "usr", "etc/systemd/system", "etc/systemd/user", "etc/default", "var/log/journal", "var/lib", "root",
            "proc", "sys", "dev", "run", "tmp", "opt", "srv", "home",
        ):  # fmt: skip
            (self.root / name).mkdir(parents=True)
        (self.root / "tmp").chmod(0o1777)
        for name in ("bin", "sbin", "lib", "lib32", "lib64", "libx32"):
            if (link := Path("/") / name).is_symlink():
                (self.root / name).symlink_to(os.readlink(link))
        self._copy_etc()
        self._install()

    def _copy_etc(self) -> None:
        etc = self.root / "etc"
        for name in COPIED:
            if os.path.exists(f"/etc/{name}"):
                subprocess.run(["cp", "-a", f"/etc/{name}", etc], check=True)
        shutil.copy(os.path.realpath("/etc/os-release"), etc / "os-release")  # nspawn refuses a dangling link
        for name in ("machine-id", "fstab"):
            (etc / name).touch()
        (etc / "hostname").write_text("box\n")
        (etc / "systemd/system/default.target").symlink_to("/lib/systemd/system/multi-user.target")

    def _install(self) -> None:
        """llmhost with its templates as a package of its own, in a venv of its own."""
        app = self.root / APP.lstrip("/")
        app.mkdir()
        for name in ("llmhost", "conf_templates", "systemd", "tests"):
            shutil.copytree(CHECKOUT / name, app / name, ignore=shutil.ignore_patterns("__pycache__"))
        subprocess.run([sys.executable, "-m", "compileall", "-q", "-s", str(self.root), app / "llmhost"], check=True)
        version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
        packages = app / "venv/lib" / version / "site-packages"
        packages.mkdir(parents=True)
        (packages / "llmhost.pth").write_text(f"{APP}\n{PACKAGES}\n")
        (app / "venv/bin").mkdir()
        base = os.path.realpath(sys.executable)
        (app / "venv/bin/python").symlink_to(base)
        (app / "venv/pyvenv.cfg").write_text(f"home = {os.path.dirname(base)}\ninclude-system-site-packages = false\n")

    def boot(self) -> None:
        """Until systemd has started everything; raises CannotRun when it does not come up."""
        # Not at its own place, which may be one that a unit does not see (PrivateTmp=).
        packages = f"{sysconfig.get_path('purelib')}:{PACKAGES}"
        bound = [f"--bind-ro={path}" for path in dict.fromkeys(("/usr", sys.base_prefix, packages))]
        command = [
            "systemd-nspawn", "-q", "-D", str(self.root), "--boot", "--register=no", "--keep-unit", "--private-network",
            "--drop-capability=CAP_SYS_RESOURCE", "--console=pipe", *bound,
        ]  # fmt: skip
        with self.console.open("ab") as console:
            self._nspawn = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=console, stderr=console, start_new_session=True,
                env={**os.environ, "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"},
            )  # fmt: skip
        deadline = time.monotonic() + PATIENCE
        while not self._up():
            if self._nspawn.poll() is not None or time.monotonic() > deadline:
                self.cut()
                raise CannotRun(f"systemd does not come up: {self.console.read_text(errors='replace')[-2000:]}")
            time.sleep(0.05)
        self.run("systemctl", "is-system-running", "--wait", ok=None)

    def _up(self) -> bool:
        assert self._nspawn is not None
        children = Path(f"/proc/{self._nspawn.pid}/task/{self._nspawn.pid}/children").read_text().split()
        self._leader = int(children[0]) if children else 0
        return bool(self._leader) and self.run("test", "-S", "/run/systemd/private", ok=None).returncode == 0

    def inside(self, *words: str, user: str = "") -> list[str]:
        """The command that runs these words in the machine."""
        variables = dict(ENVIRONMENT)
        if user:
            variables |= {"HOME": f"/home/{user}"}
            words = ("runuser", "-u", user, "--", *words)
        env = [f"{key}={value}" for key, value in variables.items()]
        return ["nsenter", "-t", str(self._leader), "-a", "env", "-i", *env, *words]

    def run(
        self, *words: str, ok: int | None = 0, user: str = "", timeout: float = 600
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in the machine; it must end with the status `ok` unless that is None."""
        done = subprocess.run(
            self.inside(*words, user=user), capture_output=True, text=True, timeout=timeout, check=False, cwd="/"
        )
        assert ok is None or done.returncode == ok, (
            f"{shlex.join(words)}: exit status {done.returncode}\n{done.stdout}\n{done.stderr}"
        )
        return done

    def popen(self, *words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.inside(*words), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd="/"
        )  # fmt: skip

    def python(self, code: str, *args: str) -> str:
        """What a piece of Python prints that runs in the machine, with the tests and llmhost on its path."""
        return self.run(PYTHON, "-c", code, *args).stdout

    def path(self, inside: str) -> Path:
        """A file of the machine as this one sees it."""
        return self.root / inside.lstrip("/")

    def off(self) -> None:
        """Shut down as an operator would."""
        self.run("systemctl", "poweroff", ok=None)
        self._await_end()

    def reboot(self) -> None:
        """Shut down and boot again."""
        self.run("systemctl", "reboot", ok=None)
        self._await_end()
        self.boot()

    def cut(self) -> None:
        """Pull the plug: nothing in there gets to do anything."""
        nspawn = self._nspawn
        if nspawn is None:
            return
        for pid in (nspawn.pid, self._leader):
            with contextlib.suppress(ProcessLookupError):
                if pid:
                    os.kill(pid, signal.SIGKILL)
        self._await_end()

    def _await_end(self) -> None:
        assert self._nspawn is not None
        self._nspawn.wait(PATIENCE)
        wait_for(lambda: not os.path.isdir(f"/proc/{self._leader}") or not self._leader)
        self._nspawn = None
