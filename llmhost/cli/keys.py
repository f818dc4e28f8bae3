"""`llmhost keys`: who may use the gateway."""

from __future__ import annotations

import math
import re
import time
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from llmhost.cli import Session, console

if TYPE_CHECKING:
    from llmhost.keys import ApiKey, Keys

COLUMNS = ("NAME", "STATE", "SERVICES", "PER MINUTE", "AT ONCE", "BODY", "CREATED", "EXPIRES")
UNITS = {"m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


def _duration(_: click.Context, __: click.Parameter, value: str | None) -> int | None:
    """``30m``, ``12h``, ``90d``, ``2w``: seconds."""
    if value is None:
        return None
    found = re.fullmatch(r"([1-9][0-9]{0,5})([mhdw])", value)
    if found is None:
        raise click.BadParameter(f"{value!r} is not a duration; write 30m, 12h, 90d or 2w")
    return int(found[1]) * UNITS[found[2]]


def _number(_: click.Context, __: click.Parameter, value: float | None) -> float | None:
    if value is not None and math.isnan(value):  # which is in every range
        raise click.BadParameter("nan is not a number")
    return value


@click.group("keys")
def keys_command() -> None:
    """API keys: who may use the gateway, which services, and how much.

    As soon as there is one key, every request needs one (only /health stays open), as `Authorization: Bearer KEY` or
    `x-api-key: KEY`. Changes act on the running gateway within two seconds; no connection is closed for them.
    """


@keys_command.command("add")
@click.argument("name")
@click.option("--services", metavar="A,B", help="The services that it may use.  [default: all, also those to come]")
@click.option(
    "--expires", callback=_duration, metavar="90d", help="How long it is good: 30m, 12h, 90d, 2w.  [default: for ever]"
)
@click.option("--requests-per-minute", type=click.IntRange(1, 1_000_000), help="More are answered with 429.")
@click.option(
    "--concurrent-requests",
    type=click.IntRange(1, 1_000_000),
    help="So many may be with engines at once, streams until their last byte; more are answered with 429.",
)
@click.option(
    "--max-body-mib",
    type=click.FloatRange(0, 1024, min_open=True),
    callback=_number,
    metavar="MIB",
    help="A larger request is answered with 413.",
)
@click.option("--json", "as_json", is_flag=True, help='{"name", "key", "services", "expires"}')
@click.pass_obj
def add(
    session: Session,
    name: str,
    services: str | None,
    expires: int | None,
    requests_per_minute: int | None,
    concurrent_requests: int | None,
    max_body_mib: float | None,
    as_json: bool,
) -> None:
    """Make a key called NAME and print it. It is shown this once: llmhost keeps only a hash of it.

    It lasts until it is revoked, unless --expires is given; then the gateway refuses it by itself from that moment on.
    Limits that are not given are those of `gateway: {limits: …}` in llmhost.yaml.

    \b
    export LLMHOST_API_KEY=$(llmhost keys add me)
    llmhost keys add team-a --services chat,embedding --expires 90d --requests-per-minute 600
    """
    from llmhost import deploy, homedir, keys

    homedir.claim(session.home)
    scope = _known_services(session, services)
    now = int(time.time())
    text = deploy.change_keys(
        session.home,
        lambda old: keys.add(
            old, name, now, services=scope, expires=None if expires is None else now + expires,
            requests_per_minute=requests_per_minute, concurrent_requests=concurrent_requests,
            max_body_mib=max_body_mib,
        ),
    )  # fmt: skip
    _show_new(session, name, text, as_json)


@keys_command.command("rotate")
@click.argument("name")
@click.option("--grace", callback=_duration, metavar="24h", help="The old key works for so long, too.")
@click.option(
    "--expires", callback=_duration, metavar="90d", help="How long the new one lasts; by default as the old one."
)
@click.option("--json", "as_json", is_flag=True, help='{"name", "key", "services", "expires"}')
@click.pass_obj
def rotate(session: Session, name: str, grace: int | None, expires: int | None, as_json: bool) -> None:
    """Replace the key NAME by a new one with the same rights, and print it. Without --grace the old one ends now."""
    from llmhost import deploy, keys

    now = int(time.time())
    until = None if expires is None else now + expires
    text = deploy.change_keys(session.home, lambda old: keys.rotate(old, name, now, grace=grace or 0, expires=until))
    _show_new(session, name, text, as_json)
    _tell_other_nodes(session, "other nodes accept the old key, and not the new one, until `llmhost node sync`")


@keys_command.command("revoke")
@click.argument("name")
@click.pass_obj
def revoke(session: Session, name: str) -> None:
    """End the key NAME at once. Answers that are already on their way are finished.

    Without any key left the gateway refuses everybody; `llmhost keys reset` opens it again.
    """
    from llmhost import deploy, keys

    now = int(time.time())

    def edit(old: Keys) -> tuple[Keys, bool]:
        new = keys.revoke(old, name, now)
        return new, any(k.state(now) == "active" for k in new)

    left = deploy.change_keys(session.home, edit)
    deploy.await_keys(session.home)
    console.result(f"revoked {name}")
    _tell_other_nodes(session, f"other nodes still accept {name} until `llmhost node sync`")
    if not left:
        console.remark("no key is left: every request is refused now, until `llmhost keys add` or `llmhost keys reset`")


@keys_command.command("list")
@click.option("--json", "as_json", is_flag=True, help="As JSON; times in seconds since 1970.")
@click.pass_obj
def list_keys(session: Session, as_json: bool) -> None:
    """List the keys with what they may use; the keys themselves are not kept."""
    from llmhost import keys

    found = keys.load(session.home.keys_file)
    now = time.time()
    if as_json:
        console.json_result([_as_json(k, now) for k in found])
    elif not found:
        console.remark("no keys: whoever can reach the gateway can use it")
    else:
        console.table(COLUMNS, [_row(k, now) for k in found])


@keys_command.command("reset")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.pass_obj
def reset(session: Session, yes: bool) -> None:
    """Forget every key: the gateway serves everybody who can reach it. Refused unless only this machine can."""
    from llmhost import deploy, writer
    from llmhost.errors import KeyFileError
    from llmhost.keys import dump, load

    if not yes:
        click.confirm("Forget every key, and serve everybody on this machine without one?", abort=True, err=True)
    try:
        load(session.home.keys_file)
    except KeyFileError:
        writer.replace_file(session.home.keys_file, dump(()))
    deploy.change_keys(session.home, lambda _: ((), None))
    deploy.await_keys(session.home)
    console.result("there are no keys any more")
    _tell_other_nodes(session, "other nodes still ask for the keys that they have until `llmhost node sync`")


def _tell_other_nodes(session: Session, text: str) -> None:
    """In a home with nodes: a change acts on this gateway only, so far."""
    from llmhost import config
    from llmhost.errors import LlmhostError

    try:
        alone = not config.load(session.home.config_file).nodes
    except LlmhostError:  # the keys are changed, whatever is wrong there; a home that was a node has the file
        alone = not session.home.node_file.exists()
    if not alone:
        console.remark(text)


def _known_services(session: Session, text: str | None) -> list[str] | None:
    from llmhost import config
    from llmhost.errors import ConfigError

    if text is None:
        return None
    asked = [name.strip() for name in text.split(",") if name.strip()]
    known = list(config.load(session.home.config_file).services)
    unknown = [name for name in asked if name not in known]
    if unknown or not asked:
        raise ConfigError(
            f"there is no service {', '.join(unknown) or repr(text)}", f"llmhost.yaml has: {', '.join(known) or 'none'}"
        )
    return asked


def _show_new(session: Session, name: str, text: str, as_json: bool) -> None:
    """Print a key when it is good for something; it is stored already, so it is shown whatever the gateway does."""
    from llmhost import deploy

    try:
        deploy.await_keys(session.home)
    finally:
        _show(session, name, text, as_json)


def _show(session: Session, name: str, text: str, as_json: bool) -> None:
    from llmhost import keys

    made = max((k for k in keys.load(session.home.keys_file) if k.name == name), key=lambda k: k.number)
    if as_json:
        console.json_result({"name": name, "key": text, "services": made.services, "expires": made.expires})
        return
    console.result(text)
    console.remark(
        f"this is the key {name}; it is not shown again. Good for {_scope(made)}, expires {_date(made.expires)}"
    )


def _as_json(key: ApiKey, now: float) -> dict[str, Any]:
    return {
        "name": key.name, "state": key.state(now), "services": key.services, "created": key.created,
        "expires": key.expires, "revoked": key.revoked, "requests_per_minute": key.requests_per_minute,
        "concurrent_requests": key.concurrent_requests, "max_body_mib": key.max_body_mib,
    }  # fmt: skip


def _row(key: ApiKey, now: float) -> tuple[str, ...]:
    body = "-" if key.max_body_mib is None else f"{key.max_body_mib:g} MiB"
    limits = (str(key.requests_per_minute or "-"), str(key.concurrent_requests or "-"), body)
    return key.name, key.state(now), _scope(key), *limits, _date(key.created), _date(key.expires)


def _scope(key: ApiKey) -> str:
    return "all services" if key.services is None else ", ".join(key.services)


def _date(seconds: int | None) -> str:
    return "never" if seconds is None else datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M")
