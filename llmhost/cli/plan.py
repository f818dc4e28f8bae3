"""`llmhost plan` and `llmhost render`: what would run, and what would change on disk."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

import click

from llmhost.cli import Session, console

if TYPE_CHECKING:
    from llmhost.plan import Plan, ProgramPlan, ServicePlan
    from llmhost.writer import FileChange

GIB = 2**30


@click.command("plan")
@click.option("--json", "as_json", is_flag=True, help="The whole plan as JSON; values of env: are left out.")
@click.option(
    "--gpus",
    metavar="FILE|NxGIB[,…]",
    help="Would it fit on these GPUs? 4x24 or 4x24,2x48, or a file: gpus: [{name: RTX 4090, memory: 24GiB, free: 23GiB,"
    " count: 4}], or what `llmhost facts --json` said on another machine.",
)
@click.option("--commands", is_flag=True, help="The command of every replica, too.")
@click.pass_obj
def plan_command(session: Session, as_json: bool, gpus: str | None, commands: bool) -> None:
    """Show what runs where with which flags. Nothing is started or written.

    Flags that follow from the model (tool_call_parser, reasoning_parser, …) are shown with the reason; write them under
    args: to have another value, or null to have none. `llmhost check` proves them with a real tool call.

    --gpus plans for GPUs that need not be here, and needs neither engine nor models (their hubs are asked): who runs
    where, with how much memory, how many sequences at once; or what is missing, and what would fit.
    """
    if gpus is not None:
        _plan_on_gpus(session, gpus, as_json)
        return
    from llmhost.planning import make_home_plan, make_outlook

    plan = make_home_plan(session.home)
    if as_json:
        console.json_result(_without_secrets(plan))
        return
    vllm = f"{plan.engine.name}: vLLM {plan.engine.vllm_version}" if plan.engine.python else "none: nobody needs vLLM;"
    console.result(f"engine   {vllm} on {plan.engine.device}")
    console.result(f"gateway  {plan.gateway.url}")
    if plan.nodes:
        console.result(f"node     {plan.node} of {', '.join(n.name for n in plan.nodes)}; placement {plan.placement}")
    console.result()
    console.table(
        ("SERVICE", "KIND", "NAMES", "REPLICAS", "CORES", "MEMORY", "KV CACHE", "MODEL"), map(_row, plan.services)
    )
    console.result()
    if plan.nodes:
        console.table(("REPLICA", "NODE"), _places(plan))
        console.result()
    for name, what in make_outlook(session.home, plan):
        console.result(f"`llmhost up` for {name}: {what}")
    console.result()
    for service in plan.services:
        kind = service.kind if service.routed else "a helper"
        console.result(f"{service.name} is {kind}: {service.kind_reason}")
        for choice in service.choices:
            value = "none" if choice.value is None else choice.value
            console.result(f"  {choice.flag}: {value}  ({choice.reason})")
    if commands:
        for program in plan.programs:
            console.result(f"\n{program.name}:\n  {shlex.join(program.argv)}")


def _plan_on_gpus(session: Session, written: str, as_json: bool) -> None:
    from llmhost.cli import gpus as picture
    from llmhost.planning import place_on_gpus
    from llmhost.probe.gpu_list import read_gpu_list

    gpus = read_gpu_list(written)
    config, models, shares = place_on_gpus(session.home, gpus)
    if as_json:
        console.json_result(picture.to_json(gpus, shares))
    else:
        picture.show(config, models, gpus, shares)


def _row(service: ServicePlan) -> tuple[str, ...]:
    replicas = service.replicas
    cores = {len(r.cores) for r in replicas} - {0}
    return (
        service.name,
        service.kind,
        ", ".join(service.served_as),
        " + ".join(filter(None, (str(len(replicas)), ", ".join(e.url for e in service.endpoints)))),
        "/".join(map(str, sorted(cores))) or "shared",
        f"{sum(r.memory_bytes for r in replicas) / GIB:.1f} GiB",
        f"{sum(r.kv_cache_bytes for r in replicas) / GIB:.1f} GiB",
        service.model,
    )


def _places(plan: Plan) -> list[tuple[str, str]]:
    """Every replica, here and on other nodes."""
    return [
        (replica, node)
        for service in plan.services
        for node, replicas in (
            *((plan.node, (r.name,)) for r in service.replicas),
            *((e.node, e.replicas) for e in service.elsewhere),
            *(other for r in service.replicas for other in _other_parts(r)),
        )
        for replica in replicas
    ]


def _other_parts(program: ProgramPlan) -> list[tuple[str, tuple[str, ...]]]:
    """Of the first part of a model that spans nodes: node and name of the others."""
    if program.group is None or program.group.rank:
        return []
    from llmhost.config_span import part_name

    service, _, number = program.name.rpartition("-")
    return [(node, (f"{part_name(service, rank)}-{number}",)) for rank, node in enumerate(program.group.nodes) if rank]


def _without_secrets(plan: Plan) -> dict[str, object]:
    from llmhost.plan import stored

    data = stored.to_dict(plan)
    for service in data["services"]:
        for replica in service["replicas"]:
            replica["env"] = sorted(replica["env"])
    return data


@click.command("render")
@click.option("--diff", "as_diff", is_flag=True, help="What would change on disk, as a diff; nothing is written.")
@click.option("-o", "--output", type=click.Path(file_okay=False), help="Write the files below this directory instead.")
@click.pass_obj
def render_command(session: Session, as_diff: bool, output: str | None) -> None:
    """List the files that `llmhost up` would write; with --diff their changes, with -o the files themselves.

    Files that may hold secrets (the environment of an engine, the key of an endpoint, hashes of API keys, `on_event`)
    are named in a diff, their lines are not shown.
    """
    from pathlib import Path

    from llmhost import writer
    from llmhost.paths import Home
    from llmhost.planning import make_home_plan
    from llmhost.render import render

    files = render(make_home_plan(session.home))
    if output is not None:
        target = Home(Path(output).absolute())
        writer.apply(target, [writer.FileChange(f.path, None, f.text, f.mode) for f in files])
        console.result(f"wrote {len(files)} files below {output}")
        return
    changes = writer.changes(session.home, files)
    for change in changes:
        if as_diff:
            secret = _may_hold_secrets(change)
            console.result(f"{_verb(change)} {change.path}" if secret else _fitting(change.diff().rstrip()))
        else:
            console.result(f"{_verb(change):8} {change.path}")
    if not changes:
        console.remark("nothing would change")


LONGEST_LINE = 160


def _fitting(diff: str) -> str:
    """For a terminal: a page of the gateway is one line of some thousand characters. What is piped on stays whole."""
    if not console.stdout_is_terminal():
        return diff
    return "\n".join(shortened(line) for line in diff.splitlines())


def shortened(line: str) -> str:
    """A line of at most `LONGEST_LINE` characters, and how many more there are."""
    more = len(line) - LONGEST_LINE
    return line if more <= 0 else f"{line[:LONGEST_LINE]}… (and {more} characters more)"


def _verb(change: object) -> str:
    old, new = getattr(change, "old", None), getattr(change, "new", None)
    if new is None:
        return "removed"
    return "new" if old is None else "changed"


def _may_hold_secrets(change: FileChange) -> bool:
    """The environment of an engine, the key of an endpoint, who is told of events, or hashes of API keys."""
    hashes = "{SHA}" in f"{change.old}{change.new}"
    return hashes or change.path.startswith(("conf/guard/", "conf/gateway/eds-", "conf/events.json"))
