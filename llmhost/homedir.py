"""Claiming the home directory: it is created, or found to be ours, or refused."""

from __future__ import annotations

import os

from llmhost.errors import HomeError
from llmhost.paths import HOME_ENV, Home
from llmhost.supervise.lock import require_account
from llmhost.supervisor_format import quote_value


def claim(home: Home) -> None:
    """Make sure that the home exists, belongs to llmhost and is private where it must be.

    Raises HomeError when it is not writable or run for another user, and what `require_claimable` raises.
    """
    require_claimable(home)
    require_account(home)
    root = home.root
    try:
        root.mkdir(mode=0o755, parents=True, exist_ok=True)
        if not home.marker.exists():  # first, so that an interrupted claim is not taken for somebody else's directory
            home.marker.write_text("This directory belongs to llmhost.\n", encoding="utf-8")
        for private in (home.conf, home.run, home.logs):
            private.mkdir(mode=0o700, exist_ok=True)
            os.chmod(private, 0o700)
    except OSError as e:
        raise HomeError(f"cannot use {root} as home: {e.strerror}", f"choose another with --home or {HOME_ENV}") from e


def require_claimable(home: Home) -> None:
    """Whether `claim` may take this directory; nothing is made or changed.

    Raises HomeError for one that holds something else or has too long a path for sockets, and RenderError for a path
    that supervisord cannot hold.
    """
    home.check_socket_paths()
    quote_value(str(home.root))
    require_access(home)
    try:
        if home.root.exists() and not is_ours(home):
            _refuse_foreign(home)
    except OSError as e:
        raise HomeError(
            f"cannot use {home.root} as home: {e.strerror}", f"choose another with --home or {HOME_ENV}"
        ) from e


def require_access(home: Home) -> None:
    """Raise HomeError when the home belongs to another user, whose files cannot even be looked at."""
    for directory in (home.root, home.run):
        try:
            with os.scandir(directory):
                pass
        except (FileNotFoundError, NotADirectoryError):
            return
        except PermissionError as e:
            raise HomeError(
                f"this user may not look into {directory}",
                "run llmhost as the owner of the home, or choose another --home",
            ) from e


def require_writable(home: Home) -> None:
    """Raise HomeError when the kernel lets nobody write to the home any more: what is stopped would not start again."""
    if os.statvfs(home.root).f_flag & os.ST_RDONLY:
        raise HomeError(
            f"{home.root} is on a file system that is read-only, so nothing can be started",
            "see `dmesg`: a disk with errors is made so; `llmhost stop` and `down` work",
        )


def is_ours(home: Home) -> bool:
    """Whether llmhost has used this directory before, or somebody put an llmhost.yaml there for it."""
    return home.marker.is_file() or home.config_file.is_file()


def _refuse_foreign(home: Home) -> None:
    if not home.root.is_dir():
        raise HomeError(f"{home.root} is a file, not a directory", f"choose another with --home or {HOME_ENV}")
    found = sorted(entry.name for entry in home.root.iterdir())
    if found:
        listed = ", ".join(found[:3]) + (", …" if len(found) > 3 else "")
        raise HomeError(
            f"{home.root} is not a home of llmhost and not empty (it holds {listed})",
            f"choose an empty or new directory with --home or {HOME_ENV}",
        )
