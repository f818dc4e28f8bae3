"""Streams for benchmarks/gateway.py: an upstream that sends chunks at a steady pace, and a client that times each.

Upstream and client are on one machine and read one clock, so a chunk that carries the time at which it was sent tells
how long it was on its way. Run as a program it is the upstream: gateway_streams.py MODEL CHUNKS INTERVAL ADDRESS…, an
address being a port of 127.0.0.1 or the path of a unix socket.
"""

from __future__ import annotations

import asyncio
import json
import re
import signal
import statistics
import sys
import time
from dataclasses import dataclass

STAMP = re.compile(rb"T(\d+)E")
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: %s\r\n%s\r\n\r\n"


@dataclass(frozen=True)
class Streamed:
    """Milliseconds over all streams; ``missing`` are chunks that never came."""

    first_p50: float
    first_p99: float
    chunk_p50: float
    chunk_p99: float
    jitter: float
    """Standard deviation of the time that a chunk was on its way."""
    missing: int


class Upstream:
    """OpenAI's chat, streamed: ``chunks`` chunks, one each ``interval`` seconds, the first at once."""

    def __init__(self, model: str, chunks: int, interval: float) -> None:
        self.model, self.chunks, self.interval = model, chunks, interval

    async def serve(self, addresses: list[str]) -> None:
        ended = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
        for address in addresses:
            if address.isdigit():
                await asyncio.start_server(self.connection, "127.0.0.1", int(address), backlog=1024)
            else:
                await asyncio.start_unix_server(self.connection, address, backlog=1024)
        await ended.wait()

    async def connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = re.search(rb"(?i)content-length: *(\d+)", head)
                await reader.readexactly(int(length[1]) if length else 0)
                await (self.stream(writer) if head.startswith(b"POST") else self.answer(writer))
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    async def answer(self, writer: asyncio.StreamWriter) -> None:
        """Whatever a gateway asks of a worker: the models, its health."""
        body = json.dumps({"object": "list", "data": [{"id": self.model, "object": "model", "owned_by": "x"}]}).encode()
        writer.write(HEAD % (b"application/json", b"Content-Length: %d" % len(body)) + body)
        await writer.drain()

    async def stream(self, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD % (b"text/event-stream", b"Transfer-Encoding: chunked"))
        begun = time.monotonic()
        for number in range(self.chunks):
            await asyncio.sleep(max(0.0, begun + number * self.interval - time.monotonic()))
            self.send(writer, {"content": f"T{time.monotonic_ns()}E"}, None)
            await writer.drain()
        self.send(writer, {}, "stop")
        writer.write(b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")
        await writer.drain()

    def send(self, writer: asyncio.StreamWriter, delta: dict[str, str], reason: str | None) -> None:
        choice = {"index": 0, "delta": delta, "finish_reason": reason}
        chunk = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": self.model, "choices": [choice]}
        data = b"data: " + json.dumps(chunk).encode() + b"\n\n"
        writer.write(b"%x\r\n%s\r\n" % (len(data), data))


async def measure(port: int, model: str, key: str, streams: int, chunks: int) -> Streamed:
    """So many streams at once, begun within a second."""
    results = await asyncio.gather(
        *(_stream(port, model, key, number / streams, chunks) for number in range(streams)), return_exceptions=True
    )
    taken = [r for r in results if isinstance(r, tuple)]
    if not taken:
        raise RuntimeError(f"no stream came through: {results[0]!r}")
    first = sorted(f for f, _ in taken)
    delays = sorted(d for _, found in taken for d in found)
    missing = streams * chunks - len(delays)
    return Streamed(
        _share(first, 0.5),
        _share(first, 0.99),
        _share(delays, 0.5),
        _share(delays, 0.99),
        statistics.pstdev(delays),
        missing,
    )


def _share(ordered: list[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


async def _stream(port: int, model: str, key: str, wait: float, chunks: int) -> tuple[float, list[float]]:
    """Milliseconds to the first chunk, and on the way for every chunk."""
    body = json.dumps({"model": model, "stream": True, "messages": [{"role": "user", "content": "hi"}]}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {key}\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    await asyncio.sleep(wait)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    asked = time.monotonic_ns()
    writer.write(head.encode() + body)
    first, delays, rest = 0.0, list[float](), b""
    while len(delays) < chunks:
        part = await asyncio.wait_for(reader.read(65536), 60)
        now = time.monotonic_ns()
        if not part:
            break
        first = first or (now - asked) / 1e6
        rest += part
        end = 0
        for found in STAMP.finditer(rest):
            delays.append((now - int(found[1])) / 1e6)
            end = found.end()
        rest = rest[end:]
    writer.close()
    if not delays:
        raise RuntimeError(rest[:300].decode(errors="replace"))
    return first, delays


if __name__ == "__main__":
    asyncio.run(Upstream(sys.argv[1], int(sys.argv[2]), float(sys.argv[3])).serve(sys.argv[4:]))
