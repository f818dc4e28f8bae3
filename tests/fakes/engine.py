"""A stand-in for vLLM's API server: standard library only, on a unix socket, with the faults that a test asks for.

Flags of vLLM that it does not know are accepted and ignored, so it can take the place of a real command. Faults come
from its own flags, in ``$FAKE_ENGINE`` (shell words) or on the command line. ``POST /fake/exit {"code": 0}`` ends it.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
import shlex
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import Any


def options(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--uds", default="")
    parser.add_argument("--nnodes", type=int, default=1, help="parts of one engine that find each other, as vLLM's do")
    parser.add_argument("--node-rank", type=int, default=0)
    parser.add_argument("--master-addr", default="127.0.0.1")
    parser.add_argument("--master-port", type=int, default=0)
    parser.add_argument("--headless", action="store_true", help="no API server")
    parser.add_argument("--served-model-name", nargs="+", default=["fake"])
    parser.add_argument("--start-delay", type=float, default=0, help="seconds before it listens")
    parser.add_argument("--wait-for", help="a file that must exist before it listens")
    parser.add_argument("--say", action="append", default=[], help="print this line to stderr first")
    parser.add_argument("--say-bytes", help="print these bytes (hex) first")
    parser.add_argument("--exit-early", type=int, help="exit with this status instead of listening")
    parser.add_argument("--exit-early-if", help="exit with status 1 when this file exists")
    parser.add_argument("--ignore-term", action="store_true")
    parser.add_argument("--children", type=int, default=0, help="processes that called setsid and lost their parent")
    parser.add_argument("--stubborn-children", action="store_true", help="they ignore SIGTERM")
    parser.add_argument("--no-chat-template", action="store_true", help="chat is refused with 400, as by vLLM")
    parser.add_argument("--status", type=int, default=200, help="answer every request of a kind with this status")
    parser.add_argument("--shutdown-timeout", type=float, default=0, help="seconds to drain after SIGTERM, as in vLLM")
    parser.add_argument("--mark", help="a word that every answer carries")
    parser.add_argument("--metrics", help="a page of vLLM's after one request, to be served at /metrics; none: 404")
    parser.add_argument("--core", action="store_true", help="compute in VLLM::EngineCore and VLLM::Worker processes")
    parser.add_argument("--hang", help="while this file exists, only /health and /metrics are answered")
    parser.add_argument("--no-metrics", action="store_true", help="/metrics holds no numbers, as --disable-log-stats")
    parser.add_argument("--load", help="a file with a number: so many more requests are reported to be running")
    parser.add_argument("--tokens", help="while this file exists, tokens are reported to be generated")
    parser.add_argument("--shared-memory", help="make a segment, as vLLM's message queues do, and write its name here")
    parser.add_argument("--dump", help="write argv, environment and process id to this file as JSON")
    known, _ = parser.parse_known_args([*shlex.split(os.environ.get("FAKE_ENGINE", "")), *argv])
    return known


class Core:
    """VLLM::EngineCore with its VLLM::Worker: every request takes a byte there and back."""

    def __init__(self) -> None:
        self.turn = threading.Lock()
        self.here, there = socket.socketpair()
        if os.fork() == 0:
            self.here.close()
            named("VLLM::EngineCore")
            near, far = socket.socketpair()
            if os.fork() == 0:
                near.close()
                named("VLLM::Worker")
                serve(far, lambda byte: byte)
            far.close()
            serve(there, lambda byte: near.sendall(byte) or near.recv(1))
        there.close()

    def compute(self) -> bool:
        with self.turn:
            try:
                self.here.sendall(b".")
                return self.here.recv(1) == b"."
            except OSError:
                return False


def named(name: str) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    ctypes.CDLL(None).prctl(15, name.encode(), 0, 0, 0)  # PR_SET_NAME


def serve(connection: socket.socket, answer: Any) -> None:
    """Until the other end is gone."""
    with contextlib.suppress(OSError):
        while byte := connection.recv(1):
            connection.sendall(answer(byte))
    os._exit(0)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    given: argparse.Namespace
    answered = 0
    core: Core | None = None
    running = 0
    served = 0
    memory = bytearray()

    def do_GET(self) -> None:
        if self.path == "/v1/models":
            names = self.given.served_model_name
            self.answer({"object": "list", "data": [{"id": name, "object": "model"} for name in names]})
        elif self.path == "/metrics" and self.given.metrics == "none":
            self.answer({}, 404)
        elif self.path == "/metrics" and self.given.metrics:
            page = metrics(Path(self.given.metrics).read_text(), Handler.answered)
            self.send_text(page.encode(), 200, "text/plain")
        elif self.path == "/metrics":
            self.metrics()
        else:
            self.answer({}, 200 if self.path.partition("?")[0] == "/health" else 404)

    def metrics(self) -> None:
        """The numbers of vLLM that say how much it has to do."""
        extra = int(Path(self.given.load).read_text()) if self.given.load and Path(self.given.load).exists() else 0
        tokens = time.monotonic() if self.given.tokens and Path(self.given.tokens).exists() else Handler.served
        label = '{engine="0",model_name="fake"}'
        lines = [
            f"vllm:num_requests_running{label} {float(Handler.running + extra)}",
            f"vllm:num_requests_waiting{label} 0.0",
            f"vllm:prompt_tokens_total{label} {float(Handler.served)}",
            f"vllm:generation_tokens_total{label} {float(tokens)}",
            f'vllm:request_success_total{{engine="0",finished_reason="stop"}} {float(Handler.served)}',
            f'vllm:request_success_total{{engine="0",finished_reason="abort"}} {time.monotonic()}',
        ]
        text = "" if self.given.no_metrics else "\n".join(lines) + "\n"
        self.send_text(text.encode(), 200, "text/plain")

    def do_POST(self) -> None:
        Handler.answered += 1
        Handler.running += 1
        try:
            self.post()
        finally:
            Handler.running -= 1

    def compute(self, seconds: float) -> bool:
        """What a request takes before it is answered."""
        while self.given.hang and Path(self.given.hang).exists():
            time.sleep(0.05)
        time.sleep(seconds)
        if self.core is not None and not self.core.compute():
            # vLLM's watchdog looks every 5 s whether its engine core lives, and then ends with status 0.
            threading.Timer(5, os._exit, [0]).start()
            return False
        Handler.served += 1
        return True

    def post(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or b"{}")
        if self.path == "/fake/exit":
            with contextlib.suppress(OSError):  # whoever asked may be gone already
                self.answer({})
            os._exit(int(body.get("code", 0)))
        if Drain.began.is_set():
            self.answer({"choices": [{"index": 0, "message": {}, "finish_reason": "abort"}]})  # vLLM 0.32 does this
            return
        with Drain.working():
            self.work(body)

    def work(self, body: dict[str, Any]) -> None:
        """``fake: {"chunks": 20, "seconds": 0.1}`` makes a slow stream, ``seconds`` alone a late answer.

        With ``until`` a stream ends early, when that file is there; the file ``begun`` is made when a request is there.
        """
        wish = body.get("fake") or {}
        if wish.get("begun"):
            Path(wish["begun"]).touch()
        if self.path == "/fake/allocate":
            Handler.memory = bytearray(b"x") * (int(body["megabytes"]) * 2**20)
        make = ANSWERS.get(self.path)
        if make is None:
            self.answer({"error": {"message": "not found"}}, 404)
        elif self.given.status != 200:
            self.answer({"error": {"message": "as the test wants it"}}, self.given.status)
        elif not self.compute(0 if body.get("stream") else float(wish.get("seconds", 0))):
            self.answer({"error": {"message": "EngineCore encountered an issue."}}, 500)
        elif self.given.no_chat_template and self.path == "/v1/chat/completions":
            self.answer({"error": {"message": "you must provide a chat template"}}, 400)
        elif body.get("stream"):
            self.stream(body, int(wish.get("chunks", 3)), float(wish.get("seconds", 0)), wish.get("until"))
        else:
            usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
            said = {"model": body.get("model"), "mark": self.given.mark, "program": program(), "usage": usage}
            self.answer({**said, **make(body)})

    def answer(self, data: dict[str, Any], status: int = 200) -> None:
        self.send_text(json.dumps(data).encode(), status, "application/json")

    def send_text(self, text: bytes, status: int, content_type: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def stream(self, body: dict[str, Any], chunks: int, seconds: float, until: str | None) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for number in range(chunks):
            time.sleep(seconds if number else 0)
            if until and Path(until).exists():
                break
            word = ("one ", "two ", "three ")[number % 3]
            self.event(json.dumps({"model": body.get("model"), "choices": [{"index": 0, "delta": {"content": word}}]}))
        self.event("[DONE]")
        self.wfile.write(b"0\r\n\r\n")

    def event(self, data: str) -> None:
        text = f"data: {data}\n\n".encode()
        self.wfile.write(b"%x\r\n%s\r\n" % (len(text), text))

    def address_string(self) -> str:
        return "unix"


def program() -> str:
    """``chat-0``, from the mark that the guard gave."""
    return os.environ.get("LLMHOST_PROGRAM", "").rpartition(":")[2]


class Drain:
    """After SIGTERM: requests that run go on for `--shutdown-timeout`, new ones are aborted, then the process ends."""

    began = threading.Event()
    lock = threading.Lock()
    active = 0

    @classmethod
    @contextlib.contextmanager
    def working(cls) -> Iterator[None]:
        with cls.lock:
            cls.active += 1
        try:
            yield
        finally:
            with cls.lock:
                cls.active -= 1

    @classmethod
    def begin(cls, seconds: float) -> None:
        if cls.began.is_set():
            return
        cls.began.set()
        threading.Thread(target=cls.finish, args=(time.monotonic() + seconds,), daemon=True).start()

    @classmethod
    def finish(cls, deadline: float) -> None:
        while cls.active and time.monotonic() < deadline:
            time.sleep(0.01)
        os._exit(0)


def chat(body: dict[str, Any]) -> dict[str, Any]:
    message = {"role": "assistant", "content": "fake"}
    return {"object": "chat.completion", "choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}


def completion(body: dict[str, Any]) -> dict[str, Any]:
    return {"object": "text_completion", "choices": [{"index": 0, "text": "fake", "finish_reason": "stop"}]}


def embeddings(body: dict[str, Any]) -> dict[str, Any]:
    texts = body["input"] if isinstance(body["input"], list) else [body["input"]]
    vectors = [{"object": "embedding", "index": n, "embedding": [0.6, 0.8]} for n in range(len(texts))]
    return {"object": "list", "data": vectors}


def rerank(body: dict[str, Any]) -> dict[str, Any]:
    count = len(body["documents"])
    return {"results": [{"index": n, "relevance_score": 1 - n / (count + 1)} for n in range(count)]}


def metrics(page: str, requests: int) -> str:
    """The page after so many requests: everything that counts is multiplied, gauges stay."""
    lines, counts = [], False
    for line in page.splitlines():
        if line.startswith("# TYPE"):
            counts = line.endswith((" counter", " histogram", " summary"))
        elif counts and not line.startswith("#"):
            name, _, value = line.rpartition(" ")
            lines.append(f"{name} {float(value) * requests}")
            continue
        lines.append(line)
    return "\n".join(lines) + "\n"


ANSWERS = {
    "/v1/chat/completions": chat,
    "/v1/completions": completion,
    "/v1/embeddings": embeddings,
    "/v1/rerank": rerank,
    "/v2/rerank": rerank,
    "/rerank": rerank,
}


class Server(ThreadingMixIn, HTTPServer):
    address_family = socket.AF_UNIX
    daemon_threads = True

    def server_bind(self) -> None:
        self.socket.bind(self.server_address)


def share_memory(file: str) -> Any:
    """A segment that Python's resource tracker, a process of ours, looks after."""
    from multiprocessing import get_context
    from multiprocessing.shared_memory import SharedMemory

    segment, semaphore = SharedMemory(create=True, size=4096), get_context("spawn").Semaphore()
    Path(file).write_text(segment.name)
    return segment, semaphore


def leave_children(count: int, stubborn: bool) -> None:
    """Processes in sessions of their own whose parent is gone: what a kill of the process group misses."""
    for _ in range(count):
        between = os.fork()
        if between == 0:
            os.setsid()
            if os.fork() == 0:
                signal.signal(signal.SIGTERM, signal.SIG_IGN if stubborn else signal.SIG_DFL)
                while True:
                    time.sleep(60)
            os._exit(0)
        os.waitpid(between, 0)


def rendezvous(given: argparse.Namespace) -> None:
    """All parts connect to rank 0, which waits for them; when one is gone, the others fail as vLLM's do."""
    if given.node_rank:
        others = [reached(given.master_addr, given.master_port)]
    else:
        with socket.create_server((given.master_addr, given.master_port)) as server:
            others = [server.accept()[0] for _ in range(1, given.nnodes)]
    for other in others:
        threading.Thread(target=hold, args=(other,), daemon=True).start()


def reached(address: str, port: int) -> socket.socket:
    while True:
        with contextlib.suppress(OSError):
            return socket.create_connection((address, port))
        time.sleep(0.05)


def hold(other: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while other.recv(1):
            pass
    if not Drain.began.is_set():
        time.sleep(0.2)
        print("RuntimeError: Executor failed.", file=sys.stderr, flush=True)
        os._exit(1)


def main(argv: list[str]) -> int:
    given = options(argv)
    if given.ignore_term:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    else:
        signal.signal(signal.SIGTERM, lambda *_: Drain.begin(given.shutdown_timeout))
    if given.dump:
        environ = {os.fsdecode(k): os.fsdecode(v) for k, v in os.environb.items()}
        Path(given.dump).write_text(json.dumps({"argv": sys.argv, "env": environ, "pid": os.getpid()}))
    shared = share_memory(given.shared_memory) if given.shared_memory else None
    leave_children(given.children, given.stubborn_children)
    for line in given.say:
        print(line, file=sys.stderr, flush=True)
    if given.say_bytes:
        os.write(2, bytes.fromhex(given.say_bytes))
    while given.wait_for and not Path(given.wait_for).exists():
        time.sleep(0.02)
    time.sleep(given.start_delay)
    if given.exit_early_if and Path(given.exit_early_if).exists():
        return 1
    if given.exit_early is not None:
        return int(given.exit_early)
    if given.nnodes > 1:
        rendezvous(given)
    if given.headless:
        threading.Event().wait()
    Handler.given = given
    Handler.core = Core() if given.core else None
    with Server(given.uds, Handler) as server, contextlib.suppress(KeyboardInterrupt):
        server.serve_forever()
    del shared
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
