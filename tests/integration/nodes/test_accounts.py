"""Homes that `llmhost enable` has given to an account of their own: root administers the nodes from any of them."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from tests.integration.nodes.homes import Homes
from tests.netns import Host

pytestmark = pytest.mark.integration

ACCOUNT, UID = "llmhost", 4711
UNIT = """# Written by `llmhost enable`
# home: {home}
# account: "{account}"
# linger: false
[Service]
ExecStart=/bin/true
"""
OPEN = """set -e
mkdir -p "/run/open/${2#$1/}"
mount --bind "$2" "/run/open/${2#$1/}"
mount --rbind /run/open "$1"
"""
"""A directory that only root may enter, with nothing in it but what others may read."""


def give(homes: Homes, host: Host) -> None:
    """What `llmhost enable` leaves behind, but for systemd, which is no init of these hosts."""
    home = homes.home(host).root
    with (host.root / "etc/passwd").open("a", encoding="utf-8") as file:
        file.write(f"{ACCOUNT}:x:{UID}:{UID}::{home}:/usr/sbin/nologin\n")
    host.run("mount", "-t", "tmpfs", "tmpfs", "/etc/systemd/system")
    unit = UNIT.format(home=json.dumps(str(home)), account=ACCOUNT)
    host.run("sh", "-c", "cat > /etc/systemd/system/llmhost.service", stdin=unit)
    homes.network.place.chmod(0o755)
    prefix = Path(sys.base_prefix)
    closed = next((p for p in reversed(prefix.parents) if p.stat().st_mode & 0o001 == 0), None)
    if closed is not None:
        host.run("sh", "-c", OPEN, "open", str(closed), str(prefix))
    host.run("chown", "-R", f"{UID}:{UID}", str(home))
    tried = host.run("setpriv", f"--reuid={UID}", "--clear-groups", sys.executable, "-c", "import llmhost", ok=None)
    if tried.returncode:
        pytest.skip(f"no other user can run this Python: {tried.stderr.strip()[-200:]}")


def of_root(homes: Homes, host: Host) -> list[str]:
    """What lies in a home and belongs to root, but for the sockets of root's own ssh."""
    home = homes.home(host)
    every = (Path(folder) / name for folder, folders, files in os.walk(home.root) for name in (*folders, *files))
    ours = (p for p in every if not p.is_relative_to(home.run_ssh))
    return [str(p) for p in ours if p.lstat().st_uid != UID]


def test_root_administers_homes_of_an_account(homes: Homes) -> None:
    a, b = homes.add("a"), homes.add("b")
    homes.configure(a, 2)
    homes.run(a, "node", "add", "root@b")
    for host in (a, b):
        give(homes, host)
    config = homes.home(a).config_file
    config.write_text(config.read_text(encoding="utf-8").replace("# what we serve", "# what we serve now"), "utf-8")
    homes.run(a, "node", "sync")
    homes.run(a, "up", "--all-nodes")
    assert homes.chat_ready(a, "a", "b")
    for host in (a, b):
        assert of_root(homes, host) == []
        pid = homes.home(host).supervisord_pid_file.read_text().strip()
        assert host.run("stat", "-c", "%U", f"/proc/{pid}").stdout.strip() == ACCOUNT
    homes.run(a, "stop", "chat", "--all-nodes")
    homes.run(a, "node", "add", "b")
    homes.run(a, "node", "doctor")
    homes.run(a, "down", "--all-nodes")
    assert of_root(homes, b) == []
    error, hint = homes.refused(b, "up")
    assert "llmhost.service runs" in error
    assert f"sudo -u {ACCOUNT}" in hint
