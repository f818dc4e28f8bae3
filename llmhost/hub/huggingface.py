"""Hugging Face, through huggingface_hub.

``hf_hub_download`` of version 2 keeps nothing of a download that was cut short, so its lower function ``http_get`` is
used, which continues at a byte. Files that are too large for plain HTTP (50 GB) come through hf_xet.
"""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from huggingface_hub import HfApi, constants, errors, get_hf_file_metadata, hf_hub_download, hf_hub_url
from huggingface_hub.file_download import http_get
from huggingface_hub.utils import build_hf_headers, disable_progress_bars  # type: ignore[attr-defined]

from llmhost.errors import HubError, NotOnHubError
from llmhost.hub.remote import RemoteFile, Snapshot, explained, partial_path, transport_error

DEFAULT_ENDPOINT = "https://huggingface.co"
CHUNK = 1 << 20
"""Bytes that the client holds before it writes them, and that a cut loses; 10 MiB by its own choice."""

XET_FROM = 50_000_000_000
"""Bytes from which on the hub serves a file by Xet only (``MAX_HTTP_DOWNLOAD_SIZE`` of huggingface_hub)."""


class HuggingFace:
    """The hub at ``endpoint``."""

    def __init__(self, endpoint: str | None = None, token: str | None = None) -> None:
        disable_progress_bars()
        constants.DOWNLOAD_CHUNK_SIZE = CHUNK
        logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # retries are not news
        self.endpoint = (endpoint or DEFAULT_ENDPOINT).rstrip("/")
        self.token = token
        self._api = HfApi(endpoint=self.endpoint, token=token or False)

    def snapshot(self, repository: str, revision: str | None) -> Snapshot:
        with self._explained(repository, revision):
            info = self._api.model_info(repository, revision=revision, files_metadata=True)
        files = tuple(_remote_file(sibling) for sibling in info.siblings or ())
        if not info.sha or not files:
            raise HubError(f"hf:{repository} holds no files", "check its name on the hub")
        return Snapshot(info.sha, files)

    def fetch(self, repository: str, revision: str, file: RemoteFile, directory: Path) -> None:
        target = directory / file.path
        target.parent.mkdir(parents=True, exist_ok=True)
        with self._explained(repository, revision, file.path):
            if file.size >= XET_FROM:
                self._fetch_xet(repository, revision, file, directory)
                return
            self._fetch_http(repository, revision, file, partial_path(directory, file))
        partial_path(directory, file).replace(target)

    def _fetch_http(self, repository: str, revision: str, file: RemoteFile, partial: Path) -> None:
        url = hf_hub_url(repository, file.path, revision=revision, endpoint=self.endpoint)
        metadata = get_hf_file_metadata(url, token=self.token or False, endpoint=self.endpoint)
        elsewhere = urlsplit(metadata.location).netloc != urlsplit(url).netloc
        headers = build_hf_headers(token=False if elsewhere else self.token or False)
        with partial.open("ab") as stream:
            have = stream.tell()
            if have > file.size:
                stream.truncate(0)
                have = 0
            headers["Accept-Encoding"] = "identity"
            http_get(metadata.location, stream, resume_size=have, headers=headers, expected_size=file.size)

    def _fetch_xet(self, repository: str, revision: str, file: RemoteFile, directory: Path) -> None:
        hf_hub_download(
            repository, file.path, revision=revision, local_dir=directory, token=self.token or False,
            endpoint=self.endpoint,
        )  # fmt: skip

    def check_token(self) -> str:
        """Whose token it is."""
        with self._explained("", None):
            return str(self._api.whoami().get("name"))

    def _explained(self, repository: str, revision: str | None, path: str = "") -> AbstractContextManager[None]:
        return explained(lambda e: self._error(e, repository, revision, path))

    def _error(self, error: Exception, repository: str, revision: str | None, path: str) -> HubError:
        what = f"hf:{repository}" + (f"/{path}" if path else "")
        status = getattr(getattr(error, "response", None), "status_code", None)
        token = "its token in HF_TOKEN or `llmhost login hf`"
        if isinstance(error, errors.GatedRepoError):
            page = f"{self.endpoint}/{repository}"
            return HubError(
                f"{what} is gated: its owner lets in whom he agreed to", f"ask for access at {page}, and give {token}"
            )
        if isinstance(error, errors.RevisionNotFoundError):
            return NotOnHubError(f"hf:{repository} has no revision {revision}", "see its branches and tags on the hub")
        if status == 401 and self.token:
            return HubError(f"the hub {self.endpoint} refuses the token", f"make a new one there, and give {token}")
        if isinstance(error, errors.RepositoryNotFoundError | errors.EntryNotFoundError) or status in (401, 403, 404):
            hint = f"check its name; for a private one give {token}"
            return NotOnHubError(f"{what} does not exist on {self.endpoint}, or this user may not see it", hint)
        return transport_error(what, self.endpoint, "HF_ENDPOINT", status, error)


def _remote_file(sibling: Any) -> RemoteFile:
    sha256 = sibling.lfs.sha256 if sibling.lfs else None
    digest = f"sha256:{sha256}" if sha256 else f"git:{sibling.blob_id}" if sibling.blob_id else ""
    return RemoteFile(sibling.rfilename, int(sibling.size or 0), digest)
