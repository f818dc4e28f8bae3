"""`llmhost pull`, `llmhost models` and `llmhost login`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from llmhost.cli import Session, console
from llmhost.cli.completion import complete_services

if TYPE_CHECKING:
    from llmhost.hub.store import StoredModel

GIB = 2**30


@click.command("pull")
@click.argument("models", nargs=-1, metavar="[SERVICE|MODEL]...", shell_complete=complete_services)
@click.option("--all", "everything", is_flag=True, help="All files of the repository, not only what vLLM needs.")
@click.option("--upgrade", is_flag=True, help="The newest revision instead of the one in llmhost.lock.")
@click.option("--json", "as_json", is_flag=True, help="As JSON: [{model, path, revision, files, bytes, fetched}].")
@click.pass_obj
def pull_command(session: Session, models: tuple[str, ...], everything: bool, upgrade: bool, as_json: bool) -> None:
    """Fetch models: of SERVICEs of llmhost.yaml (default: all), or by name.

    \b
      llmhost pull                              whatever llmhost.yaml names
      llmhost pull hf:Qwen/Qwen3-8B             from Hugging Face
      llmhost pull modelscope:Qwen/Qwen3-8B@v1  from ModelScope, a certain revision

    An interrupted pull goes on at the byte where it stopped. Every file is checked against the hub's own digest. The
    revision is pinned in llmhost.lock, so the same model comes again elsewhere. HF_ENDPOINT, MODELSCOPE_DOMAIN,
    HF_TOKEN, MODELSCOPE_API_TOKEN and HTTPS_PROXY are honoured; `llmhost login` keeps a token.
    """
    from llmhost.cli.progress import shown_progress
    from llmhost.hub.select import lacking
    from llmhost.models import pull_models

    with shown_progress() as progress:
        done = pull_models(session.home, models, progress, everything=everything, upgrade=upgrade)
    if as_json:
        console.json_result([_pulled(text, pulled) for text, pulled in done])
        return
    for text, pulled in done:
        if pulled is None:
            console.result(f"{text}: a directory, nothing to fetch")
        else:
            news = f"{pulled.fetched / GIB:.2f} GiB fetched" if pulled.fetched else "was here already"
            console.result(f"{text}: {pulled.directory}, revision {pulled.revision[:12]}, {news}")
            if missing := lacking(pulled.files):
                console.remark(f"{text}: {missing} that vLLM could load; --all takes other forms (GGUF, ONNX), too")


def _pulled(text: str, pulled: Any) -> dict[str, Any]:
    if pulled is None:
        return {"model": text}
    return {
        "model": text,
        "path": str(pulled.directory),
        "revision": pulled.revision,
        "files": len(pulled.files),
        "bytes": sum(f.size for f in pulled.files),
        "fetched": pulled.fetched,
    }


@click.group("models")
def models_command() -> None:
    """List, verify and remove the models that are here."""


@models_command.command("list")
@click.option("--json", "as_json", is_flag=True, help="As JSON; sizes in bytes.")
@click.pass_obj
def list_command(session: Session, as_json: bool) -> None:
    """Show the models below models_dir: size, kind, where they came from, who uses them."""
    from llmhost.models import stored_models

    found = stored_models(session.home)
    if as_json:
        console.json_result([_stored(model) for model in found])
        return
    console.table(("MODEL", "SIZE", "KIND", "SOURCE", "REVISION", "USED BY"), map(_row, found))


def _stored(model: StoredModel) -> dict[str, Any]:
    return {**vars(model), "directory": str(model.directory), "used_by": list(model.used_by)}


def _row(model: StoredModel) -> tuple[str, ...]:
    source = model.source.partition(":")[0] or "-"
    users = ", ".join(model.used_by) or "-"
    return (model.name, f"{model.size / GIB:.2f} GiB", model.kind, source, model.revision[:12] or "-", users)


@models_command.command("verify")
@click.argument("models", nargs=-1, metavar="[MODEL]...")
@click.option("--json", "as_json", is_flag=True, help='As JSON: {"owner/name": [{path, problem}]}.')
@click.pass_obj
def verify_command(session: Session, models: tuple[str, ...], as_json: bool) -> int:
    """Read every file of MODELs (default: all that were pulled) and compare it with the hub's digests.

    Exit status 1 when something is wrong; the next `llmhost pull` (or `up`) of the model fetches those files again.
    """
    from llmhost.models import find_stored, stored_models, verify_model

    chosen = [find_stored(session.home, m) for m in models] or [m for m in stored_models(session.home) if m.source]
    problems = {model.name: verify_model(model) for model in chosen}
    if as_json:
        console.json_result({name: [vars(p) for p in found] for name, found in problems.items()})
    for name, found in problems.items() if not as_json else ():
        console.result(f"{name}: {'all files are right' if not found else f'{len(found)} files are wrong'}")
        for problem in found:
            console.result(f"  {problem.path}: {problem.problem}")
    broken = [model.source for model in chosen if problems[model.name]]
    if broken:
        console.remark(f"fetch them again: `llmhost pull {' '.join(broken)}`; what is right does not come again")
    return 1 if any(problems.values()) else 0


@models_command.command("remove")
@click.argument("models", nargs=-1, required=True, metavar="MODEL...")
@click.option("--force", is_flag=True, help="Even if a service uses it.")
@click.pass_obj
def remove_command(session: Session, models: tuple[str, ...], force: bool) -> None:
    """Delete MODELs (owner/name) from models_dir; one that a service uses is refused."""
    from llmhost.models import find_stored, remove_model

    for found in [find_stored(session.home, name) for name in models]:
        remove_model(found, force=force)
        console.result(f"removed {found.name} ({found.size / GIB:.2f} GiB)")


@models_command.command("prune")
@click.option("--yes", is_flag=True, help="Delete without asking.")
@click.pass_obj
def prune_command(session: Session, yes: bool) -> None:
    """Delete what no service uses: pulled models and what interrupted pulls have left.

    Models that somebody put there by hand stay.
    """
    from llmhost.models import remove_model, unused_models

    found = unused_models(session.home)
    for model in found:
        console.result(f"{model.name}  {model.size / GIB:.2f} GiB  {model.kind}")
    if not found:
        console.result("nothing to delete")
        return
    if not yes and not click.confirm(f"delete {sum(m.size for m in found) / GIB:.2f} GiB?", err=True):
        console.remark("nothing was deleted")
        return
    for model in found:
        remove_model(model)
    console.result(f"deleted {len(found)}")


@click.command("login")
@click.argument("hub", type=click.Choice(["hf", "modelscope"]))
@click.option("--token-stdin", is_flag=True, help="Read the token from standard input, as without a terminal.")
@click.option("--forget", is_flag=True, help="Forget the token that is kept.")
@click.option("--no-check", is_flag=True, help="Do not ask the hub whether the token is good.")
@click.pass_obj
def login_command(session: Session, hub: str, token_stdin: bool, forget: bool, no_check: bool) -> None:
    """Keep a token for gated and private models of HUB, in the home, for nobody else to read.

    HF_TOKEN and MODELSCOPE_API_TOKEN in the environment go before it. The token never gets into a log, a command line
    or a file of the services.
    """
    from llmhost.errors import HubError
    from llmhost.homedir import claim
    from llmhost.hub.access import check_token, write_token

    claim(session.home)
    if forget:
        write_token(session.home, hub, None)
        console.result(f"the token for {hub} is forgotten")
        return
    piped = token_stdin or not sys.stdin.isatty()
    token = sys.stdin.readline().strip() if piped else click.prompt("token", hide_input=True, err=True).strip()
    if not token or not token.isprintable():
        raise HubError("that is no token", "make one in the settings of your account on the hub")
    owner = "" if no_check else f" of {check_token(hub, token)}"
    write_token(session.home, hub, token)
    console.result(f"the token{owner} for {hub} is kept")
