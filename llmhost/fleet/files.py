"""What the nodes have in common: which files, whose version of them counts, and how they are written on a node.

llmhost.yaml, llmhost.lock, keys.json and nodes/. A node keeps a record of what was brought to it last, with a number
that grows: what differs from the record was edited there, and a higher number means that its files are the newer ones.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmhost import __version__, deploy, keys, node_identity, writer
from llmhost import config as configuration
from llmhost.errors import NodeError
from llmhost.homedir import claim
from llmhost.hub.lock import Lock, read_lock, snapshots, write_lock
from llmhost.paths import Home
from llmhost.supervise.lock import home_lock

FORMAT = 1
RECORD = "nodes/synced.json"
CONFIG, KEYS, LOCK = "llmhost.yaml", "keys.json", "llmhost.lock"
BEFORE = "llmhost.yaml.before"
"""What somebody had written on a node whose llmhost.yaml was replaced all the same."""
TOP = (CONFIG, LOCK, KEYS)
BY_HAND = (CONFIG, KEYS)
"""What people change, on whichever node they are; the rest is written by programs."""
ALLOWED = re.compile(rf"{'|'.join(map(re.escape, TOP))}|nodes(/[A-Za-z0-9_][A-Za-z0-9_.-]*)+")
IDENTITY = "nodes/tls/"
"""Each node has its own; what another one brings there stays."""
MODES = (0o600, 0o640, 0o644)


@dataclass(frozen=True)
class Record:
    """What was brought to a node last; ``files`` is path -> SHA-256."""

    serial: int = 0
    by: str = ""
    files: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class NodeState:
    """What a node has of the common files."""

    llmhost: str
    node: str
    files: Mapping[str, str]
    record: Record
    locked: Mapping[str, Any] = field(default_factory=dict)
    """Models that were pulled there, as llmhost.lock has them."""
    authority: bool = False
    """It has the key that signs for all nodes."""

    @property
    def edited(self) -> tuple[str, ...]:
        """What people have changed there since it was brought."""
        return tuple(p for p in BY_HAND if p in self.files and self.files[p] != self.record.files.get(p))


def read_state(home: Home) -> NodeState:
    """Of this home."""
    name = home.node_file.read_text(encoding="utf-8").strip() if home.node_file.exists() else ""
    files = {path: digest(text) for path, (text, _) in _files(home, name)}
    authority = node_identity.ca_key_file(home).exists()
    return NodeState(__version__, name, files, _record(home), _locked(home), authority)


def state_to_json(state: NodeState) -> dict[str, Any]:
    record = {"serial": state.record.serial, "by": state.record.by, "files": dict(state.record.files)}
    return {
        "llmhost": state.llmhost,
        "node": state.node,
        "files": dict(state.files),
        "synced": record,
        "locked": state.locked,
        "authority": state.authority,
    }


def state_from_json(text: str) -> NodeState:
    """Raises NodeError for what another version of llmhost says."""
    try:
        data = json.loads(text)
        record = Record(int(data["synced"]["serial"]), str(data["synced"]["by"]), dict(data["synced"]["files"]))
        name, authority = str(data["node"]), bool(data.get("authority"))
        return NodeState(str(data["llmhost"]), name, dict(data["files"]), record, dict(data["locked"]), authority)
    except (ValueError, KeyError, TypeError) as e:
        raise NodeError("it has an llmhost of another version", "`llmhost node add` brings the same one there") from e


def document(home: Home, node: str, serial: int, by: str) -> dict[str, Any]:
    """Everything that a node is to have, ready for JSON. It holds secrets."""
    files = [{"path": path, "mode": mode, "text": text} for path, (text, mode) in _files(home, node)]
    return {"format": FORMAT, "llmhost": __version__, "node": node, "serial": serial, "by": by, "files": files}


def digests(home: Home, node: str) -> dict[str, str]:
    """What a node is to have: path -> SHA-256."""
    return {path: digest(text) for path, (text, _) in _files(home, node)}


def stale(state: NodeState, wanted: Mapping[str, str]) -> tuple[str, ...]:
    """Which files a node lacks, has in another version, or has too many."""
    different = {path for path, found in wanted.items() if state.files.get(path) != found}
    over = {path for path in state.files if path not in (*wanted, LOCK) and not path.startswith(IDENTITY)}
    return tuple(sorted(different | over))


def differ(one: NodeState, other: NodeState) -> bool:
    """Whether two nodes have different files in common; what each has for itself, and what it has pulled, aside."""
    paths = {*one.files, *other.files} - {LOCK}
    return any(one.files.get(p) != other.files.get(p) for p in paths if not p.startswith(IDENTITY))


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def receive(home: Home, text: str) -> None:
    """Write what another node has sent; each file whole, llmhost.yaml last.

    Raises NodeError for a document of another version, and what `llmhost.config.parse` raises; nothing is written then.
    """
    data = _checked(text)
    files = {f["path"]: f for f in data["files"]}
    configuration.parse(files[CONFIG]["text"], CONFIG)
    claim(home)
    with home_lock(home, "node sync"):
        _keep_edited(home, data["node"], files)
        for path in sorted(files, key=lambda p: p == CONFIG):
            _write(home, path, files[path])
        for path in set(dict(_files(home, data["node"]))) - set(files):
            _remove(home, path)
        writer.replace_file(home.node_file, f"{data['node']}\n", 0o644)
        brought = {path: digest(f["text"]) for path, f in files.items()}
        remember(home, Record(data["serial"], data["by"], brought))


def remember(home: Home, record: Record) -> None:
    """Write down what was brought here, or from here to the others."""
    text = json.dumps({"serial": record.serial, "by": record.by, "files": dict(record.files)}, indent=1)
    writer.replace_file(home.root / RECORD, text + "\n")


def adopt_locked(home: Home, theirs: Mapping[str, Any], *, theirs_first: bool = False) -> None:
    """Add models that another node has pulled to llmhost.lock; where both have one, its commit here stays."""
    own = read_lock(home.lock_of_models)
    found = {name: snapshot for name, snapshot in snapshots(theirs).items() if theirs_first or name not in own.models}
    if any(own.models.get(name) != snapshot for name, snapshot in found.items()):
        write_lock(Lock(own.path, {**own.models, **found}))


def forget(home: Home) -> None:
    """This home is no node any more: what it shared with the others goes, secrets first."""
    with home_lock(home, "node remove"):
        for path in sorted(home.nodes.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        if home.nodes.is_dir():
            home.nodes.rmdir()
        home.node_file.unlink(missing_ok=True)


def _keep_edited(home: Home, node: str, files: Mapping[str, Any]) -> None:
    """What somebody has written, here or in a former life of this node, stays beside what replaces it (0600)."""
    own = read_state(home)
    for path in own.edited if own.node == node else BY_HAND:
        if path in own.files and own.files[path] != digest(files[path]["text"] if path in files else ""):
            writer.replace_file(home.root / f"{path}.before", (home.root / path).read_text(encoding="utf-8"))


def _write(home: Home, path: str, entry: Mapping[str, Any]) -> None:
    target = home.root / path
    if path == LOCK:  # what was pulled here only stays pinned
        adopt_locked(home, json.loads(entry["text"])["models"], theirs_first=True)
        return
    if target.exists() and target.read_text(encoding="utf-8") == entry["text"] and _mode(target) == entry["mode"]:
        return
    if path == KEYS:  # the gateway must learn of them, too
        writer.replace_file(target.with_name(".keys.new"), entry["text"])
        try:
            new = keys.load(target.with_name(".keys.new"))
        finally:
            target.with_name(".keys.new").unlink()
        deploy.change_keys(home, lambda _: (new, None))
    else:
        writer.replace_file(target, entry["text"], entry["mode"])


def _remove(home: Home, path: str) -> None:
    if path == KEYS:
        deploy.change_keys(home, lambda _: ((), None))
    elif path != LOCK and not path.startswith(IDENTITY):
        (home.root / path).unlink()


def _checked(text: str) -> dict[str, Any]:
    try:
        data = json.loads(text)
        version = data["llmhost"]
        if version != __version__ or data["format"] != FORMAT:
            raise NodeError(
                f"this node has llmhost {__version__}, and the files are from llmhost {version}",
                f"`llmhost node add` for {data['node']} brings the same llmhost there",
            )
        good = all(ALLOWED.fullmatch(f["path"]) and f["mode"] in MODES and f["text"] is not None for f in data["files"])
        if not good or ".." in str([f["path"] for f in data["files"]]) or int(data["serial"]) < 0:
            raise ValueError("a file that is none of the nodes'")
        if CONFIG not in {f["path"] for f in data["files"]}:
            raise ValueError("no llmhost.yaml in it")
    except (ValueError, KeyError, TypeError) as e:
        raise NodeError(f"what was sent are no files of a node: {e}", "use `llmhost node sync`") from e
    checked: dict[str, Any] = data
    return checked


def _files(home: Home, node: str) -> Iterator[tuple[str, tuple[str, int]]]:
    """Path -> text and mode of everything that a node has, or is to have; never the key that signs for all nodes."""
    identity = set(node_identity.files_of(home, node)) if node else set()
    for file in _present(home):
        path = file.relative_to(home.root).as_posix()
        if path == RECORD or not ALLOWED.fullmatch(path) or (path.startswith(IDENTITY) and file not in identity):
            continue
        mode = _mode(file)
        yield path, (file.read_text(encoding="utf-8"), mode if mode in MODES else 0o600)


def _present(home: Home) -> list[Path]:
    top = (home.root / name for name in TOP)
    below = sorted(home.nodes.rglob("*")) if home.nodes.is_dir() else []
    return [file for file in (*top, *below) if file.is_file()]


def _locked(home: Home) -> dict[str, Any]:
    try:
        return dict(json.loads(home.lock_of_models.read_text(encoding="utf-8"))["models"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _record(home: Home) -> Record:
    try:
        data = json.loads((home.root / RECORD).read_text(encoding="utf-8"))
        return Record(int(data["serial"]), str(data["by"]), dict(data["files"]))
    except (OSError, ValueError, KeyError, TypeError):
        return Record()


def _mode(path: Path) -> int:
    return path.stat().st_mode & 0o777
