#!/usr/bin/env python3
"""Proves llmhost on a GPU host, step by step, and writes docs/gpu.md from what was measured.

    report.py install --bundle DIR     everything from a bundle, without a network
    report.py flash-attn               build flash-attention and check it
    report.py cold                     three services on one GPU, empty caches: start times, answers, memory
    report.py warm                     the same again
    report.py carried                  and with empty caches that a bundle of caches has filled
    report.py long                     other context lengths: memory again
    report.py check                    the demo models: every question of `llmhost check`, and `doctor --deep`
    report.py spanning                 two GPUs: one model on both by vLLM and by Ray, and over two namespaces as nodes
    report.py parallel                 two GPUs: tokens per second on one of them, and on both by vLLM and by Ray
    report.py all --bundle DIR         every step that is not done yet, one after another
    report.py status                   what is done, what runs, what failed
    report.py write [--docs DIR]       docs/gpu.md (with OUT/remarks.md) and the table of docs/planning.md

Every step is a program of its own that writes OUT/<step>.json; with --background it runs in a session of its own
(setsid) and this command returns at once. Standard library only: `install` runs with the interpreter of the system.
`--cpu` rehearses the steps cold, warm, long, check and (as root) the namespaces of spanning, with models as small as
can be on a CPU engine.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
import traceback
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import render_report
import shapes
import spanning

STEPS = ("install", "flash-attn", "cold", "warm", "carried", "long", "check", "spanning", "parallel")
TWO_GPUS = ("spanning", "parallel")
SERVICES = ("chat", "embed", "rerank")
CONTEXTS = {"cold": (8192, 512), "warm": (8192, 512), "carried": (8192, 512), "long": (32768, 256)}
"""Tokens of the chat model, and of the encoders."""
CPU_CONTEXTS = {"cold": (1024, 512), "warm": (1024, 512), "carried": (1024, 512), "long": (2048, 256)}
ENGINE_LINES = re.compile(
    r"Model loading took|init engine|Graph capturing finished|torch\.compile takes|GPU KV cache size|"
    r"Available KV cache memory|peak activation|Loading weights took|Using .* attention|Compiling a graph"
)
"""Lines of vLLM's log that say where time and memory went."""
MIB = 2**20
OVER, UNDER = 0.05, 0.20
"""How much more, and less, a service may take of the GPU than was planned, as a share of what it takes."""


class Failed(Exception):
    """A step that did not do what it should."""


class Host:
    """The host, the home, and what runs llmhost."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.out: Path = options.out.absolute()
        self.home: Path = options.home.absolute()
        self.cpu: bool = options.cpu
        self.port: int = options.port
        self.bundle: Path | None = options.bundle
        self.llmhost: list[str] = options.llmhost.split() if options.llmhost else self._installed()

    def _installed(self) -> list[str]:
        found = shutil.which("llmhost") or "/opt/llmhost/bin/llmhost"
        return [found]

    def run(self, *args: str, check: bool = True, timeout: float = 3600) -> subprocess.CompletedProcess[str]:
        """llmhost with these arguments; its output goes to the log of the step as well."""
        argv = [*self.llmhost, "--home", str(self.home), *args]
        print(f"$ {' '.join(argv)}", flush=True)
        done = subprocess.run(argv, text=True, capture_output=True, check=False, timeout=timeout)
        print(done.stdout + done.stderr, flush=True)
        if check and done.returncode:
            raise Failed(f"llmhost {' '.join(args)}: {(done.stderr or done.stdout).strip()[-600:]}")
        return done

    def json(self, *args: str) -> Any:
        """What a command prints with --json."""
        return json.loads(self.run(*args, "--json").stdout)

    def interpreter(self) -> str:
        """The one that runs llmhost: the command itself when that is `python -m llmhost`, else from its first line."""
        if len(self.llmhost) > 1:
            return self.llmhost[0]
        return Path(self.llmhost[0]).read_text().splitlines()[0].removeprefix("#!").strip()

    def demo(self) -> Path:
        """The directory of the demo models."""
        ask = "import llmhost.demo; print(llmhost.demo.__path__[0])"
        return Path(
            subprocess.run([self.interpreter(), "-c", ask], text=True, capture_output=True, check=True).stdout.strip()
        )

    def gpu_used(self) -> int | None:
        """MiB in use on all GPUs; None without a GPU."""
        if self.cpu:
            return None
        ask = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
        if shutil.which(ask[0]):
            return sum(
                int(line) for line in subprocess.run(ask, text=True, capture_output=True, check=True).stdout.split()
            )
        code = (
            "from llmhost.probe.nvml import *; import pynvml as n; n.nvmlInit();"
            "print(sum(n.nvmlDeviceGetMemoryInfo(n.nvmlDeviceGetHandleByIndex(i)).used"
            " for i in range(n.nvmlDeviceGetCount())) // 2**20)"
        )
        return int(subprocess.run([self.interpreter(), "-c", code], text=True, capture_output=True, check=True).stdout)


def install(host: Host) -> dict[str, Any]:
    """From a bundle, by nothing but its own script."""
    if host.bundle is None:
        raise Failed("name the bundle: --bundle DIR")
    began = time.monotonic()
    subprocess.run(["sh", str(host.bundle / "install.sh"), "--home", str(host.home)], check=True)
    seconds = time.monotonic() - began
    host.llmhost = host._installed()
    manifest = json.loads((host.bundle / "bundle.json").read_text()) if (host.bundle / "bundle.json").is_file() else {}
    pieces = [file.stat().st_size for file in host.bundle.iterdir() if file.is_file()]
    return {
        "seconds": round(seconds, 1),
        "bundle": {"bytes": sum(pieces), "files": len(pieces), "left_out": manifest.get("left_out", [])},
        "facts": _facts(host),
        "doctor": _timed(host, "doctor", "--json"),
    }


def _timed(host: Host, *args: str) -> dict[str, Any]:
    """What a command with --json says, and the median of its seconds."""
    took = []
    for _ in range(5):
        began = time.monotonic()
        done = host.run(*args, check=False)
        took.append(time.monotonic() - began)
    return {"seconds": round(sorted(took)[2], 2), "rc": done.returncode, "said": json.loads(done.stdout)}


def _facts(host: Host) -> Any:
    facts = host.json("facts")
    keep = ("system", "kernel", "machine", "glibc", "host", "gpus", "driver", "toolkits", "shm_total")
    return {key: facts.get(key) for key in keep}


def flash_attn(host: Host) -> dict[str, Any]:
    """Build flash-attention (or take the kept wheel) and check it on the GPU."""
    plan = host.run("setup", "--flash-attn", "--dry-run").stdout
    began = time.monotonic()
    report = host.json("setup", "--flash-attn")
    seconds = round(time.monotonic() - began, 1)
    return {"facts": _facts(host), "seconds": seconds, "plan": plan.splitlines(), "setup": report}


def serve(host: Host, step: str) -> dict[str, Any]:
    """Three services, started one after another; what each takes and answers."""
    chat, encoder = (CPU_CONTEXTS if host.cpu else CONTEXTS)[step]
    _write_config(host, _shapes(host, chat, encoder))
    if step == "carried":
        caches = _bundle_of_caches(host)
    cleared = step in ("cold", "carried") and not host.run("engine", "cache", "clear", check=False).returncode
    if step == "carried":
        host.run("bundle", "install", str(caches))
    plan = host.json("plan")
    data: dict[str, Any] = {
        "facts": _facts(host), "engine": plan["engine"], "caches_cleared": cleared,
        "contexts": {"chat": chat, "embed": encoder, "rerank": encoder}, "services": {},
    }  # fmt: skip
    try:
        for name in SERVICES:
            context = data["contexts"][name]
            data["services"][name] = _start(host, name, _program(plan, name), context)
        data["answers"] = [_asked(host, *question) for question in _questions()]
        data["status"] = host.json("status")
    finally:
        host.run("down", check=False)
    wrong = [answer["name"] for answer in data["answers"] if not answer["ok"]]
    errors = [f"wrong answers: {', '.join(wrong)}"] if wrong else []
    errors += _not_as_planned(data["services"], warm=step in ("warm", "carried"))
    return {**data, "error": "; ".join(errors)} if errors else data


def _not_as_planned(services: dict[str, Any], *, warm: bool) -> list[str]:
    """A warm start may take less by any amount: kernels that are there need no memory to be compiled in."""
    found = []
    for name, service in services.items():
        planned, measured = service["planned_mib"], service["measured_mib"]
        if planned and measured and not (-OVER <= (planned - measured) / measured <= (1 if warm else UNDER)):
            found.append(f"{name} takes {measured} MiB of the GPU, and {planned} were planned")
    return found


def _bundle_of_caches(host: Host) -> Path:
    bundle = host.out / "caches"
    host.run("bundle", "create", "--only", "caches", "--config", str(host.home / "llmhost.yaml"), "-o", str(bundle))
    return bundle


def _shapes(host: Host, chat: int, encoder: int) -> dict[str, Any]:
    """The services of the models without weights.

    The encoders read theirs (zeros, from a hole in the file): while it makes up dummy ones vLLM holds several copies of
    the largest tensor, and torch keeps that memory.
    """
    models = shapes.write_models(host.out / "models", host.demo(), tiny=host.cpu)
    eager = {"enforce_eager": True} if host.cpu else {}
    place = {} if host.cpu else {"gpus": [0]}
    only_chat = {"load_format": "dummy", "tool_call_parser": None, "reasoning_parser": None}
    return {
        name: {
            "model": str(models[name]),
            "kind": name,
            **place,
            "args": {
                **eager,
                "max_model_len": chat if name == "chat" else encoder,
                **(only_chat if name == "chat" else {}),
            },
        }
        for name in SERVICES
    }


def _write_config(host: Host, services: dict[str, Any]) -> None:
    """llmhost.yaml with these services and the engine that it had (JSON is YAML)."""
    known = host.json("config", "show", "--no-defaults") if (host.home / "llmhost.yaml").exists() else {}
    gateway = {**known.get("gateway", {}), "port": host.port}
    text = json.dumps({**known, "gateway": gateway, "services": services}, indent=1)
    host.home.mkdir(parents=True, exist_ok=True)
    (host.home / "llmhost.yaml").write_text(text)


def check(host: Host) -> dict[str, Any]:
    """The demo models have weights: what they answer is asked for, and looked at."""
    _write_config(host, {f"demo-{kind}": {"model": f"demo:{kind}"} for kind in SERVICES})
    began = time.monotonic()
    try:
        host.run("up")
        seconds = time.monotonic() - began
        answers = host.run("check", "--json", check=False)
        doctor = host.run("doctor", "--deep", "--json", check=False)
    finally:
        host.run("down", check=False)
    data = {"facts": _facts(host), "seconds": round(seconds, 1), "check": json.loads(answers.stdout)}
    data["doctor"] = json.loads(doctor.stdout)
    wrong = [name for name, done in (("check", answers), ("doctor --deep", doctor)) if done.returncode]
    return {**data, "error": f"failed: {', '.join(wrong)}"} if wrong else data


def span(host: Host) -> dict[str, Any]:
    """One model on two GPUs in every way that there is; a way that fails keeps no other from being tried."""
    ways: dict[str, Any] = {}
    if not host.cpu:
        for executor in ("mp", "ray"):
            ways[executor] = lambda by=executor: spanning.on_one_host(host, _write_config, by)
            ways[f"two nodes {executor}"] = lambda by=executor: spanning.on_two_nodes(host, by)
        ways["two nodes tensor"] = lambda: spanning.on_two_nodes(host, tensor_parallel_size=2)
    return _tried(host, ways or {"two nodes mp": lambda: spanning.on_two_nodes(host)})


def parallel(host: Host) -> dict[str, Any]:
    """The chat model without weights, on one GPU and on two."""
    model = shapes.write_models(host.out / "models", host.demo())["chat"]
    ways = {"one": (1, "mp"), "mp": (2, "mp"), "ray": (2, "ray")}
    return _tried(
        host,
        {
            way: lambda gpus=gpus, by=by: spanning.speed(host, _write_config, model, gpus, by)
            for way, (gpus, by) in ways.items()
        },
    )


def _tried(host: Host, ways: dict[str, Any]) -> dict[str, Any]:
    data: dict[str, Any] = {"facts": _facts(host), "ways": {}}
    for way, run in ways.items():
        try:
            data["ways"][way] = run()
        except (RuntimeError, Failed, OSError, KeyError, StopIteration) as e:
            data["ways"][way] = {"ok": False, "error": f"{type(e).__name__}: {e}"}
        print(f"{way}: {data['ways'][way]}", flush=True)
    wrong = [way for way, found in data["ways"].items() if not found["ok"]]
    return {**data, "error": f"failed: {', '.join(wrong)}"} if wrong else data


def _program(plan: dict[str, Any], name: str) -> dict[str, Any]:
    service = next(s for s in plan["services"] if s["name"] == name)
    return dict(service["replicas"][0])


def _start(host: Host, name: str, planned: dict[str, Any], context: int) -> dict[str, Any]:
    before, began = host.gpu_used(), time.monotonic()
    host.run("up", name)
    seconds = time.monotonic() - began
    ready = host.gpu_used()
    _fill_batches(host, name, context)
    after = host.gpu_used()
    log = host.home / "logs" / f"{name}-0.log"
    said = [line.rstrip()[-300:] for line in log.read_text(errors="replace").splitlines() if ENGINE_LINES.search(line)]
    return {
        "seconds": round(seconds, 1),
        "planned_mib": round(planned["gpu_memory_bytes"] / MIB) or None,
        "planned_kv_mib": round(planned["kv_cache_bytes"] / MIB),
        "ready_mib": None if before is None or ready is None else ready - before,
        "measured_mib": None if before is None or after is None else after - before,
        "said": said[-40:],
    }


def _fill_batches(host: Host, name: str, context: int) -> None:
    """Requests that fill max_num_batched_tokens: what an engine holds at its peak stays in torch's hands afterwards."""
    tokens, requests = context * 3 // 4, max(4, 16384 // context)
    many = ["word " * tokens] * requests
    prompts = [[1000 + i] * tokens for i in range(requests)]  # token ids; each its own, or the prefix cache answers
    bodies: dict[str, tuple[str, list[dict[str, Any]]]] = {
        "chat": ("/v1/completions", [{"prompt": one, "max_tokens": 8} for one in prompts]),
        "embed": ("/v1/embeddings", [{"input": many}]),
        "rerank": ("/v1/rerank", [{"query": "word", "documents": many}]),
    }
    path, asked = bodies[name]
    with ThreadPoolExecutor(max_workers=8) as pool:
        list(pool.map(lambda body: _post(host, path, {"model": name, **body}), asked))


def _questions() -> list[tuple[str, str, dict[str, Any]]]:
    """Name, path and body; the models know nothing, so form counts, not content."""
    messages = [{"role": "user", "content": "Which city is the capital of France?"}]
    chat = {"model": "chat", "messages": messages, "max_tokens": 24, "ignore_eos": True, "temperature": 0}
    return [
        ("chat", "/v1/chat/completions", chat),
        ("stream", "/v1/chat/completions", {**chat, "stream": True}),
        ("embed", "/v1/embeddings", {"model": "embed", "input": ["one", "two words", "three more words"]}),
        ("rerank", "/v1/rerank", {"model": "rerank", "query": "capital", "documents": ["Paris", "Rome", "a cat"]}),
    ]


def _asked(host: Host, name: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
    began = time.monotonic()
    try:
        text = _post(host, path, body)
        detail = _judged(name, text)
    except (OSError, ValueError, KeyError, IndexError, TypeError, Failed) as e:
        return {"name": name, "ok": False, "detail": f"{type(e).__name__}: {e}"[:300]}
    return {"name": name, "ok": True, "detail": detail, "seconds": round(time.monotonic() - began, 3)}


def _post(host: Host, path: str, body: dict[str, Any]) -> str:
    request = urllib.request.Request(
        f"http://127.0.0.1:{host.port}{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=300) as answer:
        return str(answer.read().decode())


def _judged(name: str, text: str) -> str:
    if name == "stream":
        chunks = text.count('"delta"')
        if "data: [DONE]" not in text or chunks < 2:
            raise Failed(f"{chunks} chunks, no end")
        return f"{chunks} chunks"
    data = json.loads(text)
    if name == "chat":
        if data["usage"]["completion_tokens"] != 24:
            raise Failed(f"{data['usage']['completion_tokens']} tokens instead of 24")
        return "24 tokens"
    if name == "embed":
        sizes = {len(row["embedding"]) for row in data["data"]}
        if len(data["data"]) != 3 or len(sizes) != 1:
            raise Failed("not three vectors of one size")
        return f"3 vectors of {sizes.pop()}"
    if len(data["results"]) != 3:
        raise Failed("not three results")
    return "3 scores"


def perform_all(options: argparse.Namespace) -> int:
    """Every step that is not done yet, as far as this host has the GPUs for it; exit status 1 when one failed."""
    failed = 0
    for step in STEPS:
        if render_report.read_results(options.out).get(step, {}).get("state") == "done":
            continue
        if step in TWO_GPUS and not options.cpu and len(Host(options).json("facts")["gpus"]) < 2:
            print(f"{step}: needs two GPUs", flush=True)
            continue
        if options.cpu and step not in (*CPU_CONTEXTS, "check", "spanning"):
            continue
        failed = perform(step, Host(options)) or failed
        if failed and step == "install":
            break
    return failed


def perform(step: str, host: Host) -> int:
    """Do a step and write down how it went; exit status 0 when it went well."""
    file = host.out / f"{step}.json"
    entry: dict[str, Any] = {
        "step": step,
        "pid": os.getpid(),
        "began": time.time(),
        "state": "running",
        "cpu": host.cpu,
    }
    _write(file, entry)
    try:
        if step == "install":
            entry |= install(host)
        elif step == "flash-attn":
            entry |= flash_attn(host)
        elif step == "check":
            entry |= check(host)
        elif step == "spanning":
            entry |= span(host)
        elif step == "parallel":
            entry |= parallel(host)
        else:
            entry |= serve(host, step)
    except Exception as e:  # whatever it is, it belongs into the report
        traceback.print_exc()
        entry["error"] = f"{type(e).__name__}: {e}"
    entry |= {"state": "failed" if "error" in entry else "done", "took": round(time.time() - entry["began"], 1)}
    _write(file, entry)
    print(f"{step}: {entry['state']} after {entry['took']} s {entry.get('error', '')}", flush=True)
    return 0 if entry["state"] == "done" else 1


def _write(file: Path, entry: dict[str, Any]) -> None:
    temporary = file.with_suffix(".new")
    temporary.write_text(json.dumps(entry, indent=1))
    os.replace(temporary, file)


def in_background(step: str, out: Path) -> int:
    """The same command in a session of its own: it outlives the one that asked for it."""
    argv = [sys.executable, __file__, *(word for word in sys.argv[1:] if word != "--background")]
    with (out / f"{step}.log").open("w") as log:
        child = subprocess.Popen(argv, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True)
    print(f"{step} runs as pid {child.pid}; look at it with: {Path(__file__).name} status --out {out}")
    return 0


def show_status(out: Path) -> int:
    """A line for each step, and the end of the log of what runs or failed."""
    for step, entry in render_report.read_results(out).items():
        state = entry["state"]
        if state == "running" and not Path(f"/proc/{entry['pid']}").exists():
            state = "ended without a result"
        since = entry.get("took") or round(time.time() - entry["began"])
        print(f"{step:10} {state}  {since} s  {entry.get('error', '')}")
        log = out / f"{step}.log"
        if state != "done" and log.exists():
            print("\n".join(f"    {line[:160]}" for line in log.read_text(errors="replace").splitlines()[-4:]))
    return 0


def main(argv: list[str]) -> int:
    """The command line; exit status 1 when a step failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=(*STEPS, "all", "status", "write"))
    parser.add_argument("--out", type=Path, default=Path("gpu-report"), help="where results are written")
    parser.add_argument("--home", type=Path, default=Path(os.environ.get("LLMHOST_HOME") or "~/.llmhost").expanduser())
    parser.add_argument("--llmhost", help="the command, when it is not on PATH: 'python -m llmhost'")
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--docs", type=Path, default=Path(__file__).resolve().parents[2] / "docs")
    parser.add_argument("--port", type=int, default=8000, help="of the gateway")
    parser.add_argument("--cpu", action="store_true", help="rehearse without a GPU")
    parser.add_argument("--background", action="store_true", help="in a session of its own")
    options = parser.parse_args(argv)
    options.out.mkdir(parents=True, exist_ok=True)
    if options.step == "status":
        return show_status(options.out)
    if options.step == "write":
        print(*render_report.write(options.out, options.docs), sep="\n")
        return 0
    if options.background:
        return in_background(options.step, options.out.absolute())
    return perform_all(options) if options.step == "all" else perform(options.step, Host(options))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
