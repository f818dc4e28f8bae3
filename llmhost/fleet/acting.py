"""Commands of a node run as the owner of its home: what root writes there, the services of a unit could not read.

`llmhost enable` gives a home of root's to an account that nobody can log in as; who administers the nodes may still log
in as root. What that account could have changed is not run as root.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llmhost.run import Completed
from llmhost.ssh import Link, Target

STARTING = ("up",)
"""They start the unit of a home after `down`, which its owner may not ask of systemd."""
BY_ROOT = ("enable",)
"""It writes a unit of the system, and may give the home to another account."""

AS_OWNER = r"""
home=$1 how=$2 header=$3
shift 3
[ "$(id -u)" = 0 ] || exec "$@"
[ -e "$home" ] || [ -L "$home" ] || exec "$@"
owner=$(stat -c %u "$home") || exit 1
[ "$owner" != 0 ] || owner=$(stat -L -c %u "$home") || exit 1
[ "$owner" != 0 ] || exec "$@"
if ! entry=$(getent passwd "$owner"); then
  echo "error: $home belongs to user id $owner, and there is no such user" >&2
  echo "hint: give it to somebody with chown -R" >&2
  exit 1
fi
name=${entry%%:*}
if [ "$how" = root ]; then
  echo "error: $home belongs to $name already, so nothing that lies in it is run as root" >&2
  echo "hint: on that machine, with an llmhost that only root can change: sudo llmhost --home $home …" >&2
  exit 1
fi
if [ "$how" = starts ] && [ -d /run/systemd/system ]; then
  unit=$(grep -lxsF "$header" /etc/systemd/system/llmhost*.service | head -n 1)
  unit=${unit##*/}
  [ -z "$unit" ] || systemctl start "$unit" >&2 || echo "see: journalctl -u $unit" >&2
fi
cd "$home" || exit 1
exec setpriv --reuid "$owner" --regid "$(id -g "$owner")" --init-groups env -u XDG_RUNTIME_DIR \
  -u SSH_AUTH_SOCK -u DBUS_SESSION_BUS_ADDRESS \
  HOME="$(echo "$entry" | cut -d: -f6)" USER="$name" LOGNAME="$name" "$@"
"""
"""For `sh -c`: the home, how (``starts``: start its unit if it has one; ``root``: only root can), the line of that unit
which names the home, and the command."""


def as_owner(root: Path | str, words: Sequence[str], command: str = "") -> tuple[str, ...]:
    """What runs ``words`` as the owner of the home ``root`` if root asks, and as whoever asks otherwise.

    ``command`` is that of llmhost.
    """
    how = "starts" if command in STARTING else "root" if command in BY_ROOT else ""
    header = f"# home: {json.dumps(str(root))}"
    return ("sh", "-c", AS_OWNER, words[0], str(root), how, header, *words)


class OwnersLink:
    """A host over ssh on which everything is done as the owner of a home."""

    def __init__(self, link: Link, root: Path | str) -> None:
        self._link, self._root = link, root

    @property
    def target(self) -> Target:
        return self._link.target

    def run(self, words: Sequence[str], **options: Any) -> Completed:
        """As `Link.run`."""
        return self._link.run(as_owner(self._root, words), **options)

    def work(self, words: Sequence[str]) -> Completed:
        """As `Link.work`."""
        return self._link.work(as_owner(self._root, words))
