"""Runs in the machine of a test: makes a home with the fake engine, and asks its gateway."""

from __future__ import annotations

import json
import sys
import urllib.error
import urllib.request
from pathlib import Path

from llmhost.paths import Home


def config(home: str, more: str = "") -> str:
    """The llmhost.yaml of a home: a chat service (with more options) and an embedding service on port 8000."""
    return f"""\
gateway: {{port: 8000}}
services:
  chat: {{model: {home}/models/chat, stop_timeout: 600{more}}}
  embedding: {{model: {home}/models/embed}}
"""


def make_home(root: str) -> None:
    """A home whose engine is built."""
    from tests.integration.workflow.conftest import Installed, make_engine

    home = Home(Path(root))
    home.models.mkdir(parents=True)
    home.marker.touch()
    make_engine(home)
    models = Installed(Home(home.models / "home"), 8000)
    models.model("chat")
    models.model("embed", "BertModel")
    home.config_file.write_text(config(root), encoding="utf-8")


def ask(path: str, body: str) -> None:
    """Print the status of a request to the gateway and what it answers."""
    request = urllib.request.Request(
        f"http://127.0.0.1:8000{path}", body.encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            print(json.dumps([answer.status, answer.read().decode()]))
    except urllib.error.HTTPError as e:
        with e:
            print(json.dumps([e.code, e.read().decode()]))
    except OSError as e:
        print(json.dumps([0, str(e)]))


if __name__ == "__main__":
    {"make-home": make_home, "ask": ask}[sys.argv[1]](*sys.argv[2:])
