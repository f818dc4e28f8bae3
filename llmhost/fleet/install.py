"""llmhost itself on another host: the same as here, below the home there.

Nothing but a POSIX shell and Python is asked of that host. May be ended anywhere and run again: what is installed gets
its name when it works, so nobody runs from something half made.
"""

from __future__ import annotations

import os
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

from llmhost import __version__
from llmhost.bundle.own_wheel import make_own_wheel, own_digest
from llmhost.bundle.show import read_bundle
from llmhost.env.log import SetupLog
from llmhost.env.pip_config import read_pip_options, uv_settings
from llmhost.env.progress import Progress
from llmhost.env.uv import Uv, find_uv
from llmhost.errors import BundleError, NodeError
from llmhost.fleet.acting import OwnersLink
from llmhost.fleet.members import PROGRAM
from llmhost.paths import Home
from llmhost.ssh import Link

LOOK_SECONDS = 30.0
COPY_SECONDS = 3600.0
KEPT = 2
"""Former versions that stay in any case."""

LOOK = r"""
case $1 in '~') home=$HOME ;; '~/'*) home=$HOME/${1#'~/'} ;; *) home=$1 ;; esac
echo "home $home"
echo "hostname $(hostname 2>/dev/null || uname -n)"
if [ -e "$home/.llmhost" ] || [ -e "$home/llmhost.yaml" ]; then echo "is ours"
elif [ -n "$(ls -A "$home" 2>/dev/null)" ]; then echo "is $(ls -A "$home" | head -n 1)"; fi
[ -e "$home/llmhost.yaml" ] && echo "config there"
[ -x "$home/$2" ] && echo "installed $(basename "$(dirname "$(dirname "$(readlink -f "$home/$2")")")")"
for python in python3.14 python3.13 python3.12 python3.11 python3; do
  if "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    echo "python $(command -v "$python")"; break
  fi
done
"""
"""Prints ``key value`` lines: what matters of a host."""

FINISH = r"""
set -e
touch "$1/.complete"
mkdir -p "$2/bin"
ln -s "$1/bin/llmhost" "$2/bin/.llmhost.new.$$"
mv -f "$2/bin/.llmhost.new.$$" "$2/bin/llmhost"
rm -rf "$2/incoming"
ls -dt "$2"/llmhost-* | tail -n +$3 | while read -r old; do
  grep -rqsF "$old/" "$2/../conf" /etc/systemd/system "$HOME/.config/systemd/user" || rm -rf "$old"
done
"""
"""Gives what was installed its name; former versions go unless a unit or what runs is still theirs."""


@dataclass(frozen=True)
class Found:
    """What is on a host already."""

    root: str
    """The home there, absolute."""
    hostname: str
    python: str = ""
    """An interpreter that llmhost runs on; '' without one."""
    installed: str = ""
    """``llmhost-<version>-<digest>`` below the home; '' without one."""
    version: str = ""
    configured: bool = False
    """There is an llmhost.yaml."""


def look(link: Link, home: str) -> Found:
    """See what is there; ``home`` may begin with ``~/``. Raises NodeError for a directory of somebody else."""
    done = link.run(["sh", "-c", LOOK, "look", home, PROGRAM], timeout=LOOK_SECONDS)
    told = dict(line.partition(" ")[::2] for line in done.stdout.splitlines())
    root = told["home"]
    if not root.startswith("/"):
        raise NodeError(f"{home} is no absolute path", "write --home /…, or ~/… for one below the user's own")
    if told.get("is", "ours") != "ours":
        raise NodeError(
            f"{link.target.host}: {root} is not a home of llmhost and not empty (it holds {told['is']})",
            "choose an empty or new directory with --home",
        )
    installed = told.get("installed", "")
    name = re.fullmatch(r"llmhost-(.+)-[0-9a-f]+", installed)
    version = name[1] if name else ""
    return Found(root, told.get("hostname", ""), told.get("python", ""), installed, version, "config" in told)


def install(home: Home, link: Link, found: Found, bundle: Path | None, progress: Progress) -> None:
    """Bring the llmhost of this machine there, from a package index or from a bundle, unless it is there already.

    Raises NodeError, SshError, BundleError.
    """
    app = f"{found.root}/app"
    owners = OwnersLink(link, found.root)
    owners.run(["sh", "-c", 'mkdir -p "$2" && touch "$1/.llmhost"', "claim", found.root, app], timeout=LOOK_SECONDS)
    if bundle is not None:
        _from_bundle(owners, found, bundle, progress)
        return
    name = f"llmhost-{__version__}-{own_digest()}"
    if found.installed == name:
        progress.note(f"llmhost {__version__} is there already")
        return
    if found.version:
        progress.note(f"{link.target.host} has llmhost {found.version}: it is brought to that of this machine")
    with tempfile.TemporaryDirectory(prefix="llmhost-") as work:
        _from_index(owners, found, app, name, _own_wheel(home, Path(work), progress), progress)


def _own_wheel(home: Home, work: Path, progress: Progress) -> Path:
    with SetupLog(home.logs / "node.log") as log:
        uv = Uv(find_uv(), uv_settings(read_pip_options(), os.environ), work, log, progress, {})
        return make_own_wheel(work, uv)


def _from_index(link: OwnersLink, found: Found, app: str, name: str, wheel: Path, progress: Progress) -> None:
    """An environment there; its packages come from where pip is configured there to take them from."""
    if not found.python:
        raise NodeError(
            f"{link.target.host} has no Python 3.11 or newer on PATH",
            "install one there; a bundle (--bundle DIR) names the Python that it was made for",
        )
    step = f"install llmhost {__version__} on {link.target.host}"
    progress.started(step)
    version = f"{app}/{name}"
    clean = ["env", "-u", "PYTHONPATH", "-u", "PYTHONHOME"]
    put = [
        "sh",
        "-c",
        'rm -rf "$1" && mkdir -p "$2/incoming" && cat > "$2/incoming/$3"',
        "put",
        version,
        app,
        wheel.name,
    ]
    link.run(put, given=wheel, timeout=COPY_SECONDS)
    _step(link, "cannot make a virtual environment", [*clean, found.python, "-m", "venv", version])
    pip = ["-m", "pip", "install", "--disable-pip-version-check", "--progress-bar", "off"]
    python = f"{version}/bin/python"
    _step(link, "pip cannot install llmhost", [*clean, python, *pip, f"{app}/incoming/{wheel.name}"])
    _step(link, "the new llmhost does not start", [*clean, f"{version}/bin/llmhost", "--version"])
    link.run(["sh", "-c", FINISH, "finish", version, app, str(KEPT + 2)], timeout=LOOK_SECONDS)
    progress.finished(step)


def _step(link: OwnersLink, what: str, words: list[str]) -> None:
    done = link.work(words)
    if done.returncode == 0:
        return
    lines = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
    last = lines[-1] if lines else "it said nothing"
    said = next((line for line in lines if line.upper().startswith("ERROR")), last)
    raise NodeError(f"{link.target.host}: {what}: {said.removeprefix('ERROR: ')}", _remedy(" ".join(lines)))


def _remedy(said: str) -> str:
    if "ensurepip" in said:
        return "install the venv module there (Debian and Ubuntu: apt-get install python3-venv), or use --bundle DIR"
    if "No space left" in said:
        return "free some disk space there"
    return (
        "it must reach a package index as pip is configured there (pip config list);"
        " without a network: --bundle DIR, see docs/air-gapped.md"
    )


def _from_bundle(link: OwnersLink, found: Found, bundle: Path, progress: Progress) -> None:
    """A bundle as it is, copied there and installed: llmhost, and what else is in it, but no llmhost.yaml."""
    manifest = read_bundle(bundle)
    if manifest["llmhost"] != __version__:
        raise BundleError(
            f"{bundle} brings llmhost {manifest['llmhost']}, and this machine has {__version__}",
            "create it anew with `llmhost bundle create`: all nodes have the same",
        )
    there = f"{found.root}/app/incoming/{manifest['id']}"
    step = f"copy the bundle to {link.target.host}"
    progress.started(step)
    files = sorted(p for p in bundle.rglob("*") if p.is_file())
    for file in files:
        _copy(link, file, f"{there}/{file.relative_to(bundle).as_posix()}")
    progress.finished(step, f"{len(files)} files")
    step = f"install it on {link.target.host}"
    progress.started(step)
    words = ["sh", f"{there}/install.sh", "--home", found.root, "--prefix", f"{found.root}/app"]
    _step(link, "the bundle cannot be installed", words)
    brought = [] if found.configured else [f"{found.root}/llmhost.yaml"]  # the nodes' own one comes after this
    link.run(["rm", "-rf", f"{found.root}/app/incoming", *brought], timeout=LOOK_SECONDS)
    progress.finished(step)


def _copy(link: OwnersLink, file: Path, there: str) -> None:
    """One file, unless it is there in this size; the installation compares what is in them."""
    size = link.run(["sh", "-c", 'wc -c < "$1" 2>/dev/null || true', "size", there], timeout=LOOK_SECONDS)
    if size.stdout.split()[-1:] == [str(file.stat().st_size)]:
        return
    put = 'mkdir -p "$(dirname "$1")" && cat > "$1.part" && mv -f "$1.part" "$1"'
    link.run(["sh", "-c", put, "put", there], given=file, timeout=COPY_SECONDS)


def plain_name(hostname: str) -> str:
    """A name that a node may have, from that of its host."""
    return re.sub(r"[^a-z0-9]+", "-", hostname.partition(".")[0].lower()).strip("-")[:40].strip("-") or "node"
