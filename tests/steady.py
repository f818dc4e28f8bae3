"""A client at a steady rate: it asks whatever happens, and remembers every request that was not answered as it should.

Half of the requests are plain and short, the others are streams that last and overlap; each worker keeps its
connection, as the pools of real clients do.
"""

from __future__ import annotations

import http.client
import json
import queue
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

TIMEOUT = 300.0
MESSAGES = [{"role": "user", "content": "hi"}]


@dataclass
class Steady:
    """Asks `model` of the gateway at `port`; what went wrong is in `failed` and `cut`, as text."""

    port: int
    model: str
    rate: float = 25.0
    """Requests a second."""
    host: str = "127.0.0.1"
    path: str = "/v1/chat/completions"
    body: Mapping[str, Any] = field(default_factory=lambda: {"messages": MESSAGES, "max_tokens": 4})
    stream: Mapping[str, Any] | None = field(default_factory=lambda: {"fake": {"chunks": 8, "seconds": 0.1}})
    """What is added to the body of a stream, so that it lasts; None: only plain requests."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """May be replaced while it asks: the next request has the new ones."""
    tls: ssl.SSLContext | None = None
    workers: int = 48
    count: int = 0
    streams: int = 0
    failed: list[str] = field(default_factory=list)
    """Refused, or answered with an error, or no connection."""
    cut: list[str] = field(default_factory=list)
    """Begun and not finished."""
    longest: float = 0.0
    """The longest wait in seconds: from when a request was due until its answer began, or for a piece of a stream."""
    answered_by: dict[str, int] = field(default_factory=dict)
    """How often each program of a fake engine answered."""

    def __post_init__(self) -> None:
        self._work: queue.Queue[tuple[float, bool] | None] = queue.Queue()
        self._ended = threading.Event()
        self._lock = threading.Lock()

    @contextmanager
    def asking(self) -> Iterator[Steady]:
        """Ask while the block runs; returns when the last answer is there."""
        threads = [threading.Thread(target=self._serve_queue, daemon=True) for _ in range(self.workers)]
        ticker = threading.Thread(target=self._tick, daemon=True)
        for thread in (*threads, ticker):
            thread.start()
        try:
            yield self
        finally:
            self._ended.set()
            ticker.join(TIMEOUT)
            for _ in threads:
                self._work.put(None)
            for thread in threads:
                thread.join(TIMEOUT)

    def wait_for_more(self, requests: int = 20) -> None:
        """Until so many more have been answered."""
        goal = self.count + requests
        self._wait_until(lambda: self.count >= goal)

    def wait_for_answer_of(self, program: str) -> None:
        """Until this program of a fake engine has answered."""
        self._wait_until(lambda: program in self.answered_by)

    def _wait_until(self, reached: Callable[[], bool]) -> None:
        deadline = time.monotonic() + TIMEOUT
        while not reached() and not self.failed:
            assert time.monotonic() < deadline, f"waited {TIMEOUT} s for answers in vain"
            time.sleep(0.02)

    @property
    def lost(self) -> list[str]:
        return self.failed + self.cut

    def _tick(self) -> None:
        number, begin = 0, time.monotonic()
        while not self._ended.is_set():
            self._work.put((begin + number / self.rate, self.stream is not None and number % 2 == 1))
            number += 1
            time.sleep(max(0.0, begin + number / self.rate - time.monotonic()))

    def _serve_queue(self) -> None:
        connection = self._connection()
        while (work := self._work.get()) is not None:
            try:
                self._ask(connection, *work)
            except (OSError, http.client.HTTPException) as e:
                self._note(self.failed, repr(e))
                connection.close()
        connection.close()

    def _connection(self) -> http.client.HTTPConnection:
        if self.tls is None:
            return http.client.HTTPConnection(self.host, self.port, timeout=TIMEOUT)
        return http.client.HTTPSConnection(self.host, self.port, timeout=TIMEOUT, context=self.tls)

    def _ask(self, connection: http.client.HTTPConnection, due: float, streamed: bool) -> None:
        body = {"model": self.model, **self.body}
        if streamed:
            body |= {"stream": True, **(self.stream or {})}
        headers = {"Content-Type": "application/json", **self.headers}
        connection.request("POST", self.path, json.dumps(body), headers)
        answer = connection.getresponse()
        self._waited(due)
        try:
            text = self._read(answer)
        except (OSError, http.client.HTTPException) as e:
            self._note(self.cut, f"{answer.status}, then {e!r}")
            connection.close()
            return
        if answer.status != 200:
            self._note(self.failed, f"{answer.status} {text[:300]}")
        elif '"abort"' in text or (streamed and not text.rstrip().endswith("data: [DONE]")):
            self._note(self.cut, text[-300:])
        self._count(text, streamed)

    def _read(self, answer: http.client.HTTPResponse) -> str:
        """The body; raises HTTPException when it ends too early."""
        if not answer.chunked:
            return answer.read().decode()
        since, pieces = time.monotonic(), []
        while piece := answer.read1():
            self._waited(since)
            since = time.monotonic()
            pieces.append(piece)
        return b"".join(pieces).decode()

    def _waited(self, since: float) -> None:
        with self._lock:
            self.longest = max(self.longest, time.monotonic() - since)

    def _count(self, text: str, streamed: bool) -> None:
        program = json.loads(text).get("program") if text.startswith("{") else None
        with self._lock:
            self.count += 1
            self.streams += streamed
            if program:
                self.answered_by[program] = self.answered_by.get(program, 0) + 1

    def _note(self, where: list[str], text: str) -> None:
        with self._lock:
            where.append(text)
