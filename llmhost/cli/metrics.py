"""`llmhost metrics`: the page that the gateway has at /metrics, and what Prometheus and Grafana need for it."""

from __future__ import annotations

import json

import click

from llmhost.cli import Session, console

EPILOG = """\b
Into prometheus.yml:
  rule_files: [/etc/prometheus/llmhost.rules.yaml]
  scrape_configs:
    - job_name: llmhost
      file_sd_configs: [{files: [/etc/prometheus/llmhost.json]}]

\b
and once for each machine:
  llmhost metrics targets -o /etc/prometheus/llmhost.json
  llmhost metrics rules -o /etc/prometheus/llmhost.rules.yaml
  llmhost metrics dashboard -o llmhost.json      (import it in Grafana)
"""


@click.group("metrics", epilog=EPILOG)
def metrics_command() -> None:
    """Show the metrics, or write what Prometheus and Grafana need to watch them.

    The gateway serves them at /metrics: its own, those of every engine, the states of the guards, the machine and its
    GPUs. docs/monitoring.md lists them.
    """


_output = click.option(
    "-o", "--output", type=click.Path(dir_okay=False), metavar="FILE", help="Write it there instead of printing it."
)


@metrics_command.command("show")
@click.argument("name", required=False)
@click.pass_obj
def show(session: Session, name: str | None) -> None:
    """Print the metrics as Prometheus gets them; with NAME only those whose name begins with it.

    \b
    llmhost metrics show vllm:num_requests
    llmhost metrics show llmhost_replica_state
    """
    from llmhost.metrics.scraping import read_page

    lines = read_page(session.home).splitlines()
    console.result("\n".join(line for line in lines if name is None or line.startswith(name)))


@metrics_command.command("targets")
@click.option("--host", metavar="NAME", help="Name or address under which Prometheus reaches this machine.")
@_output
@click.pass_obj
def targets_command(session: Session, host: str | None, output: str | None) -> None:
    """The gateway as a target for Prometheus' file discovery (file_sd_configs).

    It holds one address, so it changes with the gateway's only; services and replicas are labels of the metrics.
    """
    from llmhost.in_force import load_plan
    from llmhost.metrics.scraping import targets

    _give(json.dumps(targets(load_plan(session.home), host), ensure_ascii=False, indent=2) + "\n", output)


@metrics_command.command("rules")
@_output
def rules_command(output: str | None) -> None:
    """Alert rules for Prometheus (rule_files)."""
    from llmhost.metrics.scraping import rules

    _give(rules(), output)


@metrics_command.command("dashboard")
@_output
def dashboard_command(output: str | None) -> None:
    """A dashboard for Grafana, as JSON; import it and choose the Prometheus that scrapes llmhost."""
    from llmhost.metrics.scraping import dashboard

    _give(dashboard(), output)


def _give(text: str, output: str | None) -> None:
    if output is None:
        console.result(text.rstrip("\n"))
        return
    from pathlib import Path

    from llmhost.errors import LlmhostError
    from llmhost.writer import replace_file

    path = Path(output).absolute()
    if not path.parent.is_dir():
        raise LlmhostError(f"{path.parent} is not a directory", "make it first, or give another file with -o")
    try:
        # Prometheus and Grafana run as users of their own.
        replace_file(path, text, 0o644)
    except OSError as e:
        raise LlmhostError(f"cannot write {path}: {e.strerror}", "give another file with -o") from e
    console.result(f"wrote {path}")
