"""A connection between two guards of a group: lines of JSON, each with a message authentication code.

Both sides prove that they know the secret of the group (HMAC, challenge and response) before anything else is believed;
it never crosses the network. Nothing is encrypted: there is nothing to hide in what guards tell each other.
"""

from __future__ import annotations

import contextlib
import errno
import hmac
import json
import os
import select
import socket
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

BEAT_SECONDS = 1.0
"""Seconds between two signs of life."""
LOST_SECONDS = 6.0
"""Seconds without one after which the other guard counts as gone."""
GREETING_SECONDS = 10.0
"""Seconds in which a new connection must have proved itself."""
LONGEST_LINE = 4096
LONGEST_BACKLOG = 65536
CONNECT_SECONDS = 5.0
"""Seconds for a connection to come about: a firewall that drops packets answers nothing."""


class Channel:
    """One end; never blocks. Begin with `greet` (it connected) or wait for `greeting` (it accepted)."""

    def __init__(self, connection: socket.socket, secret: bytes) -> None:
        connection.setblocking(False)
        with contextlib.suppress(OSError):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.connection = connection
        self.secret = secret
        self.began = self.heard = self.spoke = time.monotonic()
        self.closed = ""
        """Why there is no connection any more, in words; '' while there is one."""
        self._in, self._out = bytearray(), bytearray()
        self._keys: tuple[bytes, bytes] | None = None
        """For what is sent and for what is received."""
        self._sent = self._received = 0
        self._hello: dict[str, Any] = {}
        self._nonce = ""

    @property
    def open(self) -> bool:
        return not self.closed

    @property
    def proved(self) -> bool:
        return self._keys is not None

    @property
    def digest(self) -> str:
        """What a member that greeted us says of its plan."""
        return str(self._hello.get("digest") or "")

    @property
    def vllm(self) -> str:
        """The version that it says of its engine; '' when it says none, as older guards do."""
        return str(self._hello.get("vllm") or "")

    def fileno(self) -> int:
        return self.connection.fileno()

    def close(self, why: str) -> None:
        if not self.closed:
            self.closed = why
            self.connection.close()

    # Lines.

    def send(self, message: dict[str, Any]) -> None:
        """Never raises: a connection that breaks is `closed`."""
        line = json.dumps(message).encode()
        if self._keys is not None:
            line = _code(self._keys[0], self._sent, line) + b" " + line
            self._sent += 1
        self.spoke = time.monotonic()
        self._out += line + b"\n"
        self._flush()

    def _flush(self) -> None:
        while self._out and self.open:
            try:
                del self._out[: self.connection.send(self._out)]
            except BlockingIOError:
                if len(self._out) > LONGEST_BACKLOG:
                    self.close("it does not read what is sent to it")
                return
            except OSError as e:
                self.close(f"the connection broke: {os.strerror(e.errno or errno.EIO)}")

    def turn(self) -> Iterator[dict[str, Any]]:
        """What arrived since the last turn; sends a sign of life when it is time, and notices that none comes.

        One by one: how a line is to be read can depend on what is done with the one before.
        """
        while (line := self._line() if self.open else None) is not None:
            if (message := self._read(line)) is not None:
                yield message
        now = time.monotonic()
        if self.open and now - (self.heard if self.proved else self.began) > self._patience:
            self.close(f"no sign of life for {LOST_SECONDS:g} s" if self.proved else "it does not say who it is")
        if self.open and self.proved and now - self.spoke >= BEAT_SECONDS:
            self.send({"beat": 1})
        self._flush()

    @property
    def _patience(self) -> float:
        return LOST_SECONDS if self.proved else GREETING_SECONDS

    def _line(self) -> bytes | None:
        """The next whole line, None when there is none yet."""
        while b"\n" not in self._in:
            try:
                part = self.connection.recv(LONGEST_LINE)
            except BlockingIOError:
                return None
            except OSError as e:
                self.close(f"the connection broke: {os.strerror(e.errno or errno.EIO)}")
                return None
            self._in += part
            if not part or len(self._in) > 2 * LONGEST_LINE:
                self.close("the connection was closed" if not part else "it sends what no guard would")
                return None
        line, _, rest = bytes(self._in).partition(b"\n")
        self._in[:] = rest
        return line

    def _read(self, line: bytes) -> dict[str, Any] | None:
        """A message, None for one that only shows that somebody lives; closes on anything odd."""
        if self._keys is not None:
            code, _, line = line.partition(b" ")
            if not hmac.compare_digest(code, _code(self._keys[1], self._received, line)):
                self.close("it sends what no guard of the group would")
                return None
            self._received += 1
            self.heard = time.monotonic()
        try:
            message = json.loads(line)
        except (ValueError, RecursionError):
            message = None
        if not isinstance(message, dict) or not (self.proved or _is_flat(message)):
            self.close("it sends what no guard would")
            return None
        return None if "beat" in message else message

    # Who is there. Member: hello; head: challenge and proof; member: proof.

    def greet(self, hello: dict[str, Any]) -> None:
        """As a member: say who we are."""
        self._hello = {**hello, "nonce": os.urandom(16).hex()}
        self.send(self._hello)

    def challenge(self, hello: dict[str, Any]) -> None:
        """As the head, after a hello: prove ourselves, and ask the same."""
        self._hello = hello
        self._nonce = os.urandom(16).hex()
        self.send({"nonce": self._nonce, "proof": self._proof(b"head")})

    def answer(self, challenge: dict[str, Any]) -> bool:
        """As a member: whether the head knows the secret; if so it is told that we do."""
        self._nonce = str(challenge.get("nonce"))
        if not self._is_proof(challenge.get("proof"), b"head"):
            self.send({"refused": "secret"})
            return False
        self.send({"proof": self._proof(b"member")})
        self._agree(b"member", b"head")
        return True

    def check(self, proof: dict[str, Any]) -> bool:
        """As the head: whether the member knows the secret."""
        good = self._is_proof(proof.get("proof"), b"member")
        if good:
            self._agree(b"head", b"member")
        return good

    def _is_proof(self, said: object, side: bytes) -> bool:
        """Whatever it says: JSON has strings that are no UTF-8."""
        return hmac.compare_digest(str(said).encode("utf-8", "surrogatepass"), self._proof(side).encode())

    def _proof(self, side: bytes) -> str:
        said = json.dumps([self._hello, self._nonce], sort_keys=True).encode()
        return hmac.digest(self.secret, side + b"\n" + said, "sha256").hex()

    def _agree(self, own: bytes, other: bytes) -> None:
        """Keys of this connection alone, so that no line of another one can be played back."""
        own_key, other_key = (bytes.fromhex(self._proof(side + b" sends")) for side in (own, other))
        self._keys = own_key, other_key
        self.heard = time.monotonic()


def _is_flat(message: dict[str, Any]) -> bool:
    """What has to be said before the proof is; what is nested may be too deep to be written again."""
    return not any(isinstance(value, (dict, list)) for value in message.values())


def _code(key: bytes, number: int, line: bytes) -> bytes:
    return hmac.digest(key, b"%d %s" % (number, line), "sha256").hex().encode()


class Attempt:
    """A connection that is being made, without blocking."""

    def __init__(self, address: str, port: int, source: str = "") -> None:
        self.began = time.monotonic()
        self.error = ""
        """In words, '' while it is not known or when it stands."""
        self.connection = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
        self.connection.setblocking(False)
        try:
            if source:
                self.connection.bind((source, 0))
            found = self.connection.connect_ex((address, port))
        except OSError as e:
            found = e.errno or errno.EIO
        if found != errno.EINPROGRESS:
            self._done(found)

    def fileno(self) -> int:
        return self.connection.fileno()

    @property
    def stands(self) -> bool:
        """Call it only while there is no `error`; looks again each time."""
        if self.error:
            return False
        poll = select.poll()
        poll.register(self.connection, select.POLLOUT)
        if poll.poll(0):
            return self._done(self.connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))
        if time.monotonic() - self.began > CONNECT_SECONDS:
            self._done(errno.ETIMEDOUT)
        return False

    def _done(self, found: int) -> bool:
        if found:
            self.error = "no answer" if found == errno.ETIMEDOUT else os.strerror(found).lower()
            self.connection.close()
        return not found


def listen(address: str, port: int) -> socket.socket:
    """A listening socket that does not block; raises OSError."""
    server = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
    try:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.setblocking(False)
        server.bind((address, port))
        server.listen(64)
    except OSError:
        server.close()
        raise
    return server
