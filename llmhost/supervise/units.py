"""The systemd unit that runs a home, as it lies on disk: found by reading, so that `status` can afford to look.

Written by `llmhost.boot.install`; nothing here asks systemd.
"""

import json
import os
import pwd
from collections.abc import Mapping
from typing import Any, NamedTuple

from llmhost.paths import Home

SYSTEM_UNITS = "/etc/systemd/system"
LINGER = "/var/lib/systemd/linger"
BOOTED = "/run/systemd/system"
"""Exists when systemd is the init of this machine (sd_booted(3))."""

_WANTED_BY = {"system": "multi-user.target", "user": "default.target"}


class Unit(NamedTuple):
    """A unit that `llmhost enable` wrote for a home."""

    name: str
    """With its suffix: ``llmhost.service``."""
    scope: str
    """``system``, or ``user`` for one of a user's own manager."""
    path: str
    account: str
    """The user that the services run as."""
    enabled: bool
    """It starts with the machine, or with its user's manager."""
    linger: bool
    """`llmhost enable` switched lingering on for it, so `disable` switches it off."""

    @property
    def at_boot(self) -> bool:
        """It starts without anybody logging in."""
        return self.enabled and (self.scope == "system" or os.path.exists(f"{LINGER}/{self.account}"))

    def to_dict(self) -> dict[str, Any]:
        """What `status --json` says of it."""
        return {"unit": self.name, "scope": self.scope, "account": self.account, "at_boot": self.at_boot}


def find_unit(home: Home) -> Unit | None:
    """The unit of this home, None when there is none; the system's goes first."""
    return next((u for scope in _WANTED_BY for u in units(scope, home) if _home_of(u.path) == str(home.root)), None)


def units(scope: str, home: Home) -> list[Unit]:
    """All units of a scope that look like ours, whatever their home is."""
    folder = unit_directory(scope, home)
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return []
    ours = (name for name in names if name.startswith("llmhost") and name.endswith(".service"))
    return [_read(os.path.join(folder, name), scope) for name in ours]


def unit_directory(scope: str, home: Home) -> str:
    """Where units of a scope are written; those of a user lie with the owner of the home."""
    return SYSTEM_UNITS if scope == "system" else os.path.join(_owners_directory(home), ".config/systemd/user")


def managed(home: Home) -> Unit | None:
    """The unit of this home if systemd runs here, so that it must be asked to start something."""
    return find_unit(home) if os.path.isdir(BOOTED) else None


def owner(home: Home) -> str:
    """Name of the user whom the home belongs to; of ourselves when it does not exist yet."""
    try:
        uid = os.stat(home.root).st_uid
    except OSError:
        uid = os.geteuid()
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _owners_directory(home: Home) -> str:
    try:
        return pwd.getpwnam(owner(home)).pw_dir
    except KeyError:
        return "/nonexistent"


def _read(path: str, scope: str) -> Unit:
    said = _header(path)
    name = os.path.basename(path)
    link = os.path.join(os.path.dirname(path), f"{_WANTED_BY[scope]}.wants", name)
    return Unit(name, scope, path, str(said.get("account", "")), os.path.lexists(link), bool(said.get("linger")))


def _home_of(path: str) -> str:
    return str(_header(path).get("home", ""))


def _header(path: str) -> Mapping[str, Any]:
    """The ``# key: value`` lines at the top of a unit."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            lines = [line[2:].partition(": ") for line in file if line.startswith("# ")]
        return {key: json.loads(value) for key, _, value in lines if key in ("home", "account", "linger")}
    except (OSError, ValueError):
        return {}
