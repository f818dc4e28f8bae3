"""ModelScope, through its client (modelscope_hub, on which the modelscope package stands)."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from modelscope_hub import HubApi, errors

from llmhost.errors import HubError, NotOnHubError
from llmhost.hub.remote import RemoteFile, Snapshot, explained, transport_error

DEFAULT_ENDPOINT = "https://www.modelscope.cn"


class ModelScope:
    """The hub at ``endpoint``."""

    def __init__(self, endpoint: str | None = None, token: str | None = None) -> None:
        logging.getLogger("modelscope_hub").setLevel(logging.ERROR)
        given = endpoint or DEFAULT_ENDPOINT
        self.endpoint = (given if "://" in given else f"https://{given}").rstrip("/")
        self.token = token
        self._api = HubApi(endpoint=self.endpoint, token=token or "")

    def snapshot(self, repository: str, revision: str | None) -> Snapshot:
        with self._explained(repository, revision):
            raw = self._api.legacy.list_repo_files(repository, "model", revision=revision or "master")
        entries = [entry for entry in raw if entry.get("Type") != "tree"]
        if not entries:
            raise HubError(f"modelscope:{repository} holds no files", "check its name on the hub")
        # The listing names the commit of every file; the newest of them is the state that is listed.
        newest = max(entries, key=lambda entry: int(entry.get("CommittedDate") or 0))
        return Snapshot(str(newest.get("Revision") or revision or "master"), tuple(map(_remote_file, entries)))

    def fetch(self, repository: str, revision: str, file: RemoteFile, directory: Path) -> None:
        sha256 = file.digest.removeprefix("sha256:") or None
        with self._explained(repository, revision, file.path):
            self._api.download_file(
                repository, "model", file.path, revision=revision, local_dir=directory, expected_sha256=sha256,
                file_size=file.size,
            )  # fmt: skip

    def check_token(self) -> str:
        """Whose token it is."""
        with self._explained("", None):
            return str(getattr(self._api.whoami(), "username", "") or "somebody")

    def _explained(self, repository: str, revision: str | None, path: str = "") -> AbstractContextManager[None]:
        return explained(lambda e: self._error(e, repository, revision, path))

    def _error(self, error: Exception, repository: str, revision: str | None, path: str) -> HubError:
        what = f"modelscope:{repository}" + (f"/{path}" if path else "") + (f"@{revision}" if revision else "")
        token = "its token in MODELSCOPE_API_TOKEN or `llmhost login modelscope`"
        if isinstance(error, errors.AuthenticationError) and self.token:
            return HubError(f"the hub {self.endpoint} refuses the token", f"make a new one there, and give {token}")
        if isinstance(error, errors.PermissionDeniedError | errors.AuthenticationError):
            page = f"{self.endpoint}/models/{repository}"
            return HubError(f"{what} is gated or private", f"ask for access at {page}, and give {token}")
        if isinstance(error, errors.NotExistError):
            hint = f"check its name and revision; for a private one give {token}"
            return NotOnHubError(f"{what} does not exist on {self.endpoint}, or this user may not see it", hint)
        if isinstance(error, errors.FileIntegrityError):
            return HubError(f"{what}: what came is not what the hub lists", "try again later, or from the other hub")
        status = getattr(error, "status_code", None)
        return transport_error(what, self.endpoint, "MODELSCOPE_DOMAIN", status, getattr(error, "message", error))


def _remote_file(entry: dict[str, Any]) -> RemoteFile:
    sha256 = entry.get("Sha256")
    return RemoteFile(str(entry.get("Path")), int(entry.get("Size") or 0), f"sha256:{sha256}" if sha256 else "")
