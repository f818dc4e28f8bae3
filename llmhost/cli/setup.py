"""`llmhost setup`: the engine environment."""

from __future__ import annotations

import click

from llmhost.cli import Session, console


@click.command("setup")
@click.option("--json", "as_json", is_flag=True, help="What was built, as JSON.")
@click.pass_obj
def setup_command(session: Session, as_json: bool) -> None:
    """Build the engine environment that llmhost.yaml asks for, unless it is there already.

    The index, find-links, proxy and certificates of pip's configuration are used (PIP_* too). An interrupted setup is
    finished by the next one; the engine that is there keeps working until a new one has passed its import test.
    """
    from llmhost.cli.progress import shown_progress
    from llmhost.workflow import setup

    with shown_progress() as progress:
        engine = setup(session.home, progress)
    if as_json:
        console.json_result(
            {"name": engine.name, "python": engine.python, "device": engine.device, "vllm": engine.vllm_version}
        )
    else:
        console.result(f"engine {engine.name}: vLLM {engine.vllm_version} on {engine.device}, {engine.python}")
