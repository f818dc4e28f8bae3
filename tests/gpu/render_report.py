"""docs/gpu.md and the table of docs/planning.md from the results of report.py. Standard library only."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import shapes

ORDER = ("install", "flash-attn", "cold", "warm", "carried", "long", "check", "spanning", "parallel")
BEGIN, END = "<!-- measured: tests/gpu/report.py write -->", "<!-- end of measured -->"
MANY = 3
"""Lines of doctor's that are shown."""
WAYS = {
    "mp": "tensor parallel 2 | vLLM",
    "ray": "tensor parallel 2 | Ray",
    "two nodes mp": "pipeline parallel 2 on two nodes | vLLM",
    "two nodes ray": "pipeline parallel 2 on two nodes | Ray",
    "two nodes tensor": "tensor parallel 2 on two nodes | vLLM",
}
TITLES = {"chat": "chat", "embed": "embedding", "rerank": "rerank"}


def read_results(out: Path) -> dict[str, dict[str, Any]]:
    """The results that are there, in the order of the steps."""
    files = ((step, out / f"{step}.json") for step in ORDER)
    return {step: json.loads(file.read_text()) for step, file in files if file.is_file()}


def write(out: Path, docs: Path) -> list[Path]:
    """Write gpu.md, and the table into planning.md where its marks are; the files that were written."""
    results = read_results(out)
    page = docs / "gpu.md"
    remarks = out / "remarks.md"
    page.write_text(render(results, remarks.read_text("utf-8") if remarks.is_file() else ""), encoding="utf-8")
    written = [page]
    planning = docs / "planning.md"
    table = "\n".join(memory_table(results))
    if table and planning.is_file() and BEGIN in (text := planning.read_text(encoding="utf-8")):
        head, rest = text.split(BEGIN, 1)
        planning.write_text(f"{head}{BEGIN}\n{table}\n{END}{rest.split(END, 1)[1]}", encoding="utf-8")
        written.append(planning)
    return written


def render(results: dict[str, dict[str, Any]], remarks: str = "") -> str:
    """The page; a step that was not done or failed says so. ``remarks`` are those of the person who ran it."""
    lines = ["# On a GPU host", "", "Written by `tests/gpu/report.py write` from what its steps measured.", ""]
    if any(entry.get("cpu") for entry in results.values()):
        lines += ["**A rehearsal without a GPU, with models as small as can be: no figure here says anything.**", ""]
    lines += [*_host(results), ""]
    for title, part in (
        ("Installed from a bundle", _install), ("flash-attention", _flash), ("Start times", _starts),
        ("Memory: planned and measured", _memory), ("Answers through the gateway", _answers),
        ("The demo models, and doctor", _check), ("One model on two GPUs", _spanning),
    ):  # fmt: skip
        lines += [f"## {title}", "", *part(results), ""]
    lines += ["## Steps", "", *_steps(results), ""]
    if remarks:
        lines += ["## Remarks", "", remarks.strip(), ""]
    return "\n".join(lines)


def _host(results: dict[str, dict[str, Any]]) -> Iterator[str]:
    facts = next((entry["facts"] for entry in results.values() if entry.get("facts")), None)
    if facts is None:
        yield "No step has looked at the host yet."
        return
    gpus = ", ".join(f"{g['name']} ({g['total'] / 2**20:,.0f} MiB)" for g in facts["gpus"]) or "no GPU"
    host = facts["host"]
    yield (
        f"{gpus}; driver {facts['driver'].get('version') or 'none'}; {len(host['cores'])} cores,"
        f" {host['memory_total'] / 2**30:.0f} GiB of memory; {facts['system']}, Linux {facts['kernel']}."
    )
    engine = next((entry["engine"] for entry in results.values() if entry.get("engine")), None)
    if engine:
        yield f"vLLM {engine['vllm_version']} on {engine['device']}."


def _install(results: dict[str, dict[str, Any]]) -> Iterator[str]:
    entry = results.get("install", {})
    if "bundle" not in entry:
        yield _missing(entry)
        return
    size = entry["bundle"]
    yield (
        f"`sh install.sh` from {size['files']} files ({size['bytes'] / 1e6:.0f} MB), without a network: llmhost, the"
        f" engine and everything else in {entry['seconds']:.0f} s."
    )


def _flash(results: dict[str, dict[str, Any]]) -> Iterator[str]:
    entry = results.get("flash-attn", {})
    steps = (entry.get("setup") or {}).get("steps", ())
    done = next((step for step in steps if step["name"] == "flash-attn"), None)
    if done is None:
        yield _missing(entry)
        return
    yield f"`llmhost setup --flash-attn`, {entry['seconds'] / 60:.1f} min: {done['detail']}."
    yield ""
    yield from ("    " + line for line in entry["plan"])


def _starts(results: dict[str, dict[str, Any]]) -> Iterator[str]:
    there = {step: results[step] for step in ("cold", "warm", "carried") if results.get(step, {}).get("services")}
    if not there:
        yield _missing(results.get("cold", {}))
        return
    yield "Seconds from `llmhost up SERVICE` to ready, one service after another, all on one GPU. cold: empty caches;"
    yield "warm: the same again; carried: caches cleared, and brought back by `llmhost bundle create --only caches`."
    yield ""
    yield from _table("model", *there)
    for name in TITLES:
        found = (entry["services"].get(name, {}).get("seconds") for entry in there.values())
        yield f"| {shapes.NAMES[name]} | {' | '.join('–' if s is None else f'{s:.0f}' for s in found)} |"


def _memory(results: dict[str, dict[str, Any]]) -> Iterator[str]:
    table = memory_table(results)
    yield from table or ["Not measured."]


def memory_table(results: dict[str, dict[str, Any]]) -> list[str]:
    """Planned against measured, for each service and context length that was measured."""
    rows = []
    for step in ("cold", "warm", "carried", "long"):
        entry = results.get(step, {})
        for name, service in entry.get("services", {}).items():
            planned, measured = service.get("planned_mib"), service.get("measured_mib")
            if planned and measured:
                off = f"{(planned - measured) / measured:+.1%}"
                context = entry["contexts"][name]
                size = f"{measured:,} MiB"
                cells = (step, shapes.NAMES[name], TITLES[name], f"{context:,}", size, f"{planned:,} MiB", off)
                rows.append(f"| {' | '.join(cells)} |")
    if not rows:
        return []
    return [*_table("start", "model", "kind", "context", "measured", "planned", "off by"), *rows]


def _answers(results: dict[str, dict[str, Any]]) -> Iterator[str]:
    there = {step: entry["answers"] for step, entry in results.items() if entry.get("answers")}
    if not there:
        yield "None were asked for."
        return
    yield "The models have no weights, so form counts, not content."
    yield ""
    yield from _table("step", "question", "answer", "seconds")
    for step, answers in there.items():
        for answer in answers:
            detail = answer["detail"] if answer["ok"] else f"**wrong**: {answer['detail']}"
            yield f"| {step} | {answer['name']} | {detail} | {answer.get('seconds', '–')} |"


def _check(results: dict[str, dict[str, Any]]) -> Iterator[str]:
    doctor = results.get("install", {}).get("doctor")
    if doctor:
        yield f"`llmhost doctor` after the installation: {doctor['seconds']:.2f} s (median of five)."
        yield ""
    entry = results.get("check", {})
    if "check" not in entry:
        yield _missing(entry)
        return
    yield f"Three services with weights, `llmhost up` in {entry['seconds']:.0f} s, one start after another."
    yield ""
    yield from _table("`llmhost check`", "service", "", "seconds")
    for one in entry["check"]["checks"]:
        state = "ok" if one["ok"] else f"**wrong**: {one['detail']}"
        yield f"| {one['check']} | {one['service']} | {state} | {one['seconds']:.2f} |"
    yield ""
    checks = entry["doctor"]["checks"]
    bad = [f"{c['name']}: {c['message']}" for c in checks if c["status"] == "fail"]
    warned = [f"{c['name']} ({c['message']})" for c in checks if c["status"] == "warn"]
    yield f"`llmhost doctor --deep`: {len(checks)} checks, {len(bad)} failed, {len(warned)} warned."
    said = [f"- {line}" for line in (*bad, *warned)]
    more = [f"- and {len(said) - MANY} more"] if len(said) > MANY else []
    yield from ("", *said[:MANY], *more) if said else ()


def _spanning(results: dict[str, dict[str, Any]]) -> Iterator[str]:
    entry = results.get("spanning", {})
    if "ways" not in entry:
        yield _missing(entry)
        return
    yield "The chat demo model answers a question. Nodes are network namespaces of one machine, each with a name,"
    yield "shared memory and a GPU of its own, and TCP between them."
    yield ""
    yield from _table("split", "workers started by", "", "seconds until ready", "after a kill of one part")
    for way, found in entry["ways"].items():
        said = "ok" if found["ok"] else f"**failed**: {found.get('error', 'a wrong answer').replace('|', '/')[:200]}"
        again = f"{found['again']:.0f}" if "again" in found else "–"
        seconds = f"{found['seconds']:.0f}" if "seconds" in found else "–"
        yield f"| {WAYS[way]} | {said} | {seconds} | {again} |"
    yield from _parallel(results.get("parallel", {}))


def _parallel(entry: dict[str, Any]) -> Iterator[str]:
    if "ways" not in entry:
        return
    yield ""
    yield f"{shapes.NAMES['chat']}, answers of 256 tokens, tokens per second (median of three), NVLink multicast off."
    yield ""
    yield from _table("", "seconds until ready", "one request", "32 together")
    titles = {"one": "one GPU", "mp": "two, vLLM by itself", "ray": "two, Ray"}
    for way, found in entry["ways"].items():
        rates = found.get("tokens_per_second", {})
        cells = (f"{rates[key]:,.0f}" if key in rates else "–" for key in ("1", "32"))
        failed = f"**failed**: {found.get('error', '').replace('|', '/')[:200]}"
        ready = f"{found['seconds']:.0f}" if "seconds" in found else failed
        yield f"| {titles[way]} | {ready} | {' | '.join(cells)} |"


def _steps(results: dict[str, dict[str, Any]]) -> Iterator[str]:
    yield from _table("step", "", "when", "on", "took", "")
    for step in ORDER:
        entry = results.get(step, {"state": "not done"})
        took = f"{entry['took']:.0f} s" if "took" in entry else "–"
        when = datetime.fromtimestamp(entry["began"], UTC).date().isoformat() if "began" in entry else "–"
        error = entry.get("error", "").replace("|", "/")[:200]
        yield f"| {step} | {entry['state']} | {when} | {_machine(entry)} | {took} | {error} |"


def _machine(entry: dict[str, Any]) -> str:
    facts = entry.get("facts")
    return f"{len(facts['gpus'])} GPU, {len(facts['host']['cores'])} cores" if facts else "–"


def _missing(entry: dict[str, Any]) -> str:
    return f"Failed: {entry['error']}" if "error" in entry else "Not done yet."


def _table(*columns: str) -> list[str]:
    return [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
