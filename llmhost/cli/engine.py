"""`llmhost engine`: the engines of a home side by side, and their caches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from llmhost.cli import Session, console

if TYPE_CHECKING:
    from llmhost.engines import Listed
    from llmhost.env.progress import Progress
    from llmhost.supervise.states import ProgramState
    from llmhost.switching import Wait
    from llmhost.workflow import Started

GIB = 2**30


@click.group("engine")
def engine_command() -> None:
    """List, upgrade, choose and remove engines.

    \b
      llmhost engine upgrade            the newest vLLM that runs here: built beside, tried, then taken
      llmhost engine use default        back to the former one: a restart, nothing is installed
      llmhost engine remove 0.33.0-cuda
    """


@engine_command.command("list")
@click.option("--json", "as_json", is_flag=True, help="As JSON; sizes in bytes.")
@click.pass_obj
def list_command(session: Session, as_json: bool) -> None:
    """Show the engines that are built; * marks the one in use."""
    from llmhost.engines import list_engines

    found = list_engines(session.home)
    if as_json:
        console.json_result([_as_data(engine) for engine in found])
        return
    if not found:
        console.result("no engine is built; `llmhost setup` builds one")
        return
    rows = [
        (
            f"{'*' if engine.current else ' '} {engine.name}",
            engine.manifest.vllm_version,
            engine.manifest.packages.get("torch", ""),
            engine.manifest.device,
            engine.manifest.spec.kind,
            engine.manifest.python_version,
            f"{engine.bytes / GIB:.1f} GiB",
            "running" if engine.running else "",
        )
        for engine in found
    ]
    console.table(("  engine", "vllm", "torch", "device", "kind", "python", "size", ""), rows)


def _as_data(engine: Listed) -> dict[str, Any]:
    manifest = engine.manifest
    return {
        "name": engine.name,
        "current": engine.current,
        "running": engine.running,
        "kind": manifest.spec.kind,
        "device": manifest.device,
        "python": engine.python,
        "python_version": manifest.python_version,
        "packages": dict(manifest.packages),
        "bytes": engine.bytes,
        "built_at": manifest.built_at,
        "steps": [{"name": s.name, "detail": s.detail, "seconds": s.seconds} for s in manifest.steps],
    }


@engine_command.command("upgrade")
@click.option("--to", metavar="VERSION", help="Version of vLLM.  [default: the newest that runs on this machine]")
@click.pass_obj
def upgrade_command(session: Session, to: str | None) -> None:
    """Build another vLLM beside the present one, try it, and switch to it.

    The flags under args: are checked against it first: what it has removed or renamed is named, with what to write
    instead. Then one service is started on it beside what runs (where there is room) and asked something; then
    everything is brought over as `llmhost up --surge` does it. If anything of it fails, the present engine goes on.

    The former one stays: `llmhost engine use NAME` goes back to it.
    """
    from llmhost import switching
    from llmhost.cli.progress import shown_progress

    with shown_progress() as progress:
        new = switching.upgrade(session.home, to, progress, _waiting(session, progress))
    console.result(f"engine {new.name}: vLLM {new.vllm_version} on {new.device}")


@engine_command.command("use")
@click.argument("name")
@click.pass_obj
def use_command(session: Session, name: str) -> None:
    """Switch to an engine that is built; what runs is restarted on it."""
    from llmhost import switching
    from llmhost.cli.progress import shown_progress

    with shown_progress() as progress:
        engine = switching.use(session.home, name, progress, _waiting(session, progress))
    console.result(f"engine {engine.name}: vLLM {engine.vllm_version} on {engine.device}")


@engine_command.command("remove")
@click.argument("name")
@click.pass_obj
def remove_command(session: Session, name: str) -> None:
    """Delete an engine that is not in use."""
    from llmhost.engines import remove

    remove(session.home, name)
    console.result(f"removed the engine {name}")


@engine_command.group("cache")
def cache_group() -> None:
    """List and clear what engines have compiled (torch.compile, Triton, FlashInfer, vLLM).

    It is kept for each version of vLLM and kind of GPU, and makes a start several times faster.
    """


@cache_group.command("list")
@click.option("--json", "as_json", is_flag=True, help="As JSON; sizes in bytes.")
@click.pass_obj
def list_caches_command(session: Session, as_json: bool) -> None:
    """Show the caches, their sizes, and whether engines that run use them."""
    from llmhost.engines import list_caches

    found = list_caches(session.home)
    if as_json:
        rows = [{"name": c.key, "path": str(c.path), "bytes": c.bytes, "in_use": c.in_use} for c in found]
        console.json_result(rows)
    elif not found:
        console.result("nothing is compiled yet; `llmhost setup --warm` does it ahead of the first start")
    else:
        console.table(
            ("cache", "size", ""), [(c.key, f"{c.bytes / 2**20:.0f} MiB", "in use" if c.in_use else "") for c in found]
        )


@cache_group.command("clear")
@click.argument("names", nargs=-1, metavar="[CACHE]...")
@click.pass_obj
def clear_caches_command(session: Session, names: tuple[str, ...]) -> None:
    """Delete caches (default: all that no running engine uses), and the links in engines to kernels in them."""
    from llmhost.engines import clear_caches

    gone = clear_caches(session.home, names)
    console.result(f"cleared: {', '.join(c.key for c in gone)}" if gone else "there was nothing to clear")


def _waiting(session: Session, progress: Progress) -> Wait:
    from llmhost import readiness

    def on_change(state: ProgramState) -> None:
        progress.note(f"{state.name}: {state.state}")

    def wait(started: Started) -> None:
        readiness.await_ready(session.home, started.plan, started.programs, None, on_change)

    return wait
