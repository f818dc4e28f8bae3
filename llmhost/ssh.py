"""Other hosts over ssh: the system's OpenSSH client, with the user's configuration, agent and known hosts.

One connection to each host is kept for a minute and shared by all commands (ControlMaster, with a socket below run/).
Nobody is asked anything: what would be a question is an error with a hint. Secrets go through standard input.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shlex
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from llmhost.errors import CommandTimeout, NodeError, SshError
from llmhost.paths import SOCKET_PATH_LIMIT
from llmhost.run import Completed, Talk, capture, detach

TIMEOUT_ENV = "LLMHOST_SSH_TIMEOUT"
TIMEOUT = 5.0
"""Seconds for a host to answer, unless the environment says otherwise."""
SLACK = 10.0
"""Seconds on top for what ssh's own timeout does not cover: a name server, a host to jump over, the login itself."""
CHECK = 2.0
"""Seconds for a kept connection to show that it is alive, before a new one is made."""
KEPT = 60
"""Seconds that a connection is kept for the next command."""
LOST = 255
"""What ssh itself ends with when there is no connection (any more); no command of ours does."""
NOT_FOUND = 127
"""What a shell ends with when there is no such command."""
SOCKET_SUFFIX = 17
"""Bytes that ssh adds to the path of its socket while it makes it."""

LEASH = (
    'exec 3<&0; "$@" </dev/null 3<&- & program=$!;'
    " { cat <&3; kill $program; } >/dev/null 2>&1 & watch=$!;"
    " wait $program; status=$?; kill $watch 2>/dev/null; exit $status"
)
"""For `sh -c`: ends the program there when the one here has gone, which closes its standard input."""


@dataclass(frozen=True)
class Target:
    """Who logs in where."""

    host: str
    user: str | None = None
    port: int | None = None

    @classmethod
    def parse(cls, text: str, port: int | None = None) -> Target:
        """From ``user@host``; raises NodeError for what ssh could take for an option, or cannot be a host."""
        user, at, host = text.rpartition("@")
        host = host.strip("[]")
        good = re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.:%-]*", host) and re.fullmatch(
            r"[A-Za-z0-9_][^\s@:/'\"]*", user or "x"
        )
        if not good or (at and not user):
            raise NodeError(f"{text!r} is not a host for ssh", "write user@host, or host; a port goes with --port")
        return cls(host, user or None, port)

    def __str__(self) -> str:
        return f"{self.user}@{self.host}" if self.user else self.host

    @property
    def words(self) -> list[str]:
        """As arguments of ssh, after its options."""
        user = ["-l", self.user] if self.user else []
        return [*user, *(["-p", str(self.port)] if self.port else []), "--", self.host]

    @property
    def by_hand(self) -> str:
        """The command that a person would log in with."""
        return " ".join(["ssh", *(["-p", str(self.port)] if self.port else []), str(self)])


class Link:
    """A host over ssh; ``directory`` is a private one for the socket of the shared connection."""

    def __init__(self, target: Target, directory: Path) -> None:
        self.target = target
        digest = hashlib.sha256(repr(target).encode()).hexdigest()[:8]
        self._socket = directory / digest
        self._kept = len(os.fsencode(self._socket)) + SOCKET_SUFFIX <= SOCKET_PATH_LIMIT
        self._errors = directory / f"{digest}.err"
        self._lock = directory / f"{digest}.lock"

    def connect(self) -> None:
        """Log in, or find that a kept connection is alive. Raises SshError, which says what is wrong and what to do.

        Takes no longer than `timeout_seconds`, unless names or the login take their time.
        """
        with _alone(self._lock):
            left = timeout_seconds()
            if self._kept and self._socket.exists():
                began = time.monotonic()
                if self._alive(min(CHECK, left)):
                    return
                self._drop()
                left = max(1.0, left - (time.monotonic() - began))
            self._log_in(left)

    def run(
        self, words: Sequence[str], *, given: str | Path | None = None, timeout: float = 60, check: bool = True
    ) -> Completed:
        """Run a command there, in the home directory of the user; ``given`` is its standard input.

        Raises SshError when the connection is lost or it takes more than ``timeout`` seconds, and with ``check`` when
        it ends with an error.
        """
        try:
            done = capture(self._ssh(shlex.join(words)), given=given, timeout=timeout, check=False)
        except CommandTimeout as e:
            program = words[3] if tuple(words[:2]) == ("sh", "-c") else words[0]
            raise SshError(
                f"{program} on {self.target.host} did not end within {timeout:.0f} s",
                f"see what it does there: {self.target.by_hand}", "takes too long",
            ) from e  # fmt: skip
        self.require_connection(done.returncode, done.stderr)
        if check and done.returncode:
            raise self.failed(done)
        return done

    def work(self, words: Sequence[str]) -> Completed:
        """Run what takes its time there; it ends when we do, however we end. Raises SshError for a lost connection."""
        lines: list[str] = []
        errors: list[str] = []
        status = self.talk(words).follow(lines.append, errors.append)
        said = "\n".join(errors)
        self.require_connection(status, said)
        return Completed(tuple(words), status, "\n".join(lines), said)

    def failed(self, done: Completed) -> SshError:
        """What a command said that ended with an error there; its own ``hint:`` is ours."""
        if done.returncode == NOT_FOUND:
            missing = re.search(r"(\S+): (?:command )?not found", done.stderr)
            return SshError(
                f"{self.target.host}: {missing[1] if missing else 'a command'} is not there",
                f"install it there, or see the PATH of a shell that nobody logs in to: {self.target.by_hand} env",
                "a command is missing",
            )
        lines = [line for line in (done.stderr.strip() or done.stdout.strip() or "no output").splitlines() if line]
        said = next((line.removeprefix("error: ") for line in lines if line.startswith("error: ")), lines[-1])
        hint = next((line.removeprefix("hint: ") for line in lines if line.startswith("hint: ")), "")
        return SshError(f"{self.target.host}: {said}", hint or f"see it there: {self.target.by_hand}", "failed")

    def talk(self, words: Sequence[str]) -> Talk:
        """Start a command there whose lines are read as they come; it ends there when it is ended here."""
        return Talk(self._ssh(shlex.join(["sh", "-c", LEASH, "llmhost", *words])))

    def require_connection(self, status: int, said: str = "") -> None:
        """Raise SshError for the exit status of an ssh that has lost its connection."""
        if status == LOST:
            self._drop()
            raise _explain(self.target, said or "the connection was lost")

    def close(self) -> None:
        """End the kept connection."""
        with _alone(self._lock):
            if self._kept and self._socket.exists():
                self._drop()
        self._lock.unlink(missing_ok=True)

    def _alive(self, seconds: float) -> bool:
        try:
            return capture(self._ssh("true"), timeout=seconds, check=False).returncode == 0
        except CommandTimeout:
            return False

    def _drop(self) -> None:
        if self._kept:
            capture(["ssh", "-S", str(self._socket), "-O", "exit", *self.target.words], check=False)
            self._socket.unlink(missing_ok=True)

    def _log_in(self, seconds: float) -> None:
        options = [*_options(seconds), "-o", "ServerAliveInterval=5", "-o", "ServerAliveCountMax=3"]
        kept = ["-M", "-S", str(self._socket), "-o", f"ControlPersist={KEPT}"]
        try:
            status = detach(
                ["ssh", *options, *(kept if self._kept else ["-S", "none"]), "-T", *self.target.words, "true"],
                self._errors,
                seconds + SLACK,
            )
            said = self._errors.read_text(encoding="utf-8", errors="replace")
        except CommandTimeout as e:
            raise _explain(self.target, "Connection timed out") from e
        finally:
            self._errors.unlink(missing_ok=True)
        if status:
            raise _explain(self.target, said)

    def _ssh(self, command: str) -> list[str]:
        shared = ["-o", "ControlMaster=no", "-S", str(self._socket) if self._kept else "none"]
        return ["ssh", *_options(timeout_seconds()), "-T", *shared, *self.target.words, command]


def resolve(target: Target) -> str:
    """The host that ssh really connects to: what ~/.ssh/config makes of a name."""
    done = capture(["ssh", "-G", *target.words], check=False)
    told = dict(line.partition(" ")[::2] for line in done.stdout.splitlines())
    return told.get("hostname", target.host)


def timeout_seconds() -> float:
    """How long a host may take to answer."""
    try:
        return max(1.0, float(os.environ.get(TIMEOUT_ENV, "")))
    except ValueError:
        return TIMEOUT


def _options(seconds: float) -> list[str]:
    return ["-o", "BatchMode=yes", "-o", f"ConnectTimeout={max(1, round(seconds))}", "-o", "ClearAllForwardings=yes"]


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Two commands that log in at once would leave a connection behind that nobody uses."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _explain(target: Target, said: str) -> SshError:
    """What ssh said, in one sentence with a remedy."""
    host, by_hand = target.host, target.by_hand
    for pattern, reason, message, hint in CAUSES:
        if re.search(pattern, said, re.I):
            return SshError(message.format(host=host, target=target), hint.format(host=host, by_hand=by_hand), reason)
    lines = [line for line in said.splitlines() if line.strip() and not line.startswith("Warning: Permanently added")]
    last = lines[-1].strip() if lines else "it gave no reason"
    return SshError(f"cannot use {target} over ssh: {last}", f"try it by hand: {by_hand} true", "ssh failed")


CAUSES = (
    (
        r"REMOTE HOST IDENTIFICATION HAS CHANGED|host key .* has changed",
        "host key changed",
        "the host key of {host} is not the one that is known: it was installed anew, or somebody is in between",
        "compare it with the host's own (ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub there); if it is right,"
        " forget the old one: ssh-keygen -R {host}",
    ),
    (
        r"host key verification failed|no \S+ host key is known",
        "host key unknown",
        "the host key of {host} is not known here",
        "log in once by hand and compare it: {by_hand}; or have a list of host keys in ~/.ssh/known_hosts",
    ),
    (
        r"UNPROTECTED PRIVATE KEY|bad permissions",
        "key refused",
        "ssh does not use a key that others can read",
        "chmod 600 the key that ssh names: {by_hand} true",
    ),
    (
        r"permission denied \(|too many authentication failures|no supported authentication",
        "key refused",
        "{target}: the login was refused; nobody is asked for a password or a passphrase here",
        "ssh-copy-id puts your key there; a key with a passphrase goes into the agent first (ssh-add). This must work:"
        " {by_hand} true",
    ),
    (
        r"could not resolve|name or service not known|temporary failure in name resolution",
        "name unknown",
        "nobody knows a host called {host}",
        "write its address, or a name from DNS, /etc/hosts or ~/.ssh/config",
    ),
    (
        r"connection refused",
        "refused",
        "{host} is there, and nobody listens on its ssh port",
        "start sshd there, or name its port (--port, ssh_port in llmhost.yaml)",
    ),
    (
        r"no route to host|network is unreachable|host is down",
        "no route",
        "{host} cannot be reached: there is no way to it",
        "is it on, and on this network? try: ping {host}",
    ),
    (
        r"timed out|timeout|not responding",
        "no answer",
        "{host} does not answer",
        "it is off or cut off, or a firewall drops what is sent to its ssh port;"
        " LLMHOST_SSH_TIMEOUT=SECONDS waits longer",
    ),
    (
        r"bad configuration option|terminating, \d+ bad|bad owner or permissions",
        "ssh configuration",
        "ssh does not understand its own configuration",
        "see what it says: {by_hand} true",
    ),
    (
        r"connection (reset|closed|to \S+ closed)|closed by remote|broken pipe|was lost|kex_exchange|mux_client",
        "connection lost",
        "the connection to {host} was lost",
        "it was switched off or cut off, or its sshd refuses so many logins; the same command again goes on from here",
    ),
)
"""Patterns of what ssh says, why in a word or two, a message and a hint; the first that matches counts."""
