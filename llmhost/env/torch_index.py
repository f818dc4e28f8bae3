"""torch's own index, for where the user's indexes lack a build of it."""

from __future__ import annotations

import os

from llmhost.env.releases import Release
from llmhost.env.uv import Uv, UvFailure


def run_with_torch(command: list[str], release: Release, uv: Uv, *, follow_stages: bool = False) -> UvFailure | None:
    """Run uv; once more with the index of torch itself when the user's indexes lack this build of it."""
    failure = uv.run(command, follow_stages=follow_stages)
    if failure and failure.lacks("torch") and may_ask_others(uv):
        uv.log.write("the indexes have no such torch: asking its own")
        failure = uv.run([*command, "--torch-backend", release.torch_backend], follow_stages=follow_stages)
    return failure


def may_ask_others(uv: Uv) -> bool:
    """Nobody has said that packages come from nowhere else."""
    return not (uv.settings.no_index or os.environ.get("UV_TORCH_BACKEND"))
