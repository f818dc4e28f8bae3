"""The common files of a home, as they are sent and as they are written."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmhost.fleet import files
from llmhost.paths import Home


@pytest.mark.parametrize(("here", "there"), [(0o600, 0o600), (0o640, 0o640), (0o644, 0o644), (0o660, 0o600)])
def test_nobody_can_read_a_file_there_who_cannot_here(tmp_path: Path, here: int, there: int) -> None:
    home = Home(tmp_path)
    home.config_file.write_text("services: {}\n", encoding="utf-8")
    home.config_file.chmod(here)
    (file,) = files.document(home, "b", 1, "a")["files"]
    assert (file["path"], file["mode"]) == ("llmhost.yaml", there)
