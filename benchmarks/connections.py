"""What many connections cost the gateway in memory: idle ones, and streams that are under way.

Run: python benchmarks/connections.py [--idle 2000] [--streams 500] [--tls]. Prints a markdown table. Keys and limits
are on. Every stream has had a first chunk and waits for the next; needs a limit of open files above the
number of connections, twice.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import re
import shutil
import ssl
import sys
import tempfile
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import trustme

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from llmhost.plan.types import GatewayPlan, TlsPlan  # noqa: E402
from tests.integration.gateway.running import Gateway  # noqa: E402
from tests.unit.gateway.issued import issue  # noqa: E402
from tests.unit.gateway.plans import make_service  # noqa: E402

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
BODY = b'{"model": "chat", "stream": true, "messages": [{"role": "user", "content": "%s"}]}' % (b"x" * 1900)

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--idle", type=int, default=2000)
    parser.add_argument("--streams", type=int, default=500)
    parser.add_argument("--tls", action="store_true")
    options = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="lh", dir="/tmp"))
    try:
        asyncio.run(_measure(root, options))
    finally:
        shutil.rmtree(root)
    return 0


async def _measure(root: Path, options: argparse.Namespace) -> None:
    service = make_service(root, "chat")
    key, text = issue("bench", requests_per_minute=1_000_000)
    with Gateway(root, keys=(key,)) as gateway:
        context = _certificates(root, gateway) if options.tls else None
        async with _engine(Path(service.replicas[0].socket)):
            await asyncio.to_thread(gateway.start, service)
            await asyncio.to_thread(gateway.wait_healthy, chat=1)
            rows = [("nothing", _resident_mib(gateway))]
            idle = [await _connect(gateway, context) for _ in range(options.idle)]
            rows.append((f"{options.idle} idle connections", _resident_mib(gateway)))
            streams = [await _connect(gateway, context) for _ in range(options.streams)]
            await asyncio.gather(*(_ask(stream, text) for stream in streams))
            rows.append((f"and {options.streams} streams", _resident_mib(gateway)))
            for _, writer in (*idle, *streams):
                writer.close()
    print(f"| {'HTTPS' if options.tls else 'HTTP'} | resident MiB |\n|---|---:|")
    for name, mib in rows:
        print(f"| {name} | {mib:.0f} |")


@contextlib.asynccontextmanager
async def _engine(path: Path) -> AsyncIterator[None]:
    """Answers every chat with one chunk of a stream that has no end."""
    server = await asyncio.start_unix_server(_serve, path, backlog=2048)
    try:
        yield
    finally:
        server.close()


async def _serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"content-length: (\d+)", head)
            await reader.readexactly(int(length[1]) if length else 0)
            if head.startswith(b"GET /health"):
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
            else:
                writer.write(HEAD + b"9\r\ndata: 0\n\n\r\n")
            await writer.drain()
    writer.close()


async def _connect(gateway: Gateway, context: ssl.SSLContext | None) -> Connection:
    return await asyncio.open_connection("127.0.0.1", gateway.port, ssl=context)


async def _ask(stream: Connection, key: str) -> None:
    reader, writer = stream
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nx-api-key: {key}\r\nContent-Length: {len(BODY)}\r\n\r\n"
    writer.write(head.encode() + BODY)
    await reader.readuntil(b"data: 0\n\n")


def _certificates(root: Path, gateway: Gateway) -> ssl.SSLContext:
    authority = trustme.CA()
    made = authority.issue_cert("127.0.0.1")
    made.cert_chain_pems[0].write_to_path(root / "c.pem")
    made.private_key_pem.write_to_path(root / "k.pem")

    def with_tls(plan: GatewayPlan) -> GatewayPlan:
        return replace(plan, tls=TlsPlan(str(root / "c.pem"), str(root / "k.pem")))

    gateway.gateway_plan = with_tls
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


def _resident_mib(gateway: Gateway) -> float:
    assert gateway.process is not None
    status = Path(f"/proc/{gateway.process.pid}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+)", status)
    assert found is not None
    return int(found[1]) / 1024


if __name__ == "__main__":
    sys.exit(main())
