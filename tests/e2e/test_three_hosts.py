"""Three hosts with real vLLM: replicas on two of them, asked through the third, under load all the time."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.e2e.conftest import Installation
from tests.e2e.test_spanning import PATIENCE, add_with_engines, ask, replica
from tests.integration.nodes.homes import Homes
from tests.netns import Host, wait_for

CONFIG = """gateway: {{port: 8000}}
services:
  chat: {{model: {model}, replicas: 2, env: {{VLLM_CPU_OMP_THREADS_BIND: nobind, OMP_NUM_THREADS: 1}},
    args: {{enforce_eager: true, max_model_len: 1024}}}}
"""
WORKERS = 4
CLIENT = f"""
import threading, time
from openai import OpenAI

def work(number):
    client = OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="none", max_retries=0, timeout=120)
    while True:
        try:
            answer = client.chat.completions.create(model="chat", max_tokens=16, temperature=0,
                messages=[{{"role": "user", "content": "What is the capital of France?"}}])
            said = "ok" if "Paris" in answer.choices[0].message.content else "wrong"
        except Exception as e:
            said = repr(e)
        print(number, said.splitlines()[0], flush=True)
        time.sleep(1)  # leaves the cores to an engine that starts

threads = [threading.Thread(target=work, args=(i,)) for i in range({WORKERS})]
for thread in threads:
    thread.start()
"""


class Load:
    """Clients of the OpenAI package on a host; a line for each answer: the client's number, and "ok" or the error."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def answers(self) -> list[str]:
        return self.file.read_text(encoding="utf-8").splitlines()

    def lost(self) -> list[str]:
        return [line for line in self.answers() if not line.endswith(" ok")]

    def wait_for_more(self, requests: int = 5) -> None:
        """Until every client had so many more good answers: none of them still hangs."""
        seen = len(self.answers())
        wait_for(lambda: all(self.answers()[seen:].count(f"{i} ok") >= requests for i in range(WORKERS)), PATIENCE)


@contextmanager
def load(host: Host) -> Iterator[Load]:
    script, said = host.root / "client.py", host.root / "answers"
    script.write_text(CLIENT, encoding="utf-8")
    said.touch()
    with host.popen("sh", "-c", f"exec {sys.executable} {script} >{said} 2>&1"):
        try:
            yield Load(said)
        finally:
            host.run("pkill", "-KILL", "-f", str(script), ok=None)


def lost_during(clients: Load, change: Callable[[], None]) -> list[str]:
    """What was lost while something changes, until all clients are served again."""
    before = len(clients.lost())
    change()
    clients.wait_for_more()
    return clients.lost()[before:]


def serves(homes: Homes, at: Host, *nodes: str) -> None:
    """Wait until exactly these nodes have everything ready, as it is seen there."""
    wait_for(lambda: homes.chat_ready(at, *nodes), PATIENCE)


def check(homes: Homes, engines: Path, model: Path) -> None:
    a, b, c = (add_with_engines(homes, name, engines) for name in "abc")
    homes.home(a).config_file.write_text(CONFIG.format(model=model), encoding="utf-8")
    for name in "bc":
        homes.run(a, "node", "add", f"root@{name}")
    file = homes.home(a).config_file
    file.write_text(
        file.read_text(encoding="utf-8").replace("replicas: 2", "replicas: 2, nodes: [a, b]"), encoding="utf-8"
    )
    a.run(*a.llmhost("up", "--all-nodes"), patience=PATIENCE)
    assert all("Paris" in ask(host) for host in (a, b, c))
    assert not json.loads(homes.run(c, "status", "--json"))["services"][0]["replicas"]
    with load(c) as clients:
        clients.wait_for_more()
        assert clients.lost() == []
        # A cable tells nobody that it was pulled: each client loses the request that it has there, and no other.
        assert len(lost_during(clients, lambda: b.link(up=False))) <= WORKERS
        assert lost_during(clients, lambda: back(homes, a, b)) == []
        assert len(lost_during(clients, b.cut)) <= WORKERS
        assert lost_during(clients, lambda: boot(homes, a, b)) == []
    homes.run(a, "stop", "chat")  # the one that was cut off twice serves all three
    assert all("Paris" in ask(host) for host in (a, b, c))
    assert replica(homes, b, "chat-1")["state"] == "ready"
    a.run(*a.llmhost("down", "--all-nodes"), patience=PATIENCE)


def back(homes: Homes, a: Host, b: Host) -> None:
    b.link(up=True)
    serves(homes, a, "a", "b", "c")


def boot(homes: Homes, a: Host, b: Host) -> None:
    """Its systemd unit does that."""
    b.boot()
    b.run(*b.llmhost("up"), patience=PATIENCE)
    serves(homes, a, "a", "b", "c")


def test_three_hosts(installation: Installation, homes: Homes) -> None:
    check(homes, installation.home / "engines", installation.checkout / "llmhost/demo/chat")
