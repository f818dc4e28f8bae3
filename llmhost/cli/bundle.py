"""`llmhost bundle`: for machines without a network."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llmhost.cli import Session, console

if TYPE_CHECKING:
    from llmhost.bundle.create import Part
    from llmhost.config import Config
    from llmhost.facts import MachineFacts

SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?", re.IGNORECASE)
PARTS: tuple[Part, ...] = ("llmhost", "engine", "flash-attn", "models", "caches")
SMALLEST = 1_000_000


class Size(click.ParamType[int]):
    """``60M``, ``2G``, ``500MiB``."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        found = SIZE.fullmatch(str(value).strip())
        if not found:
            self.fail(f"{value!r} is no size; write 60M or 2G", param, ctx)
        base = 1024 if found[3] else 1000
        size = int(float(found[1]) * base ** " KMGT".index(found[2].upper() or " "))
        if size < SMALLEST:
            self.fail(f"{value} is too small; pieces have at least 1M", param, ctx)
        return size


@click.group("bundle")
def bundle_command() -> None:
    """Bring llmhost, its engine and models to a machine without a network.

    \b
      here:   llmhost bundle probe > probe.py
      there:  python3 probe.py > facts.json          (with llmhost: llmhost facts --json > facts.json)
      here:   llmhost bundle create --target facts.json --config llmhost.yaml -o bundle --split 60M
      there:  sh bundle/install.sh                   installs llmhost, then everything else
              llmhost up

    install.sh needs nothing but the Python that the facts name. Pieces may come one after another, in any order:
    `llmhost bundle verify DIR` (or install.sh --verify) says which are there and right.
    """


@bundle_command.command("create")
@click.option("--target", type=click.Path(path_type=Path), help="Facts of the other machine; default: one like this.")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="The directory to be made.")
@click.option(
    "--config", "config_file", type=click.Path(path_type=Path), help="The llmhost.yaml for the other machine."
)
@click.option(
    "--split", type=Size(), metavar="SIZE", help="Compress, and cut into pieces of at most so much (60M, 2G)."
)
@click.option("--only", type=click.Choice(PARTS), multiple=True, help="This part only; may be given several times.")
@click.option("--with-models/--no-models", default=True, help="Models of its services that it lacks.  [default: with]")
@click.option("--slim", is_flag=True, help="Without what its GPUs cannot use, and a few rarely used packages.")
@click.option("--level", type=click.IntRange(0, 9), default=9, show_default=True, help="How hard to compress (xz).")
@click.option("--json", "as_json", is_flag=True, help="The manifest, as JSON.")
@click.pass_obj
def create_command(
    session: Session,
    target: Path | None,
    output: Path,
    config_file: Path | None,
    split: int | None,
    only: tuple[Part, ...],
    with_models: bool,
    slim: bool,
    level: int,
    as_json: bool,
) -> None:
    """Make a directory with everything that a machine lacks.

    In it: llmhost and what it needs, uv, the engine's wheels for that machine's Python, platform and CUDA, models that
    its llmhost.yaml names (they must be here: `llmhost pull`), kept flash-attention wheels, compile caches for the
    same vLLM and sort of GPU; the demo models are part of llmhost. With `system_site_packages: true` in its
    llmhost.yaml, packages that its Python has already (torch …) stay out. --slim also leaves out what `llmhost bundle
    show` lists as left out, each with the reason.

    Packages come from where pip and uv are configured to take them from.
    """
    from llmhost.bundle import Wish, create_bundle
    from llmhost.cli.progress import shown_progress

    facts = _facts(session, target)
    config, file = _config(session, config_file)
    parts = only or tuple(p for p in PARTS if with_models or p != "models")
    wish = Wish(output.absolute(), parts, split, slim, level)
    with shown_progress() as progress:
        manifest = create_bundle(session.home, facts, config, file, wish, progress)
    if as_json:
        console.json_result(manifest)
        return
    _show(manifest)
    console.result(f"\n{output}: copy it to that machine, then there: sh {output.name}/install.sh")


def _facts(session: Session, target: Path | None) -> MachineFacts:
    from llmhost.errors import FactsError
    from llmhost.machine import machine_facts
    from llmhost.probe.facts_file import facts_from_json

    if target is None:
        return machine_facts(session.home, console.remark)
    try:
        return facts_from_json(target.read_text(encoding="utf-8"), str(target))
    except (OSError, UnicodeDecodeError) as e:
        raise FactsError(f"cannot read {target}: {e}", "make it there: `llmhost facts --json > facts.json`") from e


def _config(session: Session, file: Path | None) -> tuple[Config, Path | None]:
    """The llmhost.yaml for the other machine: the one that is named, else this home's, else the default."""
    from llmhost import config as configuration

    found = file or (session.home.config_file if session.home.config_file.exists() else None)
    return (configuration.load(found), found) if found else (configuration.Config(), None)


@bundle_command.command("probe")
def probe_command() -> None:
    """Print a program that takes the facts of a machine that has no llmhost yet.

    \b
      here:   llmhost bundle probe > probe.py
      there:  python3 probe.py > facts.json      with the Python that llmhost and the engine are to run on

    It needs nothing but that Python.
    """
    from llmhost.bundle.bare_facts import __file__ as file

    console.result(Path(file).read_text(encoding="utf-8").rstrip())


@bundle_command.command("show")
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="The manifest, as JSON.")
def show_command(directory: Path, as_json: bool) -> None:
    """Show for which machine the bundle in DIRECTORY is, and what is in it."""
    from llmhost.bundle import read_bundle

    manifest = read_bundle(directory)
    if as_json:
        console.json_result(manifest)
    else:
        _show(manifest)


def _show(manifest: dict[str, Any]) -> None:
    target, engine = manifest["for"], manifest["engine"]
    gpus = ", ".join(target["gpus"]) or "no GPU"
    console.result(f"made       {manifest['created']} by llmhost {manifest['llmhost']}")
    console.result(f"for        {target['system']}, {target['machine']}, Python {target['python']}, {gpus}")
    if engine:
        there = f", on {len(engine['there'])} packages that are there" if engine["there"] else ""
        console.result(f"engine     vLLM {engine['vllm']} ({engine['device']}, Python {engine['python']}){there}")
    sizes: dict[str, list[int]] = {}
    for entry in manifest["files"]:
        sizes.setdefault(entry["kind"], []).append(entry["size"])
    for kind, found in sizes.items():
        console.result(f"{kind:10} {len(found)} files, {sum(found) / 1e6:.1f} MB")
    for name in sorted({"/".join(e["path"].split("/")[1:3]) for e in manifest["files"] if e["kind"] == "model"}):
        console.result(f"           {name}")
    for lost in manifest["left_out"]:
        console.result(f"left out   {lost['package']}: {lost['reason']}")
    for entry in manifest["files"]:
        for reason in entry.get("stripped", ()):
            console.result(f"left out   files of {entry['path'].split('/')[-1].split('-')[0]}: {reason}")
    for piece in manifest["pieces"]:
        console.result(f"piece      {piece['name']}  {piece['size'] / 1e6:.1f} MB")


@bundle_command.command("verify")
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help='As JSON: [{name, size, problem}]; problem is "" when right.')
def verify_command(directory: Path, as_json: bool) -> int:
    """Say which pieces of the bundle in DIRECTORY are there and right; exit status 1 unless all are."""
    from llmhost.bundle import check_bundle

    checked = check_bundle(directory)
    wrong = [c for c in checked if c.problem]
    if as_json:
        console.json_result([vars(c) for c in checked])
        return 1 if wrong else 0
    for item in checked if len(checked) <= 100 else wrong:
        console.result(f"{item.name}: {item.problem or 'right'}")
    if wrong:
        console.result(f"copy again: {' '.join(c.name for c in wrong)}")
    else:
        console.result("everything is there and right")
    return 1 if wrong else 0


@bundle_command.command("install")
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="What was installed, as JSON.")
@click.pass_obj
def install_command(session: Session, directory: Path, as_json: bool) -> None:
    """Bring everything of the bundle in DIRECTORY into the home, without a network.

    Everything is checked against its SHA-256 first. Then: wheels into $LLMHOST_HOME/wheels, models into models_dir,
    caches, llmhost.yaml (unless there is one), and the engine built from the wheels. What is there already with the
    same content stays; engine.lock changes when the engine counts. An interrupted install goes on with the same
    command.
    """
    from llmhost.bundle import install_bundle
    from llmhost.cli.progress import shown_progress

    with shown_progress() as progress:
        done = install_bundle(session.home, directory.absolute(), progress)
    if as_json:
        engine = {"name": done.engine.name, "vllm": done.engine.vllm_version} if done.engine else None
        console.json_result({**vars(done), "models": list(done.models), "engine": engine})
        return
    models = f", models {', '.join(done.models)}" if done.models else ""
    vllm = f", engine {done.engine.name} with vLLM {done.engine.vllm_version}" if done.engine else ""
    console.result(f"installed into {session.home.root}: {done.wheels} wheels{models}{vllm}")
    console.result("serve with `llmhost up`" if done.config else "serve with `llmhost up` (or `llmhost up --demo`)")
