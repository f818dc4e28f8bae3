"""What reaches the files of a home: refused first by Envoy where it must be, and with the API keys of this moment.

Keys change while other commands are at work, also in the middle of a long `llmhost up`: a revoked key must not come
back with files that were rendered before. So whoever writes the gateway's files reads the keys again, under a lock that
is held for that moment only.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar

from llmhost import keys as keyring
from llmhost import run, writer
from llmhost.config_nodes import is_loopback
from llmhost.errors import BusyError, GatewayError, NotReadyError
from llmhost.files import RenderedFile
from llmhost.gateway import render_routes, render_static
from llmhost.gateway.clusters import cluster_file, members_out, merge_clusters, merge_members, take_out
from llmhost.gateway.envoy import version_of
from llmhost.gateway.peers import NODES, own_members, with_coming
from llmhost.gateway.routes import routes_file
from llmhost.keys import Keys
from llmhost.paths import Home
from llmhost.plan import Plan
from llmhost.plan.build import with_keys
from llmhost.plan.types import EndpointPlan, ProgramPlan
from llmhost.probe.endpoint import read_key
from llmhost.probe.gateway import read_gateway
from llmhost.render import EVENTS, NEXT_PLAN, PLAN, guard_spec_path, plan_file, render
from llmhost.supervise.lock import require_account
from llmhost.supervise.planfile import read_next_plan, read_plan
from llmhost.writer import FileChange

LOCK_SECONDS = 10.0
"""The keys' lock is held for a moment by design."""
EFFECT_SECONDS = 10.0
"""Seconds for a running gateway to take up new routes; it takes milliseconds."""
POLL_SECONDS = 0.02
VALIDATE_SECONDS = 60.0

FOLDER = "conf/gateway/"
CLUSTERS = f"{FOLDER}cds.json"
MEMBERS = f"{FOLDER}eds-"
LISTENERS = f"{FOLDER}lds.json"
ROUTES_OF_NODES = f"{FOLDER}{routes_file(NODES)}.json"

T = TypeVar("T")


@contextmanager
def present_changes(home: Home, plan: Plan) -> Iterator[tuple[FileChange, ...]]:
    """What writing a plan would change, with the keys as they are now, which nobody changes meanwhile."""
    with _keys_lock(home):
        current = replace(plan, gateway=with_keys(plan.gateway, keyring.load(home.keys_file)))
        yield writer.changes(home, render(current))


def is_of_clusters(change: FileChange) -> bool:
    """Whether it says who answers, and not who may ask for what."""
    return change.path == CLUSTERS or change.path.startswith(MEMBERS)


def write_united(home: Home, plan: Plan, out: Collection[str], await_clusters: Callable[[Home], None]) -> None:
    """Clusters with the members of the plan in force and of this one; ``out`` are those that are out of balancing.

    A member that comes may need what only the new cluster has, as what keeps a client's key from another host: that
    must be in force first.
    """
    with present_changes(home, plan) as changes:
        first = [_united_clusters(c, plan) for c in changes if c.path == CLUSTERS]
        first += [_united_members(c, out) for c in changes if c.path.startswith(MEMBERS) and c.old is None]
        writer.apply(home, first)
    if first:
        await_clusters(home)
    with present_changes(home, plan) as changes:
        writer.apply(home, [_united_members(c, out) for c in changes if c.path.startswith(MEMBERS)])
        writer.apply(home, [*_with_coming(changes, ROUTES_OF_NODES), *_with_coming(changes, LISTENERS)])
    await_clusters(home)


def _with_coming(changes: Iterable[FileChange], path: str) -> Iterator[FileChange]:
    """What other nodes ask, with what comes here: two nodes that exchange services wait for each other to answer."""
    for change in changes:
        if change.path == path and change.old and change.new:
            text = with_coming(change.old, change.new)
            if text != change.old:
                yield FileChange(path, change.old, text, change.mode)


def renew_members(home: Home, plan: Plan, renewed: Collection[str]) -> None:
    """Give these members, whose engines have just been started as this plan has them, what it says of them."""
    with present_changes(home, plan) as changes:
        for change in (c for c in changes if c.path.startswith(MEMBERS) and c.old and c.new):
            old, new = str(change.old), str(change.new)
            text = take_out(merge_members(old, new, renewed), members_out(old))
            writer.apply(home, [FileChange(change.path, old, text, change.mode)])


def write_alone(home: Home, plan: Plan, await_clusters: Callable[[Home], None]) -> None:
    """This plan only: members that leave do so before their clusters lose what these needed, see `write_united`."""
    with present_changes(home, plan) as changes:
        leaving = [c for c in changes if c.path.startswith(MEMBERS) and c.new is not None]
        writer.apply(home, leaving)
    if leaving:
        await_clusters(home)
    with present_changes(home, plan) as changes:
        writer.apply(home, changes)


def _united_clusters(change: FileChange, plan: Plan) -> FileChange:
    """The file of clusters with those of both plans."""
    old, new = change.old, change.new
    text = merge_clusters(old, new, own_members(plan)) if old and new else new or old
    return FileChange(change.path, old, text, change.mode)


def _united_members(change: FileChange, out: Collection[str]) -> FileChange:
    """A file of members with those of both plans."""
    old, new = change.old, change.new
    if old and new:
        text = take_out(merge_members(old, new), members_out(old) | frozenset(out))
    else:
        text = take_out(new or old or "", out)
    return FileChange(change.path, old, text, change.mode)


def write_routes(home: Home, plan: Plan) -> None:
    """What the gateway reads but clusters, and whose plan that is: keys that change from now on go into its routes."""
    with present_changes(home, plan) as changes:
        text = writer.read(home, NEXT_PLAN)
        whose = FileChange(NEXT_PLAN, text, plan_file(plan).text)
        rest = [c for c in changes if c.new is not None and c.path.startswith(FOLDER)]
        writer.apply(home, [whose, *(c for c in rest if not is_of_clusters(c))])


def validate(home: Home, plan: Plan) -> None:
    """Let Envoy itself read the whole configuration; raises GatewayError with its words when it does not like it."""
    file = home.run / f"gateway-check-{os.getpid()}.json"
    try:
        writer.replace_file(file, render_static(plan))
        done = run.capture(
            [plan.tools.envoy, "--mode", "validate", "--config-path", file, "--log-level", "error"],
            timeout=VALIDATE_SECONDS, check=False,
        )  # fmt: skip
    finally:
        file.unlink(missing_ok=True)
    if done.returncode != 0:
        said = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
        cause = next((line for line in said if "error" in line.lower()), said[-1] if said else "it did not say why")
        raise GatewayError(f"Envoy refuses its configuration: {cause.strip()}", "the old configuration stays in force")


def with_secrets(home: Home, plan: Plan) -> Plan:
    """The plan in force, with the secrets that its file leaves out; they are in files that only guards read."""
    services = []
    for service in plan.services:
        replicas = tuple(_with_kept(home, p) for p in service.replicas)
        endpoints = tuple(replace(e, key=_key(home, e)) for e in service.endpoints)
        services.append(replace(service, replicas=replicas, endpoints=endpoints))
    return replace(plan, services=tuple(services), on_event=_on_event(home))


def _on_event(home: Home) -> str | None:
    on_event: str | None = json.loads(_kept(home, EVENTS))["on_event"]
    return on_event


def _key(home: Home, endpoint: EndpointPlan) -> str | None:
    return read_key(home.root / endpoint.key_file) if endpoint.key_file else None


def _with_kept(home: Home, program: ProgramPlan) -> ProgramPlan:
    spec: dict[str, Any] = json.loads(_kept(home, guard_spec_path(program.name)))
    group = program.group and replace(program.group, secret=spec["group"]["secret"])
    return replace(program, env=spec["env"], group=group)


def _kept(home: Home, path: str) -> str:
    text = writer.read(home, path)
    if text is None:
        raise NotReadyError(f"{path} is missing", "run `llmhost up`")
    return text


def change_keys(home: Home, edit: Callable[[Keys], tuple[Keys, T]]) -> T:
    """Change the keys of a home, also in the gateway's files; returns what ``edit`` gives besides.

    `await_keys` waits until a running gateway acts accordingly. Raises what ``edit`` raises, and GatewayError when
    everybody could use the services without them.
    """
    with _keys_lock(home):
        keys, result = edit(keyring.load(home.keys_file))
        plans = {path: plan for path, plan in ((PLAN, read_plan(home)), (NEXT_PLAN, read_next_plan(home))) if plan}
        for plan in plans.values() if not keys else ():
            _require_safe_without_keys(plan)
        writer.replace_file(home.keys_file, keyring.dump(keys))
        _replace_routes(home, plans, keys)
    return result


def _require_safe_without_keys(plan: Plan) -> None:
    if not (plan.gateway.insecure or is_loopback(plan.gateway.host)):
        raise GatewayError(
            f"without keys everybody who can reach {plan.gateway.host} could use the services",
            "set gateway.host to 127.0.0.1 and run `llmhost up` first",
        )


def _replace_routes(home: Home, plans: Mapping[str, Plan], keys: Keys) -> None:
    """Write the route files with these keys, and the clusters of keys: no listener changes with keys.

    They are of the plan in force, or of the one that a change which is under way has switched to: the last of these.
    What other nodes ask has nothing to do with keys, and may hold more than that plan says, see `write_united`.
    """
    current = {path: replace(plan, gateway=with_keys(plan.gateway, keys)) for path, plan in plans.items()}
    if not current:
        return
    last = list(current.values())[-1]
    for file in (
        *_clusters_of_keys(home, last),
        *(file for file in render_routes(last) if file.path != ROUTES_OF_NODES),
        *(plan_file(plan, path) for path, plan in current.items()),
    ):
        writer.replace_file(home.root / file.path, file.text, file.mode)


def _clusters_of_keys(home: Home, plan: Plan) -> Iterator[RenderedFile]:
    """To be written before routes that lead to them."""
    there = writer.read(home, CLUSTERS)
    text = None if there is None else cluster_file(there, plan.gateway)
    if text is not None and text != there:
        yield RenderedFile(CLUSTERS, text)


def await_keys(home: Home) -> None:
    """Wait until a running gateway acts by the keys that its files hold; raises GatewayError when it does not.

    The files are read each time: another command may have changed them meanwhile.
    """
    deadline = time.monotonic() + EFFECT_SECONDS
    while (state := read_gateway(home.gateway_admin_socket)).live:
        routes, clusters = _route_versions(home, state.versions), writer.read(home, CLUSTERS)
        # Not whether engines of other clusters have been found meanwhile: what keys have is there at once.
        known = clusters is None or state.versions.get("cds") == version_of(clusters)
        if known and state.knows(routes):
            return
        if time.monotonic() > deadline:
            raise GatewayError(
                f"the keys are stored, but the gateway has not taken them up within {EFFECT_SECONDS:.0f} s",
                "see `llmhost logs gateway`",
            )
        time.sleep(POLL_SECONDS)


def _route_versions(home: Home, known: Collection[str]) -> dict[str, str]:
    """The versions of the route files; of a service's own port only where the gateway has that port already."""
    names = {"rds", *(name for name in known if name.startswith("rds-"))}
    texts = {name: writer.read(home, f"{FOLDER}{name}.json") for name in names}
    return {name: version_of(text) for name, text in texts.items() if text is not None}


@contextmanager
def _keys_lock(home: Home) -> Iterator[None]:
    require_account(home)
    home.run.mkdir(mode=0o700, parents=True, exist_ok=True)
    fd = os.open(home.keys_lock_file, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        deadline = time.monotonic() + LOCK_SECONDS
        while not _locked(fd):
            if time.monotonic() > deadline:
                raise BusyError(f"another llmhost command holds {home.keys_lock_file}", "try again")
            time.sleep(POLL_SECONDS)
        yield
    finally:
        os.close(fd)


def _locked(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
