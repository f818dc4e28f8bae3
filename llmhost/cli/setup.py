"""`llmhost setup`: the engine environment."""

from __future__ import annotations

import click

from llmhost.cli import Session, console


@click.command("setup")
@click.option("--locked", is_flag=True, help="Exactly the packages of engine.lock, which lies beside llmhost.yaml.")
@click.option("--warm", is_flag=True, help="Then start each service once, so that its compile caches are filled.")
@click.option(
    "--flash-attn",
    is_flag=False,
    flag_value="true",
    metavar="[VERSION]",
    help="Also compile flash-attn for the GPUs here; what llmhost.yaml says of it does not count then.",
)
@click.option("--dry-run", is_flag=True, help="With flash-attn: only say how it would be built.")
@click.option("--json", "as_json", is_flag=True, help="What was built (or would be), as JSON.")
@click.pass_obj
def setup_command(
    session: Session, locked: bool, warm: bool, flash_attn: str | None, dry_run: bool, as_json: bool
) -> None:
    """Build the engine environment that llmhost.yaml asks for, unless it is there already.

    The newest vLLM that runs on this machine is taken: by its driver, GPUs, Python and C library. What cannot run here
    is refused before anything is downloaded. engine.kind says how: venv (with uv), conda, or existing (an environment
    of your own, checked and never changed).

    The index, find-links, proxy and certificates of pip's configuration are used (PIP_* too). An interrupted setup is
    finished by the next one; the engine that is there keeps working until a new one has passed its import test. The
    packages that were installed are written to engine.lock.

    Environments of services with a command of their own (docs/foreign-engines.md) are built, too.

    flash-attn is a package that some models and programs import; vLLM itself brings what it needs. A build takes many
    minutes and much memory (--dry-run tells how much); its wheel is kept for the next engine.
    """
    from llmhost import engines, switching
    from llmhost.cli.progress import shown_progress

    wanted = True if flash_attn == "true" else flash_attn
    if dry_run:
        lines, remarks = engines.explain_setup(session.home, wanted)
        if as_json:
            console.json_result({"flash_attn": lines, "remarks": remarks})
        else:
            console.result("\n".join([*lines, *remarks]))
        return
    with shown_progress() as progress:
        engine = engines.setup(session.home, progress, locked=locked, flash_attn=wanted)
        warmed = switching.warm(session.home, progress) if warm and engine.python else ()
    if as_json:
        console.json_result(
            {
                "name": engine.name,
                "python": engine.python,
                "device": engine.device,
                "vllm": engine.vllm_version,
                "warmed": dict(warmed),
                "remarks": engines.remarks_on(session.home, engine) if engine.python else (),
                "steps": [vars(step) for step in engines.steps_of(session.home, engine)] if engine.python else [],
            }
        )
        return
    if engine.python:
        console.result(f"engine {engine.name}: vLLM {engine.vllm_version} on {engine.device}, {engine.python}")
    else:
        console.result("no service here needs vLLM; the environments of the others are built")
    for name, seconds in warmed:
        console.result(f"warm: {name}, ready after {seconds:.0f} s")
