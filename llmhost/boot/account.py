"""The account that the services of a system unit run as, and whether it can reach what they need."""

from __future__ import annotations

import grp
import os
import pwd
from collections.abc import Iterable
from pathlib import Path

from llmhost import run
from llmhost.errors import HomeError
from llmhost.paths import Home

DEFAULT = "llmhost"
DEVICE_GROUPS = ("video", "render")
"""Groups that may use GPUs where their device files are not for everybody."""


def exists(account: str) -> bool:
    """Whether this machine knows a user of that name."""
    try:
        pwd.getpwnam(account)
    except KeyError:
        return False
    return True


def create(account: str, home: Home) -> None:
    """A system user without a password or a shell, whose directory is the home; raises CommandError."""
    nologin = next((p for p in ("/usr/sbin/nologin", "/sbin/nologin") if os.path.exists(p)), "/bin/false")
    run.capture(
        [
            "useradd",
            "--system",
            "--user-group",
            "--no-create-home",
            "--home-dir",
            home.root,
            "--shell",
            nologin,
            account,
        ]
    )
    groups = [name for name in DEVICE_GROUPS if _group_exists(name)]
    if groups:
        run.capture(["usermod", "--append", "--groups", ",".join(groups), account])


def _group_exists(name: str) -> bool:
    try:
        grp.getgrnam(name)
    except KeyError:
        return False
    return True


def give(home: Home, account: str) -> None:
    """Make the account the owner of the home and of all that lies in it; links are not followed."""
    user = pwd.getpwnam(account)
    os.chown(home.root, user.pw_uid, user.pw_gid)
    for folder, folders, files in os.walk(home.root):
        for name in (*folders, *files):
            os.chown(os.path.join(folder, name), user.pw_uid, user.pw_gid, follow_symlinks=False)


def require_reach(account: str, python: str, paths: Iterable[Path]) -> None:
    """Raise HomeError naming what the account cannot run or read: the unit would fail with less to say."""
    if account == pwd.getpwuid(os.geteuid()).pw_name:
        act: list[str] = []
    else:
        act = ["runuser", "-u", account, "--"]
    probe = run.capture([*act, python, "-P", "-m", "llmhost", "--version"], cwd=Path("/"), check=False)
    if probe.returncode != 0:
        said = (probe.stderr.strip().splitlines() or ["no output"])[-1]
        raise HomeError(
            f"the account {account} cannot run llmhost with {python}: {said}",
            "install llmhost where every user can read it (/opt, not /root), or choose --account",
        )
    for path in paths:
        if run.capture([*act, "test", "-r", path], cwd=Path("/"), check=False).returncode != 0:
            raise HomeError(
                f"the account {account} cannot read {path}",
                "open the directories above it (chmod o+x), move it, or choose --account",
            )
