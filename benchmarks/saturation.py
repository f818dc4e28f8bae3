"""Does the hang watch restart an engine that is only busy? Saturating load on a real vLLM, and what its guard says.

    python benchmarks/saturation.py [--seconds 3600] [--in-flight 32] [--engines DIR]

The demo's chat service alone, in a home of its own below /tmp, with the hang watch as it is by default. Each of the
`--in-flight` clients asks again as soon as it was answered; vLLM computes 8 requests together, so the others wait in
its queue all the time. Half of the requests are streams; some prompts are long. `--engines` is the directory of that
name of a home whose engine is already built.
"""

from __future__ import annotations

import argparse
import http.client
import json
import random
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

CONFIG = """
gateway: {{port: {port}}}
services:
  chat:
    model: demo:chat
    served_as: demo-chat
    args: {{max_model_len: 4096, max_num_seqs: 8, dtype: float32, enforce_eager: true}}
"""
LONGEST_SECONDS = 600.0
"""For one answer: a request waits for many others here."""
MISS = re.compile(r"\[guard\] chat-0: no .* \(\d+ of \d+\)$", re.M)
ABORTED = re.compile(r'"finish_reason": ?"abort"')
BUSY = re.compile(r"^vllm:num_requests_(running|waiting)\{[^}]*\} ([0-9.]+)$", re.M)


class Load:
    """Clients that never pause; `failed` says what was not answered as it should."""

    def __init__(self, port: int, clients: int) -> None:
        self.port = port
        self.answered = self.streams = self.tokens = 0
        self.failed: list[str] = []
        self.over = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._run, args=(number,)) for number in range(clients)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        for thread in self._threads:
            thread.join()

    def _run(self, seed: int) -> None:
        draw = random.Random(seed)
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=LONGEST_SECONDS)
        while not self.over.is_set():
            try:
                self._ask(connection, draw)
            except (OSError, http.client.HTTPException) as e:
                self._note(repr(e))
                connection.close()
                time.sleep(1)
        connection.close()

    def _ask(self, connection: http.client.HTTPConnection, draw: random.Random) -> None:
        streamed, tokens = draw.random() < 0.5, draw.randint(50, 800)
        words = draw.choice((5, 50, 500))
        message = " ".join(str(draw.randint(0, 9)) for _ in range(words))
        body: dict[str, Any] = {
            "model": "demo-chat", "messages": [{"role": "user", "content": message}], "stream": streamed,
            "max_tokens": tokens, "min_tokens": tokens, "ignore_eos": True,
        }  # fmt: skip
        connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        text = answer.read().decode()
        whole = text.rstrip().endswith("data: [DONE]") if streamed else '"completion_tokens"' in text
        if answer.status != 200 or not whole or ABORTED.search(text):
            return self._note(f"{answer.status} {text[-200:]}")
        with self._lock:
            self.answered += 1
            self.streams += streamed
            self.tokens += tokens
        return None

    def _note(self, text: str) -> None:
        with self._lock:
            self.failed.append(f"{time.strftime('%H:%M:%S')} {text}")


class Watcher:
    """What the guard's file and the engine's counters say, looked at again and again."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.first = self.says()
        self.not_ready: list[str] = []
        self.looks = self.queued = 0

    def says(self) -> dict[str, Any]:
        said: dict[str, Any] = json.loads((self.home / "run/chat-0.state.json").read_text())
        return said

    def watch(self, seconds: float) -> None:
        end, next_look = time.monotonic() + seconds, 0.0
        while (now := time.monotonic()) < end:
            said = self.says()
            if said["state"] != "ready" and (not self.not_ready or said["error"] not in self.not_ready[-1]):
                self.not_ready.append(f"{time.strftime('%H:%M:%S')} {said['state']}: {said['error']}")
            if now >= next_look:
                self._look()
                next_look = now + 10
            time.sleep(0.2)

    def _look(self) -> None:
        try:
            page = self._page()
        except (OSError, http.client.HTTPException):
            return
        self.looks += 1
        self.queued += any(kind == "waiting" and float(number) > 0 for kind, number in BUSY.findall(page))

    def _page(self) -> str:
        connection = http.client.HTTPConnection("engine", timeout=60)
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.settimeout(60)
        connection.sock.connect(str(self.home / "run/chat-0.sock"))
        try:
            connection.request("GET", "/metrics")
            return connection.getresponse().read().decode()
        finally:
            connection.close()

    def misses(self) -> int:
        """As the log tells, with those of its files that were rotated away."""
        logs = (self.home / "logs").glob("chat-0.log*")
        return sum(len(MISS.findall(log.read_text(errors="replace"))) for log in logs)


def llmhost(home: Path, *args: str) -> None:
    subprocess.run([sys.executable, "-m", "llmhost", "--home", str(home), *args], check=True)


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port: int = s.getsockname()[1]
        return port


def report(load: Load, watcher: Watcher, seconds: float) -> None:
    said = watcher.says()
    same = "the same engine" if said["engine_pid"] == watcher.first["engine_pid"] else "another engine"
    print(f"seconds of load              {seconds:.0f}")
    print(f"requests answered            {load.answered}, {load.streams} of them streamed, {load.tokens} tokens")
    print(f"requests waited in vLLM      in {watcher.queued} of {watcher.looks} looks")
    print(f"failed requests              {len(load.failed)}")
    print(f"misses of the hang watch     {watcher.misses()}")
    print(f"times not ready              {len(watcher.not_ready)}")
    print(f"restarts                     {said['restarts']}, {same}")
    for line in watcher.not_ready:
        print(f"  {line}")
    for words, count in Counter(text.split(" ", 1)[1] for text in load.failed).most_common():
        print(f"  {count} times {words}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=3600)
    parser.add_argument("--in-flight", type=int, default=32)
    parser.add_argument("--engines", type=Path)
    options = parser.parse_args()
    home, port = Path(tempfile.mkdtemp(prefix="lh", dir="/tmp")), free_port()
    (home / "llmhost.yaml").write_text(CONFIG.format(port=port), encoding="utf-8")
    if options.engines:
        (home / "engines").symlink_to(options.engines.resolve())
    try:
        llmhost(home, "up")
        watcher, begin = Watcher(home), time.monotonic()
        with Load(port, options.in_flight) as load:
            watcher.watch(options.seconds)
            seconds = time.monotonic() - begin
        report(load, watcher, seconds)
    finally:
        llmhost(home, "down")
        shutil.rmtree(home)


if __name__ == "__main__":
    main()
