"""A machine without a network: a bundle of the real engine, install.sh, `llmhost up`, a chat on real vLLM.

The machine is a network namespace with nothing but loopback, an empty HOME and an empty environment.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import free_port

CONFIG = """\
gateway: {{port: {port}}}
engine: {{device: cpu}}
services:
  chat: {{model: "demo:chat", args: {{enforce_eager: true}}}}
"""
LOOPBACK = """\
import fcntl, socket, struct
with socket.socket() as s:
    fcntl.ioctl(s, 0x8914, struct.pack("16sH14x", b"lo", 1 | 64))  # SIOCSIFFLAGS, IFF_UP | IFF_RUNNING: netdevice(7)
"""
CHAT = """\
import json, sys, urllib.request
body = {"model": "chat", "messages": [{"role": "user", "content": "Who are you?"}], "max_tokens": 20}
request = urllib.request.Request(sys.argv[1], json.dumps(body).encode(), {"Content-Type": "application/json"})
print(urllib.request.urlopen(request).read().decode())
"""
SCRIPT = """\
set -eu
"$PYTHON" loopback.py
grep -v lo: /proc/net/dev | grep : && exit 9
sh bundle/install.sh --home "$H" --prefix "$P" >install.log 2>&1
trap '"$P/bin/llmhost" --home "$H" down >&2' EXIT
"$P/bin/llmhost" --home "$H" up >up.log 2>&1
"$PYTHON" chat.py "http://127.0.0.1:$PORT/v1/chat/completions"
"""


@pytest.fixture
def place() -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp(prefix="lh", dir="/tmp"))
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


def llmhost(place: Path, *args: str) -> str:
    command = [sys.executable, "-m", "llmhost", "--home", str(place / "connected"), *args]
    done = subprocess.run(command, text=True, capture_output=True, check=False, timeout=900)
    assert done.returncode == 0, done.stderr
    return done.stdout


def make_bundle(place: Path, port: int) -> Path:
    """For a machine like this one, with the interpreter below our own environment and none of its packages."""
    facts = json.loads(llmhost(place, "facts", "--json"))
    base = str(Path(sys.base_prefix) / "bin" / f"python3.{sys.version_info[1]}")
    facts["interpreters"] = [{"path": base, "version": list(sys.version_info[:3]), "headers": False, "packages": {}}]
    facts["gpus"] = []
    (place / "facts.json").write_text(json.dumps(facts))
    (place / "llmhost.yaml").write_text(CONFIG.format(port=port))
    files = (place / name for name in ("facts.json", "llmhost.yaml", "bundle"))
    target, config, output = map(str, files)  # in pieces: tests/integration/bundle; to compress 3 GB takes minutes
    llmhost(place, "bundle", "create", "--target", target, "--config", config, "-o", output)
    return Path(base)


def test_from_a_bundle_to_a_chat_without_a_network(place: Path) -> None:
    if os.geteuid() or subprocess.run(["unshare", "-n", "true"], check=False, capture_output=True).returncode:
        pytest.skip("this user may not make network namespaces")
    port = free_port()
    python = make_bundle(place, port)
    for name, text in (("loopback.py", LOOPBACK), ("chat.py", CHAT)):
        (place / name).write_text(text)
    (place / "user").mkdir()
    environment = {
        "HOME": str(place / "user"), "PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "PYTHON": str(python),
        "H": str(place / "h"), "P": str(place / "p"), "PORT": str(port),
    }  # fmt: skip
    done = subprocess.run(
        ["unshare", "-n", "sh", "-c", SCRIPT], cwd=place, env=environment, text=True, capture_output=True, check=False,
        timeout=1200,
    )  # fmt: skip
    logs = "".join(f.read_text() for f in (place / "install.log", place / "up.log") if f.exists())
    assert done.returncode == 0, done.stderr + logs
    assert json.loads(done.stdout.splitlines()[-1])["choices"][0]["message"]["content"].strip()
    assert not [*place.glob("h.*"), *place.glob("h/.bundle-*")]
