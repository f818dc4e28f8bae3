"""`llmhost check`: does every service do what it is for?"""

from __future__ import annotations

import os
import ssl

import click

from llmhost.cli import Session, console
from llmhost.cli.completion import complete_services


@click.command("check")
@click.argument("services", nargs=-1, shell_complete=complete_services)
@click.option(
    "--json", "as_json", is_flag=True, help='{"ok", "checks": [{"service", "check", "ok", "seconds", "detail"}]}'
)
@click.option("--url", metavar="URL", help="Ask this gateway instead of the home's own, e.g. http://10.0.0.2:8000.")
@click.pass_obj
def check_command(session: Session, services: tuple[str, ...], as_json: bool, url: str | None) -> None:
    """Ask SERVICES (default: all that were not stopped) through the gateway, as a client would.

    chat: a plain answer, a streamed one and, where a tool-call parser is on, a tool call with the right argument.
    embed: finite vectors of unit length, a paraphrase nearer than a stranger. rerank: the right document first.

    An API key is read from $LLMHOST_API_KEY.
    """
    from llmhost.check import CheckResult, run_checks
    from llmhost.errors import CheckError, NotReadyError
    from llmhost.in_force import load_plan, select_services
    from llmhost.probe.certificate import trusting
    from llmhost.stopped import read_stopped

    if url is not None and not url.startswith(("http://", "https://")):
        raise click.BadParameter("use an address such as http://127.0.0.1:8000", param_hint="--url")
    plan = load_plan(session.home)
    if not plan.services:
        raise CheckError("there is no service to check", "write some into llmhost.yaml and run `llmhost up`")
    chosen = select_services(plan, services)
    stopped = read_stopped(session.home).services if not services and url is None else frozenset[str]()
    for name in sorted(stopped & {s.name for s in chosen}):
        console.remark(f"{name} was stopped, so it is not asked (`llmhost start {name}`)")
    for helper in (s.name for s in chosen if not s.routed and s.name in services):
        console.remark(f"{helper} is a helper without a kind, so there is nothing to ask it")
    chosen = tuple(s for s in chosen if s.name not in stopped and s.routed)
    if not chosen and not any(s.routed for s in select_services(plan, services)):
        raise CheckError("there is no service to ask", "helpers, which have no kind, are asked by their guards only")
    if not chosen:
        raise NotReadyError("every service was stopped", "run `llmhost start`")
    results: list[CheckResult] = []
    key = os.environ.get("LLMHOST_API_KEY")
    verify: ssl.SSLContext | bool = True
    if url is None and plan.gateway.tls is not None:
        # Our own gateway, reached by its address: it is known by its certificate.
        verify = trusting(plan.gateway.tls.certificate)
    for found in run_checks(url or plan.gateway.url, chosen, key, verify):
        results.append(found)
        if not as_json:
            mark = click.style("ok  ", fg="green") if found.ok else click.style("FAIL", fg="red")
            console.result(f"{mark} {found.service:16} {found.check:8} {found.seconds:6.2f} s  {found.detail}")
    failed = [r for r in results if not r.ok]
    if as_json:
        console.json_result({"ok": not failed, "checks": [r.to_dict() for r in results]})
    if failed:
        names = ", ".join(dict.fromkeys(r.service for r in failed))
        raise CheckError(
            f"{len(failed)} of {len(results)} checks failed ({names})",
            f"see `llmhost status` and `llmhost logs {failed[0].service}`",
        )
