"""`llmhost import`: from docker compose or supervisord to an llmhost.yaml."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from llmhost.cli import Session, console

if TYPE_CHECKING:
    from llmhost.config import Config
    from llmhost.migrate.report import Line
    from llmhost.paths import Home


@click.command("import")
@click.argument("files", metavar="[FILE…]", nargs=-1, type=click.Path(dir_okay=False))
@click.option(
    "--node", "specs", multiple=True, metavar="NAME=[USER@]ADDRESS:FILE",
    help="A compose file that ran on another host, which becomes the node NAME. Again for each file and host.",
)  # fmt: skip
@click.option("-o", "--output", type=click.Path(dir_okay=False), help="Write llmhost.yaml there; else it is printed.")
@click.option("--force", is_flag=True, help="Replace a file that is there.")
@click.option(
    "--json", "as_json", is_flag=True, help="As JSON: {config, report: [{service, source, outcome, detail, node}]}."
)
@click.pass_obj
def import_command(
    session: Session, files: tuple[str, ...], specs: tuple[str, ...], output: str | None, force: bool, as_json: bool
) -> None:
    """Make an llmhost.yaml of FILE.

    It is a docker compose file with vLLM or text-embeddings-inference, or a supervisord.conf with vLLM or FastChat
    workers. Several compose files become one llmhost.yaml; `include`, `extends`, `env_file`, `.env` and override files
    are followed as Docker does, supervisord's `[include]` as supervisord does.

    \b
      llmhost import docker-compose.yaml -o ~/.llmhost/llmhost.yaml
      llmhost import llm/compose.yaml tei/compose.yaml

    Compose files of several hosts become one with `nodes:`, each service on the node that it ran on; what runs alike on
    several is one service with replicas there:

    \b
      llmhost import --node a=root@10.0.0.1:llm/compose.yaml --node b=10.0.0.2:tei/compose.yaml

    The report says what became of every flag, variable, port and volume; nothing is left out silently. Flags that vLLM
    has removed are replaced, paths in containers become paths of this machine. Values of secrets are not written.
    """
    import os
    from dataclasses import replace
    from pathlib import Path

    from llmhost import config, writer
    from llmhost.errors import ConfigError
    from llmhost.migrate.hosts import SYNTAX, parse_hosts
    from llmhost.migrate.read import import_files, import_nodes, to_yaml

    if not files and not specs:
        raise click.UsageError("name a FILE, or --node NAME=[USER@]ADDRESS:FILE")
    if files and specs:
        raise ConfigError(f"{files[0]}: which node is it of? Others are given with --node", SYNTAX)
    hosts = parse_hosts(specs)
    sources = [Path(file) for file in files] or [file for host in hosts for file in host.files]
    imported = import_nodes(hosts, os.environ) if hosts else import_files(sources, os.environ)
    text = to_yaml(imported, sources)
    if hosts:
        checked = _planned(session.home, config.parse(text))
        imported = replace(imported, lines=(*imported.lines, checked))
        text = to_yaml(imported, sources)
    if output is not None:
        if Path(output).exists() and not force:
            raise ConfigError(f"{output} exists", "choose another name, or replace it with --force")
        writer.replace_file(Path(output), text, mode=0o600)
    if as_json:
        console.json_result({"config": imported.config, "report": [vars(line) for line in imported.lines]})
        return
    if output is None:
        console.result(text.rstrip())
    for line in imported.lines:
        console.remark(f"{line.outcome:9} {line.place or sources[0].name}: {line.source} -> {line.detail}")
    todo = sum(line.outcome == "by hand" for line in imported.lines)
    console.remark(f"{todo} left to do by hand" if todo else "nothing is left to do by hand")
    if output is not None:
        console.result(f"wrote {output}")


def _planned(home: Home, config: Config) -> Line:
    """Whether everything fits on its nodes, where this home has their facts; else how they are read."""
    from llmhost import nodes
    from llmhost.errors import LlmhostError
    from llmhost.migrate.report import Line

    missing = [name for name in config.nodes if not home.node_facts_file(name).exists()]
    if missing:
        commands = ", ".join(f"`llmhost node add {name}`" for name in missing)
        own = f"put llmhost.yaml into {home.root}, and into {home.node_file} which of the nodes this machine is"
        what = f"it is not known yet whether everything fits: {own}; then {commands} for all but this one"
        return Line("", f"facts of {', '.join(missing)}", "by hand", what)
    try:
        placement = nodes.foreseen(home, config)
    except LlmhostError as e:
        return Line("", "the plan for these nodes", "by hand", f"{e.message}{f' ({e.hint})' if e.hint else ''}")
    where = (f"{service} on {', '.join(placement.of(service))}" for service in placement.nodes)
    return Line("", "the plan for these nodes", "became", f"everything fits: {'; '.join(where)}")
