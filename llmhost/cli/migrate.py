"""`llmhost import`: from docker compose or supervisord to an llmhost.yaml."""

from __future__ import annotations

import click

from llmhost.cli import Session, console


@click.command("import")
@click.argument("files", metavar="FILE…", nargs=-1, required=True, type=click.Path(dir_okay=False))
@click.option("-o", "--output", type=click.Path(dir_okay=False), help="Write llmhost.yaml there; else it is printed.")
@click.option("--force", is_flag=True, help="Replace a file that is there.")
@click.option(
    "--json", "as_json", is_flag=True, help="As JSON: {config, report: [{service, source, outcome, detail}]}."
)
@click.pass_obj
def import_command(_: Session, files: tuple[str, ...], output: str | None, force: bool, as_json: bool) -> None:
    """Make an llmhost.yaml of FILE.

    It is a docker compose file with vLLM or text-embeddings-inference, or a supervisord.conf with vLLM or FastChat
    workers. Several compose files become one llmhost.yaml; `include`, `extends`, `env_file`, `.env` and override files
    are followed as Docker does, supervisord's `[include]` as supervisord does.

    \b
      llmhost import docker-compose.yaml -o ~/.llmhost/llmhost.yaml
      llmhost import llm/compose.yaml tei/compose.yaml

    The report says what became of every flag, variable, port and volume; nothing is left out silently. Flags that vLLM
    has removed are replaced, paths in containers become paths of this machine. Values of secrets are not written.
    """
    import os
    from pathlib import Path

    from llmhost import writer
    from llmhost.errors import ConfigError
    from llmhost.migrate.read import import_files, to_yaml

    sources = [Path(file) for file in files]
    imported = import_files(sources, os.environ)
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
        console.remark(f"{line.outcome:9} {line.service or sources[0].name}: {line.source} -> {line.detail}")
    todo = sum(line.outcome == "by hand" for line in imported.lines)
    console.remark(f"{todo} left to do by hand" if todo else "nothing is left to do by hand")
    if output is not None:
        console.result(f"wrote {output}")
