"""`--all-nodes`: the same command on every node of llmhost.yaml, and one answer."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from llmhost.cli import Session, console

if TYPE_CHECKING:
    from llmhost.errors import LlmhostError
    from llmhost.fleet.everywhere import Outcome
    from llmhost.fleet.members import Member
    from llmhost.fleet.turns import Services, Turns
    from llmhost.supervise.status import ReplicaStatus, ServiceStatus

STATUS_SECONDS = 30.0
"""Seconds for a node that has answered to say what runs there."""
NOT_READY = 3
INTERRUPTED = 130
COLOURS = ("cyan", "yellow", "green", "magenta", "blue", "bright_cyan", "bright_yellow", "bright_green")

Command = Callable[..., Any]


def all_nodes(more: str = "") -> Callable[[Command], Command]:
    """The option; ``more`` is added to its help."""
    return click.option("--all-nodes", is_flag=True, help=f"Do this on every node of llmhost.yaml, over ssh.{more}")


def words_of(ctx: click.Context, *left_out: str) -> tuple[str, ...]:
    """The words of the present command, as another llmhost is to be called, without these parameters."""
    words: list[str] = [str(ctx.info_name)]
    positional: list[str] = []
    for parameter in ctx.command.params:
        name, value = str(parameter.name), ctx.params.get(str(parameter.name))
        if name in ("all_nodes", *left_out) or ctx.get_parameter_source(name) is ParameterSource.DEFAULT:
            continue
        if isinstance(parameter, click.Argument):
            positional += [str(v) for v in (value if isinstance(value, tuple) else (value,))]
        elif isinstance(parameter, click.Option) and value is not None:
            words += _option(parameter, value)
    return (*words, *(["--", *positional] if positional else ()))


def _option(option: click.Option, value: Any) -> list[str]:
    if option.is_flag:
        return [option.opts[-1] if value else option.secondary_opts[-1]] if value or option.secondary_opts else []
    return [option.opts[-1], str(value)]


def act(session: Session, words: tuple[str, ...], *, show_results: bool) -> int:
    """Run a command on every node at once, each line with the node in front; returns the exit status for all."""
    from llmhost.fleet.members import members

    nodes = members(session.home)
    return _act(nodes, words, (tuple(n.name for n in nodes),), (), show_results=show_results)


def _act(
    nodes: Sequence[Member],
    words: tuple[str, ...],
    turns: Turns,
    busy: Collection[str],
    *,
    show_results: bool,
    lost: Mapping[str, LlmhostError] | None = None,
) -> int:
    """One turn after another. Nothing is run on those that are ``lost`` already; why is told with the rest."""
    from llmhost.fleet.everywhere import Everywhere, Outcome

    prefixes = _prefixes(n.name for n in nodes)

    def told(node: str, line: str, error: bool) -> None:
        if error:
            console.remark(prefixes[node] + line)
        elif show_results:
            console.result(prefixes[node] + line)

    left_out = {name: Outcome(name, failure=failure) for name, failure in (lost or {}).items()}
    there = [n for n in nodes if n.name not in left_out]
    outcomes = left_out | Everywhere(told).run_in_turns(there, words, turns, busy)
    _tell_failures(outcomes, prefixes)
    left = [n.name for n in nodes if n.name not in outcomes]
    if left:
        console.remark(f"not touched, because of what failed: {', '.join(left)}")
    return _status(outcomes.values())


def bring_up(session: Session, words: tuple[str, ...]) -> int:
    """`up` everywhere, from the same files; then what runs where. A node that did not get them is left as it is.

    Raises NodeError when a service would stop where it runs, and such a node would not find it where it goes.
    """
    from llmhost.fleet.members import members

    lost = prepare(session)
    nodes = members(session.home)
    said = _statuses([n for n in nodes if n.name not in lost])
    running = _running(said)
    turns = _turns_of_up(session, running, said.values(), _in_the_way(nodes, lost))
    status = _act(nodes, words, turns, _busy(running), show_results=False, lost=lost)
    if status not in (0, NOT_READY) or "--no-wait" in words:
        return status
    return show_status(session, as_json=False, lost=lost) or (NOT_READY if lost else 0)


def act_in_turns(nodes: Sequence[Member], words: tuple[str, ...], turns: Turns, busy: Collection[str]) -> int:
    """`_act` for nodes of which some have no turn, without results."""
    chosen = [n for n in nodes if any(n.name in turn for turn in turns)]
    return _act(chosen, words, turns, busy, show_results=False)


def live(nodes: Sequence[Member]) -> dict[str, bool]:
    """Whether something runs on a node, be it only the gateway; nodes that did not say so are not among them."""
    return {n: bool(s["gateway"]["pid"] or _services_running(s)) for n, s in _statuses(nodes).items() if s}


def roll(session: Session, words: tuple[str, ...]) -> int:
    """`restart --rolling`, on one node after another: each counts on the engines of the others."""
    from llmhost.fleet.members import members
    from llmhost.fleet.turns import of_restart

    nodes = members(session.home)
    running = _running(_statuses(nodes))
    return _act(nodes, words, of_restart(running), _busy(running), show_results=True)


def _turns_of_up(
    session: Session,
    running: Services,
    said: Iterable[Mapping[str, Any] | None],
    lost: Mapping[str, LlmhostError],
) -> Turns:
    """``lost`` are nodes that did not take the files, and matter; raises NodeError as `bring_up`."""
    from llmhost import config as configuration
    from llmhost import nodes as placing
    from llmhost.fleet.turns import followers, of_up, require_found

    config = configuration.load(session.home.config_file)
    whole = placing.read_whole(session.home, config)
    if whole is None:
        return (tuple(running),)
    placed = {n: frozenset(whole.part.placement.on(n)) for n in config.nodes}
    answered = _answered(said)
    # What other servers answer to, and go on to, nobody has to take over.
    new = {name: s for name, s in config.services.items() if not (s.endpoints and name in answered)}
    following = followers(answered, running, placed, {name: s.served_as or [name] for name, s in new.items()})
    require_found(running, placed, following, lost)
    spanning = ", ".join(whole.part.spans.widths)
    if not spanning:
        return of_up(running, {n: placed[n] for n in running}, following)
    if _busy(running):
        console.remark(f"all nodes at the same time: what spans nodes restarts as one ({spanning})")
    return (tuple(running),)


def _in_the_way(nodes: Sequence[Member], lost: Mapping[str, LlmhostError]) -> dict[str, LlmhostError]:
    """Nodes that did not take the files, but those that answer and run nothing: they send no requests anywhere."""
    from llmhost.fleet.turns import is_dead

    runs = live([n for n in nodes if n.name in lost and not is_dead(lost[n.name])])
    return {name: error for name, error in lost.items() if runs.get(name, True)}


def _answered(said: Iterable[Mapping[str, Any] | None]) -> dict[str, list[str]]:
    """The names that services answer to now, by their engines or by servers that are no nodes."""
    live = [status for status in said if status and status["gateway"]["pid"]]
    services = [s for status in live for s in status["services"]]
    return {s["name"]: s["served_as"] for s in services if s["endpoints"] or any(r["pid"] for r in s["replicas"])}


def _running(said: Mapping[str, Mapping[str, Any] | None]) -> dict[str, frozenset[str]]:
    """The services of which engines run, by node; none for a node that does not say."""
    return {name: _services_running(status) if status else frozenset() for name, status in said.items()}


def _statuses(nodes: Sequence[Member]) -> dict[str, Mapping[str, Any] | None]:
    """What `llmhost status --json` says on each node."""
    from llmhost.fleet.everywhere import Everywhere

    outcomes = Everywhere(timeout=STATUS_SECONDS).run(nodes, ("status", "--json"))
    return {n.name: _told(n.name, n.address, outcomes[n.name])["status"] for n in nodes}


def _services_running(status: Mapping[str, Any]) -> frozenset[str]:
    return frozenset(s["name"] for s in status["services"] if any(r["pid"] for r in s["replicas"]))


def _busy(running: Services) -> list[str]:
    return [name for name, services in running.items() if services]


def prepare(session: Session) -> Mapping[str, LlmhostError]:
    """Decide what runs where, and bring that and llmhost.yaml to every node; which of them did not take it, and why."""
    from llmhost import config as configuration
    from llmhost import nodes as placing
    from llmhost.fleet.members import members
    from llmhost.fleet.sync import sync

    config = configuration.load(session.home.config_file)
    every = members(session.home, config)
    whole = placing.read_whole(session.home, config)
    assert whole is not None  # there are nodes, or `members` had refused
    done = sync(session.home, every, first=lambda: placing.write_shared(session.home, whole))
    if done.changed:
        console.remark(f"synced {', '.join(done.changed)}")
    return done.failed


def show_status(session: Session, *, as_json: bool, lost: Mapping[str, LlmhostError] | None = None) -> int:
    """The states of all nodes as one; exit status 3 unless all of them answer and are ready.

    Those of ``lost`` that did not answer a moment ago are not waited for again.
    """
    from llmhost.fleet.everywhere import Everywhere, Outcome
    from llmhost.fleet.members import members
    from llmhost.fleet.turns import is_dead

    nodes = members(session.home)
    dead = {name: Outcome(name, failure=error) for name, error in (lost or {}).items() if is_dead(error)}
    answering = [n for n in nodes if n.name not in dead]
    outcomes = dead | Everywhere(timeout=STATUS_SECONDS).run(answering, ("status", "--json"))
    found = [_told(n.name, n.address, outcomes[n.name]) for n in nodes]
    if as_json:
        console.json_result({"nodes": found})
    else:
        _show(found)
    return 0 if all(node["ready"] for node in found) and not any(_not_reached(found)) else NOT_READY


def _told(name: str, address: str, outcome: Outcome) -> dict[str, Any]:
    """What is known of a node; ``status`` is what `llmhost status --json` says there, null for one that is gone."""
    from llmhost import __version__
    from llmhost.fleet.members import without_greeting

    status, error, hint = None, None, None
    try:
        status = json.loads(without_greeting("\n".join(outcome.lines)))
    except ValueError:
        failure = outcome.failure
        error = failure.message if failure else f"`llmhost status` ended with {outcome.status} there"
        hint = (failure.hint if failure else "") or None
    version = status.get("llmhost") if status else None
    if status is not None and version != __version__:
        error = f"{name} has llmhost {version or 'of another version'}, and this node {__version__}"
        hint = f"`llmhost node add {name}` brings the same one there"
    return {
        "node": name, "address": address, "reachable": status is not None,
        "ready": status is not None and error is None and _ready(status),
        "reason": None if status is not None else outcome.reason or "failed", "error": error, "hint": hint,
        "status": status,
    }  # fmt: skip


def _ready(status: Mapping[str, Any]) -> bool:
    """What a node runs itself is ready; how it sees the others is not its own."""
    members = [m for s in status["services"] for m in (*s["replicas"], *s["endpoints"])]
    gateway = status["gateway"]["state"]
    return bool(status["services"]) and gateway == "ready" and all(m["state"] == "ready" for m in members)


def _not_reached(found: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    """Nodes whose gateway another one does not reach, though they are ready."""
    ready = {node["node"] for node in found if node["ready"]}
    for node in found:
        services = node["status"]["services"] if node["ready"] else []
        others = {n["node"] for s in services for n in s.get("nodes", ()) if n["state"] != "ready"}
        yield from ((node["node"], other) for other in sorted(others & ready))


def _show(found: Sequence[Mapping[str, Any]]) -> None:
    from llmhost.cli.status import HEAD

    console.table(("NODE", *HEAD), [row for node in found for row in _rows(node)])
    for node in (n for n in found if n["error"]):
        console.result(f"\n{node['node']}: {node['error']}" + (f"\n  -> {node['hint']}" if node["hint"] else ""))
    for node in (n for n in found if n["status"]):
        services, beside = node["status"]["services"], node["status"].get("beside", ())
        for replica in (r for r in (*(r for s in services for r in s["replicas"]), *beside) if r["error"]):
            console.result(f"\n{node['node']}  {replica['name']}: {replica['error']}")
    for name, other in _not_reached(found):
        console.result(f"\n{name}: its gateway does not reach that of {other}\n  -> see `llmhost node doctor`")


def _rows(node: Mapping[str, Any]) -> list[tuple[str, ...]]:
    from llmhost.cli.status import beside_row, rows_of

    if node["status"] is None:
        return [(node["node"], f"({node['reason']})", "", "", console.state("unreachable"), "", "", "", "")]
    gateway = node["status"]["gateway"]
    pid = str(gateway["pid"] or "-")
    own = ("gateway", "", gateway["url"] or "", console.state(gateway["state"]), pid, "", "", "")
    shown = [s for s in node["status"]["services"] if s["replicas"] or s["endpoints"]]
    rows = [own, *(row for service in shown for row in rows_of(_service(service)))]
    beside = [beside_row(replica) for replica in _replicas(node["status"].get("beside", ()))]
    return [(node["node"], *row) for row in (*rows, *beside)]


def _service(data: Mapping[str, Any]) -> ServiceStatus:
    from llmhost.supervise.status import EndpointStatus, ServiceStatus

    replicas = _replicas(data["replicas"])
    endpoints = tuple(EndpointStatus(**{f: e[f] for f in EndpointStatus._fields}) for e in data["endpoints"])
    plain = {f: data[f] for f in ServiceStatus._fields if f in data}
    return ServiceStatus(**{**plain, "replicas": replicas, "endpoints": endpoints, "nodes": ()})


def _replicas(data: Iterable[Mapping[str, Any]]) -> tuple[ReplicaStatus, ...]:
    from llmhost.supervise.status import ReplicaStatus

    return tuple(ReplicaStatus(**{f: r[f] for f in ReplicaStatus._fields}) for r in data)


def show_logs(session: Session, words: tuple[str, ...], *, follow: bool, as_json: bool) -> int:
    """The logs of all nodes, each line with its node in front; in the order of time, or as they come."""
    from llmhost.fleet.everywhere import Everywhere
    from llmhost.fleet.members import members

    nodes = members(session.home)
    prefixes = _prefixes(n.name for n in nodes)
    lines: list[tuple[str, dict[str, Any]]] = []

    def told(node: str, line: str, error: bool) -> None:
        if error:
            console.remark(prefixes[node] + line)
        elif not line.startswith("{"):
            return  # some hosts greet whoever logs in
        elif follow:
            _log_line(node, prefixes[node], json.loads(line), as_json)
        else:
            lines.append((node, json.loads(line)))

    try:
        outcomes = Everywhere(told).run(nodes, words)
    except KeyboardInterrupt:
        return INTERRUPTED  # the way to end `logs -f`: nothing to say about it
    for node, line in _by_time(lines):
        _log_line(node, prefixes[node], line, as_json)
    _tell_failures(outcomes, prefixes)
    return _status(outcomes.values())


def _by_time(lines: Iterable[tuple[str, dict[str, Any]]]) -> list[tuple[str, dict[str, Any]]]:
    """In the order of time; those of a node stay in theirs, and what has no time goes with the line before it."""
    from datetime import datetime

    latest: dict[str, float] = {}
    keyed = []
    for node, line in lines:
        own = datetime.fromisoformat(line["time"]).timestamp() if line["time"] else float("-inf")
        latest[node] = max(own, latest.get(node, float("-inf")))
        keyed.append((latest[node], node, line))
    return [(node, line) for _, node, line in sorted(keyed, key=lambda entry: entry[0])]


def _log_line(node: str, prefix: str, line: dict[str, Any], as_json: bool) -> None:
    if as_json:
        console.json_line({"node": node, **line})
        return
    text = line["text"] if "text" in line else json.dumps(line["request"], ensure_ascii=False)
    console.result(f"{prefix}{line['program']} | {text}")


def _prefixes(names: Iterable[str]) -> dict[str, str]:
    every = list(names)
    width = max(map(len, every))
    return {n: click.style(f"{n:{width}} | ", fg=COLOURS[i % len(COLOURS)]) for i, n in enumerate(every)}


def _tell_failures(outcomes: Mapping[str, Outcome], prefixes: Mapping[str, str]) -> None:
    for node, outcome in outcomes.items():
        if outcome.failure is not None:
            hint = f"; {outcome.failure.hint}" if outcome.failure.hint else ""
            state = console.state("unreachable" if outcome.unreachable else "failed")
            console.remark(f"{prefixes[node]}{state}: {outcome.failure.message}{hint}")


def _status(outcomes: Iterable[Outcome]) -> int:
    """1 when it failed somewhere, 3 when a node is not ready or did not answer, else 0."""
    ended = [o.status if o.status is not None else NOT_READY if o.unreachable else 1 for o in outcomes]
    if any(status not in (0, NOT_READY) for status in ended):
        return 1
    return NOT_READY if any(ended) else 0
