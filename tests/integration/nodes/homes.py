"""Homes of llmhost on hosts that are namespaces: what `llmhost node` is tested and measured on."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llmhost import __version__
from llmhost.bundle.own_wheel import own_digest
from llmhost.paths import Home
from tests import netns
from tests.integration.workflow.conftest import make_engine
from tests.netns import Host, Network
from tests.wheels import wheelhouse

CONFIG = """gateway: {{port: 8000}}   # as it comes
# what we serve
services:
  chat: {{model: {model}, replicas: {replicas}}}
"""


class Homes:
    """Hosts with a home each, at ``~/.llmhost``."""

    def __init__(self, network: Network) -> None:
        self.network = network

    @property
    def hosts(self) -> dict[str, Host]:
        return self.network.hosts

    def add(self, name: str, *, installed: bool = True) -> Host:
        """One more host, which all others may log in at; ``installed``: it has this llmhost already."""
        host = self.network.add(name)
        for other in self.hosts.values():
            if other is not host:
                other.trust(host)
                host.trust(other)
        (host.root / ".ssh/rc").write_text(f"echo Welcome to {name}!\n", encoding="utf-8")  # some hosts greet
        make_engine(self.home(host))
        self.home(host).marker.touch()
        if installed:
            self.install(host)
        return host

    def home(self, host: Host) -> Home:
        return Home(host.root / ".llmhost")

    def install(self, host: Host, version: str = __version__, digest: str | None = None) -> None:
        """As `llmhost node add` leaves it, but that it runs this checkout, which may call itself an older one."""
        app = self.home(host).root / "app"
        made = app / f"llmhost-{version}-{digest or own_digest()}"
        (made / "bin").mkdir(parents=True, exist_ok=True)
        (made / ".complete").touch()
        program = made / "bin/llmhost"
        code = f"import llmhost; llmhost.__version__ = '{version}'; from llmhost.__main__ import main; main()"
        program.write_text(f'#!/bin/sh\nexec {sys.executable} -P -c "{code}" "$@"\n', encoding="utf-8")
        program.chmod(0o755)
        (app / "bin").mkdir(exist_ok=True)
        (app / "bin/llmhost").unlink(missing_ok=True)
        (app / "bin/llmhost").symlink_to(program)

    def configure(self, host: Host, replicas: int = 3) -> None:
        """An llmhost.yaml with one service of a model that all hosts have."""
        model = make_model(self.network.place / "model")
        text = CONFIG.format(model=model, replicas=replicas)
        self.home(host).config_file.write_text(text, encoding="utf-8")

    def run(self, host: Host, *words: str, ok: int | None = 0) -> str:
        """What `llmhost WORDS` prints there; nothing of it is a traceback."""
        done = host.run(*host.llmhost(*words), ok=ok)
        assert "Traceback" not in done.stderr, done.stderr
        return done.stdout

    def refused(self, host: Host, *words: str, ok: int = 1) -> tuple[str, str]:
        """The error and the hint of a command that must fail."""
        done = host.run(*host.llmhost(*words), ok=ok)
        lines = done.stderr.splitlines()
        (error,) = (line for line in lines if line.startswith("error: "))
        (hint,) = (line for line in lines if line.startswith("hint: "))
        assert "Traceback" not in done.stderr
        return error, hint

    def status(self, host: Host) -> dict[str, dict[str, Any]]:
        """`status --all-nodes` as it is seen there, by node."""
        told = json.loads(self.run(host, "status", "--all-nodes", "--json", ok=None))
        return {node["node"]: node for node in told["nodes"]}

    def chat_ready(self, host: Host, *nodes: str) -> bool:
        """Whether these nodes, and no others, have everything ready."""
        return {name for name, node in self.status(host).items() if node["ready"]} == set(nodes)


def make_model(folder: Path) -> Path:
    """A model directory with everything that is read before an engine starts."""
    if not folder.exists():
        folder.mkdir()
        config = {
            "architectures": ["Qwen3ForCausalLM"], "num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 8,
            "max_position_embeddings": 128, "torch_dtype": "bfloat16",
        }  # fmt: skip
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
        header = json.dumps({"w": {"dtype": "BF16", "shape": [4], "data_offsets": [0, 8]}}).encode()
        (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    return folder


@contextmanager
def some_hosts() -> Iterator[Network]:
    """A switch in a directory of its own; pip there takes wheels from here. Raises `netns.CannotRun`."""
    place = Path(tempfile.mkdtemp(prefix="lhn", dir="/tmp"))
    try:
        netns.require()
        pip = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheelhouse()), "PIP_CONFIG_FILE": os.devnull}
        with netns.network(place, pip) as made:
            yield made
    finally:
        shutil.rmtree(place)


def make_nodes(network: Network, *names: str) -> Homes:
    """Nodes with a service of as many replicas, added on the first of them. Nothing runs yet."""
    homes = Homes(network)
    for name in names:
        homes.add(name)
    first, *others = network.hosts.values()
    homes.configure(first, len(names))
    for other in others:
        homes.run(first, "node", "add", f"root@{other.name}" if other is others[0] else other.address)
    return homes
