"""A small stand-in for a vLLM server: HTTP/1.1 on a unix socket, which tells what it was asked.

What it does is steered by the JSON body of a request: ``{"stub": {"stream": 3}}`` streams three chunks, each of which
waits for a `Stub.release`; ``{"stub": "drop"}`` closes the connection without an answer; ``{"stub": "hold"}`` answers
after a `Stub.release`.
"""

from __future__ import annotations

import asyncio
import json
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Seen:
    """One request as it arrived."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Stub:
    """Runs in a thread with an event loop of its own; ``with Stub(path): …`` serves until the block ends."""

    socket: Path
    name: str = "stub"
    healthy: bool = True
    status: int = 200
    """With which it answers everything but /health, unless the request says something else."""
    seen: list[Seen] = field(default_factory=list)
    health_checks: list[Seen] = field(default_factory=list)
    abandoned: int = 0
    """Streams whose client went away."""

    def __enter__(self) -> Stub:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Listen; returns when connections are accepted."""
        self.socket.unlink(missing_ok=True)
        self._started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), name=self.name, daemon=True)
        self._thread.start()
        assert self._started.wait(10)

    def stop(self) -> None:
        """Close every connection and the socket, which stays on disk as a killed server leaves it."""
        self._loop.call_soon_threadsafe(self._ended.set)
        self._thread.join(10)
        assert not self._thread.is_alive()

    @property
    def running(self) -> bool:
        """Whether it was started and not stopped since."""
        return self._thread.is_alive()

    def release(self) -> None:
        """Let one held answer, or one held chunk, go."""
        self._loop.call_soon_threadsafe(self._gate.release)

    @property
    def asked(self) -> list[Seen]:
        """What was seen besides health checks."""
        return [s for s in list(self.seen) if s.target != "/health"]

    async def _serve(self) -> None:
        self._loop, self._ended, self._gate = asyncio.get_running_loop(), asyncio.Event(), asyncio.Semaphore(0)
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        server = await self.listen()
        self._started.set()
        await self._ended.wait()
        server.close()
        for _ in range(20):  # whoever was accepted just now comes to have a task, which closes the connection
            await asyncio.sleep(0.001)
        for task in self._tasks:
            task.cancel()
        for writer in self._writers:  # also of one whose task has not begun
            writer.transport.abort()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.sleep(0.02)  # what was closed is gone in a later round of the loop

    async def listen(self) -> asyncio.Server:
        """Where it is reached."""
        return await asyncio.start_unix_server(self.connection, self.socket, backlog=2048)

    def connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        self._tasks.add(asyncio.get_running_loop().create_task(self._talk(reader, writer)))

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        try:
            while await self._exchange(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        except asyncio.CancelledError:
            writer.transport.abort()  # nothing waits for a client that does not read
        finally:
            writer.close()
            self._writers.discard(writer)
            self._tasks.discard(task)

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        request = await _read(reader)
        if request.target.partition("?")[0] == "/health":
            self.health_checks.append(request)
            await _answer(writer, 200 if self.healthy else 503, {})
            return True
        self.seen.append(request)
        return await self._behave(request, reader, writer)

    async def _behave(self, request: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        order = _order(request.body)
        if order == "drop":
            return False
        if order == "hold":
            await self._gate.acquire()
        if isinstance(order, dict) and "stream" in order:
            await self._stream(reader, writer, order["stream"])
        else:
            await _answer(
                writer, self.status, {"stub": self.name, "target": request.target, "bytes": len(request.body)}
            )
        return True

    async def _stream(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, chunks: int) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        for index in range(chunks):
            await self._released_or_abandoned(reader)
            data = b"data: %d\n\n" % index
            writer.write(b"%x\r\n%s\r\n" % (len(data), data))
            await writer.drain()
        writer.write(b"0\r\n\r\n")
        await writer.drain()

    async def _released_or_abandoned(self, reader: asyncio.StreamReader) -> None:
        released, gone = asyncio.create_task(self._gate.acquire()), asyncio.create_task(reader.read(1))
        try:
            await asyncio.wait((released, gone), return_when=asyncio.FIRST_COMPLETED)
            if gone.done():
                self.abandoned += 1
                raise ConnectionError
        finally:
            released.cancel()
            gone.cancel()
            await asyncio.gather(released, gone, return_exceptions=True)


async def _read(reader: asyncio.StreamReader) -> Seen:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    method, target, _ = head[0].split(" ", 2)
    headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in head[1:] if line)}
    if headers.get("transfer-encoding") == "chunked":
        return Seen(method, target, headers, await _chunked(reader))
    return Seen(method, target, headers, await reader.readexactly(int(headers.get("content-length", 0))))


async def _chunked(reader: asyncio.StreamReader) -> bytes:
    body = b""
    while size := int(await reader.readline(), 16):
        body += await reader.readexactly(size)
        await reader.readline()
    await reader.readline()
    return body


def _order(body: bytes) -> Any:
    try:
        data = json.loads(body)
    except ValueError:
        return None
    return data.get("stub") if isinstance(data, dict) else None


async def _answer(writer: asyncio.StreamWriter, status: int, data: dict[str, Any]) -> None:
    body = json.dumps(data).encode()
    head = f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    await writer.drain()
