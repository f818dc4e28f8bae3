"""What a guard costs beside a ready, idle engine: resident memory, and CPU time with the default hang watch.

The engine is a stub that answers with as many metrics as vLLM has (54 KB). The watch runs 100 times as often as by
default, so that seconds are enough to measure it: python benchmarks/guard.py [--seconds 20]
"""

from __future__ import annotations

import argparse
import json
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE_BYTES = 54_000
DEFAULT, FASTER = 60.0, 100
COUNTERS = (
    'vllm:num_requests_running{engine="0"} 0.0\nvllm:num_requests_waiting{engine="0"} 0.0\n'
    'vllm:prompt_tokens_total{engine="0"} 19.0\nvllm:generation_tokens_total{engine="0"} 1.0\n'
    'vllm:request_success_total{engine="0",finished_reason="stop"} 1.0\n'
)


def serve(path: str) -> None:
    """Answer everything with the page."""
    line = 'vllm:time_to_first_token_seconds_bucket{engine="0",le="0.001",model_name="chat"} 0.0\n'
    page = (COUNTERS + line * ((PAGE_BYTES - len(COUNTERS)) // len(line))).encode()
    head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(page)}\r\nConnection: close\r\n\r\n".encode()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen()
        while True:
            with server.accept()[0] as connection:
                connection.recv(65536)
                connection.sendall(head + page)


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/schedstat").read_text().split()
    return int(fields[0]) / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=20)
    seconds = parser.parse_args().seconds
    with tempfile.TemporaryDirectory(prefix="lh", dir="/tmp") as directory:
        place = Path(directory)
        spec = {
            "program": "chat-0", "kind": "chat", "model": "m", "socket": f"{place}/s", "state_file": f"{place}/state",
            "log_file": None, "env": {"LLMHOST_PROGRAM": f"{place}:chat-0"}, "locks": [], "start_timeout": 60,
            "stop_timeout": 1, "hang_timeout": DEFAULT / FASTER,
        }  # fmt: skip
        (place / "spec").write_text(json.dumps(spec))
        engine = ("/bin/sleep", "600")  # the stub lives here; the guard removes leftover sockets before it starts this
        guard = ROOT / "llmhost/supervise/guard.py"
        command = [sys.executable, "-I", "-S", str(guard), f"{place}/spec", "--", *engine]
        with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
            while not (place / "state").exists() or json.loads((place / "state").read_text())["state"] != "loading":
                time.sleep(0.01)
            threading.Thread(target=serve, args=(spec["socket"],), daemon=True).start()
            while json.loads((place / "state").read_text())["state"] != "ready":
                time.sleep(0.01)
            before = cpu_seconds(process.pid)
            time.sleep(seconds)
            used = cpu_seconds(process.pid) - before
            status = Path(f"/proc/{process.pid}/status").read_text()
            process.terminate()
    print(f"resident      {int(status.partition('VmRSS:')[2].split()[0]) / 1024:.1f} MiB")
    print(f"CPU           {used / seconds / FASTER * 100:.4f} % of a core with hang_timeout {DEFAULT:g} s")


if __name__ == "__main__":
    main()
