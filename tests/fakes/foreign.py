"""A small engine of another kind than vLLM: a real HTTP server, of the standard library, on a unix socket or a port.

It answers every POST with what it got. Flags make it late, silent or deaf; see below.
"""

from __future__ import annotations

import argparse
import contextlib
import http.server
import json
import os
import signal
import socket
import socketserver
import sys
import time
from pathlib import Path
from typing import Any


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--uds")
    parser.add_argument("--port", type=int)
    parser.add_argument("--health", default="/health", help="the only path of a GET that is answered with 200")
    parser.add_argument("--post", help="the only path of a POST that is answered with 200")
    parser.add_argument("--after", help="listen when this file exists")
    parser.add_argument("--hang", help="answer nothing while this file exists")
    parser.add_argument("--log", help="write the path of every request there")
    parser.add_argument("--slow", type=float, default=0, help="seconds that a POST takes")
    return parser.parse_known_args()[0]


ARGS = parse()


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def address_string(self) -> str:
        return "somebody"

    def log_message(self, *_: Any) -> None:
        if ARGS.log:
            with open(ARGS.log, "a", encoding="utf-8") as file:
                file.write(f"{self.command} {self.path}\n")

    def do_GET(self) -> None:
        self._answer(200 if self.path.partition("?")[0] == ARGS.health else 404, {"path": self.path})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"])).decode()
        time.sleep(ARGS.slow)
        names = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "PATH", "VALUE")
        told = {
            "path": self.path, "body": body, "host": self.headers["host"], "pid": os.getpid(), "argv": sys.argv,
            "cores": sorted(os.sched_getaffinity(0)), "env": {name: os.environ.get(name) for name in names},
        }  # fmt: skip
        self._answer(200 if ARGS.post in (None, self.path.partition("?")[0]) else 404, told)

    def _answer(self, status: int, data: dict[str, Any]) -> None:
        while ARGS.hang and Path(ARGS.hang).exists():
            time.sleep(0.05)
        body = json.dumps(data).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        with contextlib.suppress(OSError):  # who asked has given up
            self.wfile.write(body)


class Server(socketserver.ThreadingMixIn, socketserver.TCPServer):
    daemon_threads = True
    allow_reuse_address = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no error."""


class UnixServer(Server):
    address_family = socket.AF_UNIX
    allow_reuse_address = False


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    print(f"foreign engine with {sys.argv[1:]}", flush=True)
    while ARGS.after and not Path(ARGS.after).exists():
        time.sleep(0.05)
    if ARGS.uds is None and ARGS.port is None:
        signal.pause()
    server = UnixServer(ARGS.uds, Handler) if ARGS.uds else Server(("127.0.0.1", ARGS.port), Handler)
    server.serve_forever()


if __name__ == "__main__":
    main()
