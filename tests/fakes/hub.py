"""A model hub on a local port that speaks the APIs of Hugging Face and ModelScope, as far as their clients use them.

This is the one fake of the tests of downloads, at the outermost edge: the clients in front of it are the real ones. It
can cut a transfer, send wrong bytes, answer with an error, and it remembers what it was asked.
"""

from __future__ import annotations

import hashlib
import json
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LARGE = 1000
"""Files from this size on are LFS files: they lie elsewhere, behind a redirect."""


@dataclass
class Trouble:
    """What happens to the next ``times`` transfers of a file (or listings, for the path '')."""

    times: int = 1
    cut_at: int | None = None
    wrong: bool = False
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class FakeHub:
    """``repositories`` by owner/name; ``trouble`` by path of a file."""

    repositories: dict[str, dict[str, bytes]]
    token: str | None = None
    """Needed for everything when it is set."""
    gated: bool = False
    commit: str = COMMIT
    trouble: dict[str, Trouble] = field(default_factory=dict)
    transfers: list[tuple[str, str | None]] = field(default_factory=list)
    """(path, Range header) of every GET of a file."""
    seen_tokens: list[str | None] = field(default_factory=list)
    url: str = ""
    hold: threading.Event | None = None
    """When set, a transfer waits for it half-way."""


@contextmanager
def running(hub: FakeHub) -> Iterator[FakeHub]:
    """Serve it until the end of the block."""
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = _Server(("127.0.0.1", 0), handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield hub
    finally:
        if hub.hold:
            hub.hold.set()
        server.shutdown()
        thread.join()
        server.server_close()


def git_id(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients hang up; anything else is worth seeing."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""

    def do_HEAD(self) -> None:
        self._route()

    def do_GET(self) -> None:
        self._route()

    def _route(self) -> None:  # noqa: PLR0911  (one return for each route)
        parts = urlsplit(self.path)
        path, query = unquote(parts.path).strip("/").split("/"), parse_qs(parts.query)
        bearer = (self.headers.get("Authorization") or "").removeprefix("Bearer ").strip()
        cookie = (self.headers.get("Cookie") or "").rpartition("m_session_id=")[2].partition(";")[0]
        token = bearer or cookie or None
        if path[0] != "cdn":
            self.hub.seen_tokens.append(token)
            if self.hub.token and token != self.hub.token:
                return self._refuse(token)
        if path[:2] == ["api", "models"]:
            return self._hf_listing("/".join(path[2:4]), path[5] if len(path) > 5 else "main")
        if path[0] == "api" and path[1].startswith("whoami"):
            return self._json({"name": "somebody", "type": "user"})
        if path[:3] == ["api", "v1", "models"] and path[-1] == "files":
            return self._ms_listing("/".join(path[3:5]), query["Revision"][0])
        if path[:3] == ["api", "v1", "models"] and path[-1] == "repo":
            return self._file("/".join(path[3:5]), query["FilePath"][0], large_elsewhere=False)
        if len(path) > 4 and path[2] == "resolve":
            return self._file("/".join(path[:2]), "/".join(path[4:]), large_elsewhere=True)
        if path[0] == "cdn":
            return self._send(path[-1], self._content("/".join(path[1:3]), "/".join(path[3:])) or b"")
        return self._json({"error": "not found"}, 404)

    def _refuse(self, token: str | None) -> None:
        if self.hub.gated:
            self._json({"error": "gated"}, 403, {"X-Error-Code": "GatedRepo"})
        else:
            self._json({"error": "Invalid credentials"}, 401)

    def _content(self, repository: str, path: str) -> bytes | None:
        return self.hub.repositories.get(repository, {}).get(path)

    def _hf_listing(self, repository: str, revision: str) -> None:
        files = self.hub.repositories.get(repository)
        if files is None:
            return self._json({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})
        if revision not in ("main", self.hub.commit):
            return self._json({"error": "Revision not found"}, 404, {"X-Error-Code": "RevisionNotFound"})
        if self._in_trouble(""):
            return None
        siblings = []
        for path, data in files.items():
            entry: dict[str, object] = {"rfilename": path, "size": len(data), "blobId": git_id(data)}
            if len(data) >= LARGE:
                entry["lfs"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
            siblings.append(entry)
        return self._json({"id": repository, "modelId": repository, "sha": self.hub.commit, "siblings": siblings})

    def _ms_listing(self, repository: str, revision: str) -> None:
        files = self.hub.repositories.get(repository)
        if files is None or revision not in ("master", self.hub.commit):
            return self._json({"Code": 10010205001, "Message": "record not found", "Success": False}, 404)
        if self._in_trouble(""):
            return None
        entries = [
            {
                "Path": path, "Name": path.rpartition("/")[2], "Size": len(data), "Type": "blob",
                "Sha256": hashlib.sha256(data).hexdigest(), "Revision": self.hub.commit, "CommittedDate": 17 + i,
            }
            for i, (path, data) in enumerate(files.items())
        ]  # fmt: skip
        return self._json({"Code": 200, "Data": {"Files": entries}, "Success": True})

    def _file(self, repository: str, path: str, *, large_elsewhere: bool) -> None:
        data = self._content(repository, path)
        if data is None:
            return self._json({"error": "Entry not found"}, 404, {"X-Error-Code": "EntryNotFound"})
        if not large_elsewhere or len(data) < LARGE:
            etag = git_id(data)
            return self._send(path, data, {"ETag": f'"{etag}"', "X-Repo-Commit": self.hub.commit})
        sha = hashlib.sha256(data).hexdigest()
        self.send_response(302)
        for name, value in {
            "Location": f"{self.hub.url}/cdn/{repository}/{path}", "X-Linked-Size": str(len(data)),
            "X-Linked-Etag": f'"{sha}"', "X-Repo-Commit": self.hub.commit, "Content-Length": "0",
        }.items():  # fmt: skip
            self.send_header(name, value)
        self.end_headers()
        return None

    def _in_trouble(self, path: str) -> bool:
        trouble = self.hub.trouble.get(path)
        if trouble is None or trouble.status is None or trouble.times < 1:
            return False
        trouble.times -= 1
        self._json({"error": "trouble"}, trouble.status, trouble.headers)
        return True

    def _send(self, path: str, data: bytes, headers: dict[str, str] | None = None) -> None:
        if self.command == "GET":
            self.hub.transfers.append((path, self.headers.get("Range")))
            if self._in_trouble(path):
                return
        trouble = self.hub.trouble.get(path)
        if self.command == "HEAD" or trouble is None or trouble.times < 1:
            trouble = None
        start = int((self.headers.get("Range") or "bytes=0-")[6:].split("-")[0])
        body = data[start:]
        if trouble and trouble.wrong:
            body = bytes(b ^ 255 for b in body)
        self.send_response(206 if self.headers.get("Range") else 200)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Accept-Ranges", "bytes")
        if self.headers.get("Range"):
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.end_headers()
        if self.command == "HEAD":
            return
        if trouble:
            trouble.times -= 1
        if trouble and trouble.cut_at is not None:
            self.wfile.write(body[: max(0, trouble.cut_at - start)])
            self.close_connection = True
            return
        self._write(body)

    def _write(self, body: bytes) -> None:
        half = len(body) // 2
        try:
            self.wfile.write(body[:half])
            if self.hub.hold is not None and len(body) >= LARGE:
                self.wfile.flush()
                self.hub.hold.wait(60)
            self.wfile.write(body[half:])
        except OSError:  # the client has hung up
            self.close_connection = True

    def _json(self, data: object, status: int = 200, headers: dict[str, str] | None = None) -> None:
        body = json.dumps(data).encode()
        self.send_response(status)
        for name, value in {
            **(headers or {}),
            "Content-Type": "application/json",
            "Content-Length": str(len(body)),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
