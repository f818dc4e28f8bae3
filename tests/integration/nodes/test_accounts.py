"""Homes that `llmhost enable` has given to an account of their own: root administers the nodes from any of them."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import pytest

from llmhost.fleet.acting import as_owner
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
    """What lies in a home and belongs to root."""
    home = homes.home(host).root
    every = (Path(folder) / name for folder, folders, files in os.walk(home) for name in (*folders, *files))
    return [str(p) for p in every if p.lstat().st_uid != UID]


def test_root_administers_a_home_of_an_account_from_another_node(homes: Homes) -> None:
    a, b = homes.add("a"), homes.add("b")
    homes.configure(a, 2)
    homes.run(a, "node", "add", "root@b")
    give(homes, b)
    config = homes.home(a).config_file
    config.write_text(config.read_text(encoding="utf-8").replace("# what we serve", "# what we serve now"), "utf-8")
    homes.run(a, "node", "sync")
    homes.run(a, "up", "--all-nodes")
    assert homes.chat_ready(a, "a", "b")
    pid = homes.home(b).supervisord_pid_file.read_text().strip()
    assert b.run("stat", "-c", "%U", f"/proc/{pid}").stdout.strip() == ACCOUNT
    homes.run(a, "stop", "chat", "--all-nodes")
    homes.run(a, "node", "add", "b")
    homes.run(a, "node", "doctor")
    homes.run(a, "down", "--all-nodes")
    assert of_root(homes, b) == []
    again = a.run(*a.llmhost("enable", "--all-nodes"), ok=1)
    assert f"b | error: {homes.home(b).root} belongs to {ACCOUNT} already" in again.stderr


def test_root_writes_nothing_into_a_home_of_an_account_and_follows_no_link_in_it(homes: Homes) -> None:
    a, _ = homes.add("a"), homes.add("b")
    homes.configure(a, 2)
    homes.run(a, "node", "add", "root@b")
    give(homes, a)
    trap = a.root / "trap"
    trap.write_text("what only root may change")
    sockets = homes.home(a).run_ssh
    for lock in sockets.glob("*.lock"):
        lock.unlink()
        lock.symlink_to(trap)
        os.lchown(lock, UID, UID)
    for words in (
        ("up", "--all-nodes"), ("node", "sync"), ("node", "sync", "--facts"), ("node", "sync", "--from", "b"),
        ("node", "add", "b"), ("node", "remove", "b"), ("setup",), ("pull",), ("up",), ("keys", "add", "x"),
        ("engine", "use", "default"),
    ):  # fmt: skip
        error, hint = homes.refused(a, *words)
        assert "llmhost.service runs" in error, words
        assert f"sudo -u {ACCOUNT}" in hint, words
    homes.run(a, "status", "--all-nodes", ok=3)
    assert of_root(homes, a) == []
    assert trap.read_text() == "what only root may change"
    shutil.copytree(a.root / ".ssh", homes.home(a).root / ".ssh")  # its own key, which the other nodes accept
    a.run("chown", "-R", f"{UID}:{UID}", str(homes.home(a).root))
    up = a.llmhost("--home", str(homes.home(a).root), "up", "--all-nodes")
    for lock in sockets.glob("*.lock"):
        lock.unlink()
    a.run(*as_owner(homes.home(a).root, up, "up"))
    assert set(homes.status(a)) == {"a", "b"}
    assert of_root(homes, a) == []


def test_nobody_acts_as_root_for_a_user_who_does_not_exist(homes: Homes) -> None:
    a = homes.add("a")
    home = homes.home(a).root
    a.run("chown", "-R", "4712:4712", str(home))
    link = a.root / "link"
    link.symlink_to(home)
    theirs = a.root / "theirs"
    theirs.symlink_to("/tmp")
    a.run("chown", "-h", "4712:4712", str(theirs))
    for path in (home, link, theirs):
        done = a.run(*as_owner(path, ("id", "-u")), ok=1)
        assert (done.stdout, "belongs to user id 4712" in done.stderr) == ("", True)
