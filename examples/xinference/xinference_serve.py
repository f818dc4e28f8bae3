"""Xinference with a model in it, as one program: starts `xinference-local`, launches a model there, and stays.

Xinference begins empty and is told over HTTP what to serve; whoever restarts it has to tell it again. Here the command
line says it all:

    xinference_serve.py --port 9997 [--register embedding definition.json] \
        model_name=bge-m3 model_type=embedding model_engine=sentence_transformers model_path=/data/models/bge-m3

The words at the end go to `xinference.client.Client.launch_model`. `--register` makes a model known that Xinference
does not know by itself (its documentation: "Custom Models"). It ends, with an error, when the model cannot be launched
or the server ends; SIGTERM goes on to the server.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

STARTS_WITHIN = 300
"""Seconds until the server, still empty, must answer."""


def main() -> int:
    asked = arguments()
    url = f"http://127.0.0.1:{asked.port}"
    program = Path(sys.executable).with_name("xinference-local")
    server = subprocess.Popen([program, "--host", "127.0.0.1", "--port", asked.port])
    signal.signal(signal.SIGTERM, lambda *_: server.terminate())
    try:
        wait_for(server, f"{url}/v1/models")
        launch(url, asked)
        return server.wait()
    finally:
        server.terminate()
        server.wait()


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--port", required=True, help="where the server listens, on 127.0.0.1")
    parser.add_argument("--register", nargs=2, metavar=("TYPE", "FILE"), help="a custom model, in JSON")
    parser.add_argument("launch", nargs="+", metavar="KEY=VALUE", help="what launch_model takes")
    return parser.parse_args()


def wait_for(server: subprocess.Popen[bytes], url: str) -> None:
    deadline = time.monotonic() + STARTS_WITHIN
    while server.poll() is None:
        try:
            urllib.request.urlopen(url, timeout=5).close()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)
        else:
            return
    sys.exit(f"xinference-local ended with status {server.returncode}")


def launch(url: str, asked: argparse.Namespace) -> None:
    from xinference.client import Client  # noqa: PLC0415 -- takes seconds, in which the server starts

    client = Client(url)
    if asked.register:
        kind, definition = asked.register
        client.register_model(model_type=kind, model=Path(definition).read_text(encoding="utf-8"), persist=False)
    wanted = dict(word.split("=", 1) for word in asked.launch)
    print("launched", client.launch_model(**wanted), flush=True)


if __name__ == "__main__":
    os.environ.setdefault("XINFERENCE_AUTH_ADVANCED", "false")  # the gateway has the keys; nobody could log in here
    sys.exit(main())
