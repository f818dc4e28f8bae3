"""Commands of a node run as the owner of its home: what root writes there, the services of a unit could not read.

`llmhost enable` gives a home of root's to an account that nobody can log in as; whoever administers the nodes still
logs in as root. Nothing that lies in such a home is run as root for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llmhost.run import Completed
from llmhost.ssh import Link, Target

STARTING = ("up", "start", "restart")
"""They may have to start the unit of a home, which its owner may not ask of systemd."""
BY_ROOT = ("enable", "disable")
"""They write units of the system, and may give the home to another account."""

AS_OWNER = r"""
home=$1 starts=$2
shift 2
owner=$(stat -c %U "$home" 2>/dev/null) || owner=root
[ "$(id -u)" = 0 ] && [ "$owner" != root ] && entry=$(getent passwd "$owner") || exec "$@"
if [ -n "$starts" ] && [ -d /run/systemd/system ]; then
  unit=$(grep -lxsF "# home: \"$home\"" /etc/systemd/system/llmhost*.service | head -n 1)
  [ -z "$unit" ] || systemctl start "${unit##*/}" >/dev/null 2>&1 || true
fi
cd "$home"
exec setpriv --reuid "$owner" --regid "$(id -g "$owner")" --init-groups env -u XDG_RUNTIME_DIR \
  HOME="$(echo "$entry" | cut -d: -f6)" USER="$owner" LOGNAME="$owner" "$@"
"""
"""For `sh -c`: the home, anything when its unit may have to be started, and the command."""


def as_owner(root: Path | str, words: Sequence[str], *, starts: bool = False) -> tuple[str, ...]:
    """What runs ``words`` as the owner of the home ``root`` if root asks, and as whoever asks otherwise."""
    return ("sh", "-c", AS_OWNER, words[0], str(root), "starts" if starts else "", *words)


class OwnersLink:
    """A host over ssh on which everything is done as the owner of a home."""

    def __init__(self, link: Link, root: str) -> None:
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
