"""A machine becomes a node, or is one no more: llmhost there, its facts, its entry in llmhost.yaml, files everywhere.

Everything that can be refused is refused before anything is changed; llmhost.yaml is written last of what is written
here. So an interrupted command may be run again, and goes on.
"""

from __future__ import annotations

import getpass
import ipaddress
import json
import secrets
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmhost import config as configuration
from llmhost import node_identity, writer
from llmhost.config import Config
from llmhost.env.progress import Progress
from llmhost.errors import HomeError, LlmhostError, NodeError
from llmhost.fleet import edit, files
from llmhost.fleet.acting import OwnersLink
from llmhost.fleet.addresses import find_addresses, require_addresses
from llmhost.fleet.everywhere import Everywhere, in_parallel
from llmhost.fleet.install import Found, install, look, plain_name
from llmhost.fleet.members import PROGRAM, Member, members, sockets, target_of
from llmhost.fleet.sync import Synced, require_newest, states, sync
from llmhost.homedir import claim
from llmhost.machine import node_facts
from llmhost.paths import Home
from llmhost.probe.interface import address_of
from llmhost.probe.node_facts import node_to_json, own_name
from llmhost.ssh import Link, Target, resolve
from llmhost.supervise.lock import home_lock, require_account

SURVEY_SECONDS = 120.0
SAME = '[ "$(cat "$1")" = "$(cat)" ]'
"""Whether a file there has the text that comes on standard input; nothing but a shell is asked of a new node."""


@dataclass(frozen=True)
class Wish:
    """What the user says of a new node; None: found out."""

    name: str | None = None
    address: str | None = None
    home: str | None = None
    self_address: str | None = None
    bundle: Path | None = None
    force: bool = False


@dataclass(frozen=True)
class Added:
    """The node, this machine as a node, and what became of the files on all others."""

    name: str
    own: str
    synced: Synced


def add(home: Home, text: str, port: int | None, wish: Wish, progress: Progress) -> Added:
    """Make a host a node, or bring one up to date: the llmhost of this machine, its facts, the common files.

    Raises NodeError, SshError, ConfigError where llmhost.yaml would not be valid with it, and HomeError for one who may
    not write here.
    """
    claim(home)
    config = configuration.load(home.config_file)
    target = target_of(config.nodes[text]) if text in config.nodes else Target.parse(text, port)
    link = Link(target, sockets(home))
    link.connect()
    found = look(link, wish.home or _home_there(home, config, text))
    _require_other_directory(home, link, found.root)
    name, node = _entry(config, text, target, found, wish)
    own, here = _self(home, config, target, wish)
    _require_two(target, name, own)
    nodes = {own: here, name: node}
    edited = _edited(home, nodes)
    addresses = require_addresses(home, config, configuration.parse(edited, str(home.config_file)), nodes)
    if node_identity.missing(home, name):
        node_identity.require_authority(home)
    new = name not in config.nodes
    if found.configured and new and not wish.force:
        _require_same_config(home, link, found, text)
    install(home, link, found, wish.bundle, progress)
    member = Member(name, str(node["address"]), Path(found.root), link)
    if found.configured and not wish.force:  # of somebody else, or of this node's former life
        try:
            require_newest(files.read_state(home), {name: _state(member)})
        except NodeError as e:
            raise (NodeError(e.message, _force(text)) if new else e) from e
    _write(home, own, addresses[own], nodes, {name: _survey(member, edited, addresses[name])})
    progress.note(f"{name} is in {home.config_file}")
    return Added(name, own, sync(home, members(home), force=wish.force))


def _require_other_directory(home: Home, link: Link, root: str) -> None:
    """Raise NodeError where the home there is this one: this machine would become the other node."""
    mark = home.root / f".llmhost-mark-{secrets.token_hex(8)}"
    try:
        mark.touch(mode=0o600)
        seen = link.run(["test", "-e", f"{root}/{mark.name}"], check=False).returncode == 0
    except OSError as e:
        raise HomeError(f"cannot write to {home.root}: {e.strerror}", "see `df -h` and the permissions of it") from e
    finally:
        mark.unlink(missing_ok=True)
    if seen:
        raise NodeError(
            f"{root} at {link.target.host} is the same directory as {home.root} here (a shared file system?)",
            "give the node a home of its own: --home DIR",
        )


def _require_same_config(home: Home, link: Link, found: Found, text: str) -> None:
    """Raise NodeError where somebody has written another llmhost.yaml: nothing has been changed there yet."""
    file = f"{found.root}/{files.CONFIG}"
    owners = OwnersLink(link, found.root)
    if owners.run(["sh", "-c", SAME, "same", file], given=home.config_file, check=False).returncode:
        raise NodeError(f"there is another llmhost.yaml at {link.target.host}: {file}", _force(text))


def _force(text: str) -> str:
    return f"replace it by that of this node: `llmhost node add {text} --force`; it is kept there as {files.BEFORE}"


def _require_two(target: Target, name: str, own: str) -> None:
    if name == own:
        raise NodeError(
            f"{target.host} and this machine are both called {name}", "give the new node another name: --name NAME"
        )


def _home_there(home: Home, config: Config, text: str) -> str:
    """That of a node that is known, else as here: below the user's own directory, or the same path."""
    if text in config.nodes:
        return str(config.nodes[text].home or home.root)
    below = home.root.is_relative_to(Path.home())
    return f"~/{home.root.relative_to(Path.home())}" if below else str(home.root)


def _entry(config: Config, text: str, target: Target, found: Found, wish: Wish) -> tuple[str, dict[str, Any]]:
    """The name of a node and what stands in llmhost.yaml of it; what stands there and nobody changes stays."""
    address = wish.address or (config.nodes[text].address if text in config.nodes else _address(target))
    same = next((n for n, node in config.nodes.items() if n == text or node.address == address), None)
    name = wish.name or same or plain_name(found.hostname)
    present = config.nodes.get(name)
    if present and present.address != address and wish.address is None:
        raise NodeError(
            f"nodes.{name} is at {present.address}, and {target.host} is {address}",
            f"call it otherwise: --name; or, if {name} has moved there: --address {address}",
        )
    kept = present.model_dump(exclude_unset=True) if present else {}
    return name, {**kept, "address": address, **_login(target, address), "home": found.root}


def _login(target: Target, address: str) -> dict[str, Any]:
    words = {"user": target.user, "ssh": None if target.host == address else target.host, "ssh_port": target.port}
    return {key: value for key, value in words.items() if value is not None}


def _address(target: Target) -> str:
    """The IP address that a host has for this machine; raises NodeError when nobody knows one."""
    host = resolve(target)
    try:
        found = address_of(host)
    except OSError as e:
        raise NodeError(
            f"ssh reaches {target.host}, and nobody knows its address ({host}: {e.strerror or e})",
            "write it: --address ADDRESS, at which the other nodes reach it",
        ) from e
    return found.partition("%")[0]


def _self(home: Home, config: Config, target: Target, wish: Wish) -> tuple[str, dict[str, Any]]:
    """The name of this machine as a node, and what stands in llmhost.yaml of it."""
    name = plain_name(socket.gethostname())
    if config.nodes and (home.node_file.exists() or name not in config.nodes):
        name = own_name(home, config.nodes)
    kept = config.nodes[name].model_dump(exclude_unset=True) if name in config.nodes else {}
    if kept and wish.self_address is None:
        return name, kept
    address = wish.self_address or _own_address(target)
    return name, {"user": getpass.getuser(), "home": str(home.root), **kept, "address": address}


def _edited(home: Home, nodes: Mapping[str, Mapping[str, Any]]) -> str:
    """The text of llmhost.yaml with these nodes; raises ConfigError where that would not be valid."""
    text = configuration.read_text(home.config_file)
    for name, node in nodes.items():
        text = edit.with_node(text, name, node)
    configuration.parse(text, str(home.config_file))
    return text


def _own_address(target: Target) -> str:
    """The address that this machine has on the way to a host; raises NodeError where there is none."""
    there = _address(target)
    family = socket.AF_INET6 if ipaddress.ip_address(there).version == 6 else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((there, 9))  # sends nothing: the kernel says from where it would
            return str(probe.getsockname()[0])
    except OSError as e:
        raise NodeError(
            f"there is no way from this machine to {there}: {e.strerror}",
            "write the address at which the other nodes reach this machine: --self-address ADDRESS",
        ) from e


def _state(member: Member) -> files.NodeState:
    return files.state_from_json(member.ask("node", "state"))


def survey(home: Home, text: str, name: str, address: str) -> str:
    """The facts of this machine as a node of an llmhost.yaml that need not be here yet, as JSON."""
    facts, machine = node_facts(home, configuration.parse(text), name, address)
    return json.dumps(node_to_json(facts, machine), ensure_ascii=False, indent=1) + "\n"


def _survey(member: Member, text: str, address: str) -> str:
    """The same, asked there."""
    return member.ask("node", "survey", member.name, address, given=text, timeout=SURVEY_SECONDS)


def refresh(home: Home, nodes: tuple[Member, ...]) -> dict[str, LlmhostError]:
    """Read the facts of all nodes anew, for the next plan; which of them do not answer. Raises HomeError as `add`."""
    require_account(home)
    text = configuration.read_text(home.config_file)
    addresses = find_addresses(home, configuration.parse(text, str(home.config_file)))

    def one(member: Member) -> str | LlmhostError:
        try:
            member.connect()
            return _survey(member, text, addresses[member.name])
        except LlmhostError as e:
            return e

    found = in_parallel(nodes, one)
    for name, facts in found.items():
        if isinstance(facts, str):
            writer.replace_file(home.node_facts_file(name), facts, 0o644)
    return {name: answer for name, answer in found.items() if isinstance(answer, LlmhostError)}


def _write(
    home: Home, own: str, address: str, nodes: Mapping[str, Mapping[str, Any]], facts: Mapping[str, str]
) -> None:
    """What this machine keeps of it, llmhost.yaml last: as it is now, others may have added nodes meanwhile."""
    with home_lock(home, "node add"):
        edited = _edited(home, nodes)
        found = dict(facts)
        if not home.node_facts_file(own).exists():
            found[own] = survey(home, edited, own, address)
        for name, text in found.items():
            node_identity.ensure(home, name)
            writer.replace_file(home.node_facts_file(name), text, 0o644)
        node_identity.ensure(home, own)
        _link_program(home)
        writer.replace_file(home.node_file, f"{own}\n", 0o644)
        _replace_config(home, edited)


def _replace_config(home: Home, text: str) -> None:
    if text != configuration.read_text(home.config_file):
        writer.replace_file(home.config_file, text, home.config_file.stat().st_mode & 0o777)


def _link_program(home: Home) -> None:
    """The other nodes find the llmhost of this one where they find that of each other."""
    name, program = home.root / PROGRAM, Path(sys.executable).with_name("llmhost")
    if name.exists() or not program.exists():
        return
    name.parent.mkdir(parents=True, exist_ok=True)
    name.unlink(missing_ok=True)
    name.symlink_to(program)


def remove(home: Home, name: str, progress: Progress) -> tuple[Synced, LlmhostError | None]:
    """Take a node out: what runs there finishes and stops, the others forget it, and it forgets their secrets.

    One that does not answer is taken out all the same; returns why it could not be asked. What signs for all nodes is
    taken over from it. Raises NodeError, and takes nothing out, for a node that there is not and for this one, where
    others have newer files, and where `llmhost down` fails there; ConfigError while services name it; HomeError
    as `add`.
    """
    require_account(home)
    every = members(home)
    leaving = _leaving(every, name)
    edited = edit.without_node(configuration.read_text(home.config_file), name)
    configuration.parse(edited, str(home.config_file))
    found, _ = states(every)
    require_newest(files.read_state(home), {n: state for n, state in found.items() if n != name})
    _keep_authority(home, leaving, found)
    trouble = _drain(leaving, progress)
    with home_lock(home, "node remove"):
        _replace_config(home, edit.without_node(configuration.read_text(home.config_file), name))
        home.node_facts_file(name).unlink(missing_ok=True)
        node_identity.forget(home, name)
    try:
        synced = sync(home, members(home))
    finally:  # it is no node any more, whatever the others say
        trouble = trouble or _leave(leaving)
    return synced, trouble


def _leaving(every: tuple[Member, ...], name: str) -> Member:
    leaving = next((m for m in every if m.name == name), None)
    if leaving is None:
        raise NodeError(f"there is no node {name}", f"llmhost.yaml has: {', '.join(m.name for m in every)}")
    if leaving.link is None:
        raise NodeError(f"{name} is this machine", "run it on another node, for which this one is another")
    return leaving


def _keep_authority(home: Home, leaving: Member, found: Mapping[str, files.NodeState]) -> None:
    """Bring the key that signs for all nodes here where it would go with this one; raises SshError, HomeError."""
    having = {name for name, state in found.items() if state.authority}
    if having != {leaving.name} or node_identity.ca_key_file(home).exists() or leaving.link is None:
        return
    theirs = node_identity.ca_key_file(Home(leaving.root))
    node_identity.adopt_authority(home, OwnersLink(leaving.link, leaving.root).run(["cat", str(theirs)]).stdout)


def _drain(member: Member, progress: Progress) -> LlmhostError | None:
    """Let what runs there finish and stop; why it could not be asked to. Raises NodeError where that fails there."""
    step = f"stop what runs on {member.name}"
    progress.started(step)
    outcome = Everywhere(lambda _, line, __: progress.note(line)).run([member], ("down",))[member.name]
    done = outcome.failure is None and outcome.status == 0
    progress.finished(step, "stopped" if done else "not done")
    if outcome.failure is None and not done:
        raise NodeError(
            f"`llmhost down` failed on {member.name}, which stays a node",
            "see what it says above, and run this again",
        )
    return outcome.failure


def _leave(member: Member) -> LlmhostError | None:
    try:
        member.ask("node", "leave")
    except LlmhostError as e:
        return e
    finally:
        if member.link is not None:
            member.link.close()
    return None
