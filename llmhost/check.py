"""Ask running services through the gateway, as a client would, whether they do what they are for.

The questions are in ``llmhost/demo/probes.json``. They hold for any working model of the kind: a tool must be called
by its name with the value that was asked for, a paraphrase must lie nearer than a stranger, the right document comes
first.
"""

from __future__ import annotations

import json
import math
import ssl
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import httpx

from llmhost.demo import probes
from llmhost.plan import ServicePlan

REQUEST_TIMEOUT = 120.0
"""Seconds for one answer: a first request may still compile something."""


@dataclass(frozen=True)
class CheckResult:
    """One question and how it went; ``detail`` is for a person."""

    service: str
    check: str
    ok: bool
    seconds: float
    detail: str

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class _WrongAnswer(Exception):
    """The service answered, but not what it should."""


Probe = Callable[[httpx.Client, str, dict[str, Any]], str]
"""Asks one question of a model (by its name) and returns a detail; raises _WrongAnswer or httpx.HTTPError."""


def run_checks(
    url: str, services: Sequence[ServicePlan], api_key: str | None = None, verify: ssl.SSLContext | bool = True
) -> Iterator[CheckResult]:
    """Every check of every service, one after another, each as soon as it is done; ``url`` is the gateway's.

    ``verify`` says which certificates are believed, as in httpx.
    """
    data = probes()
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    with httpx.Client(base_url=url, timeout=REQUEST_TIMEOUT, headers=headers, verify=verify, trust_env=False) as client:
        for service in services:
            for name, probe in checks_of(service):
                yield _run(client, service, name, probe, data[service.kind])


def checks_of(service: ServicePlan) -> tuple[tuple[str, Probe], ...]:
    """The checks that a service must pass; the tool call only where a tool-call parser is switched on."""
    if service.kind == "embed":
        return (("embed", _embed),)
    if service.kind == "rerank":
        return (("rerank", _rerank),)
    tools = any(word == "--enable-auto-tool-choice" for replica in service.replicas for word in replica.argv)
    return (("chat", _chat), ("stream", _stream), *((("tool", _tool),) if tools else ()))


def _run(client: httpx.Client, service: ServicePlan, name: str, probe: Probe, data: dict[str, Any]) -> CheckResult:
    started = time.monotonic()
    try:
        ok, detail = True, probe(client, service.served_as[0], data)
    except _WrongAnswer as e:
        ok, detail = False, str(e)
    except httpx.HTTPError as e:
        ok, detail = False, f"no answer: {str(e) or type(e).__name__}"
    except (AttributeError, KeyError, IndexError, TypeError, ValueError) as e:
        ok, detail = False, f"the answer is not of the expected shape: {type(e).__name__}: {e}"
    return CheckResult(service.name, name, ok, round(time.monotonic() - started, 3), detail)


def _post(client: httpx.Client, path: str, body: dict[str, Any]) -> Any:
    response = client.post(path, json=body)
    if response.status_code != 200:
        raise _WrongAnswer(f"{path} answered {response.status_code}: {_error_message(response.text)}")
    return response.json()


def _error_message(text: str) -> str:
    """OpenAI's error message where there is one, else the beginning of the body: it may be anybody's."""
    try:
        return str(json.loads(text)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return "a web page, so this is no gateway" if text.lstrip().startswith("<") else _short(text)


def _expect(condition: bool, otherwise: str) -> None:
    if not condition:
        raise _WrongAnswer(otherwise)


def _chat(client: httpx.Client, model: str, data: dict[str, Any]) -> str:
    # No max_tokens: a model that thinks first may need many before it answers.
    body = {"model": model, "messages": data["plain"]["messages"], "temperature": 0}
    message = _post(client, "/v1/chat/completions", body)["choices"][0]["message"]
    text = message["content"] or ""
    thought = message.get("reasoning") or ""
    _expect(bool(text.strip()), f"no answer, only a thought: {_short(thought)!r}" if thought else "an empty answer")
    _expect_any(text, data["plain"]["expect_any"])
    return _short(text)


def _expect_any(text: str, wanted: Sequence[str]) -> None:
    if wanted and not any(w.lower() in text.lower() for w in wanted):
        raise _WrongAnswer(f"none of {', '.join(map(repr, wanted))} is in the answer {_short(text)!r}")


def _stream(client: httpx.Client, model: str, data: dict[str, Any]) -> str:
    body = {"model": model, "messages": data["plain"]["messages"], "temperature": 0, "stream": True}
    pieces: list[str] = []
    done = False
    with client.stream("POST", "/v1/chat/completions", json=body) as response:
        if response.status_code != 200:
            raise _WrongAnswer(
                f"answered {response.status_code}: {_error_message(response.read().decode(errors='replace'))}"
            )
        for line in response.iter_lines():
            done = done or line == "data: [DONE]"
            if line.startswith("data: {"):
                pieces += _deltas(json.loads(line.removeprefix("data: ")))
    _expect(done, "the stream ended without [DONE]")
    _expect(bool("".join(pieces).strip()), "a stream without an answer")
    _expect_any("".join(pieces), data["plain"]["expect_any"])
    return f"{len(pieces)} chunks"


def _deltas(chunk: dict[str, Any]) -> list[str]:
    deltas = (choice["delta"] for choice in chunk.get("choices", ()))
    return [text for delta in deltas if (text := delta.get("content"))]


def _tool(client: httpx.Client, model: str, data: dict[str, Any]) -> str:
    probe = data["tool"]
    body = {
        "model": model, "messages": probe["messages"], "tools": probe["tools"], "tool_choice": "auto", "temperature": 0,
    }  # fmt: skip
    message = _post(client, "/v1/chat/completions", body)["choices"][0]["message"]
    calls = message.get("tool_calls") or []
    _expect(bool(calls), f"no tool was called; the answer was {_short(message.get('content') or '')!r}")
    name, arguments = calls[0]["function"]["name"], json.loads(calls[0]["function"]["arguments"])
    _expect(isinstance(arguments, dict), f"the arguments are no object: {_short(calls[0]['function']['arguments'])}")
    wanted = probe["expect"]
    _expect(name == wanted["name"], f"{name} was called instead of {wanted['name']}")
    wrong = {k: arguments.get(k) for k, v in wanted["arguments"].items() if arguments.get(k) != v}
    _expect(not wrong, f"{name} was called with {wrong} where {wanted['arguments']} was asked for")
    return f"{name}({json.dumps(arguments, ensure_ascii=False)})"


def _embed(client: httpx.Client, model: str, data: dict[str, Any]) -> str:
    body = {"model": model, "input": [data["anchor"], data["near"], data["far"]]}
    rows = sorted(_post(client, "/v1/embeddings", body)["data"], key=lambda row: row["index"])
    anchor, near, far = ([float(x) for x in row["embedding"]] for row in rows)
    _expect(len(anchor) == len(near) == len(far) > 0, "vectors of different dimensions")
    _expect(all(math.isfinite(x) for v in (anchor, near, far) for x in v), "a component is not a finite number")
    _expect(all(abs(_norm(v) - 1) < 0.05 for v in (anchor, near, far)), f"norm {_norm(anchor):.3f} instead of 1")
    similar, different = _dot(anchor, near), _dot(anchor, far)
    _expect(similar > different, f"a paraphrase ({similar:.2f}) is no nearer than a stranger ({different:.2f})")
    return f"dimension {len(anchor)}, paraphrase {similar:.2f} > stranger {different:.2f}"


def _dot(a: Sequence[float], b: Sequence[float]) -> float:
    return math.fsum(x * y for x, y in zip(a, b, strict=True))


def _norm(vector: Sequence[float]) -> float:
    return math.sqrt(_dot(vector, vector))


def _rerank(client: httpx.Client, model: str, data: dict[str, Any]) -> str:
    body = {"model": model, "query": data["query"], "documents": data["documents"]}
    results = _post(client, "/v1/rerank", body)["results"]
    scores = [float(r["relevance_score"]) for r in results]
    _expect(len(results) == len(data["documents"]), f"{len(results)} results for {len(data['documents'])} documents")
    _expect(all(math.isfinite(s) for s in scores), "a score is not a finite number")
    _expect(scores == sorted(scores, reverse=True), "the results are not in the order of their scores")
    _expect(results[0]["index"] == data["best"], f"document {results[0]['index']} came first instead of {data['best']}")
    return f"scores {scores[0]:.3f} … {scores[-1]:.3f}"


def _short(text: str) -> str:
    one_line = " ".join(text.split())
    return one_line if len(one_line) <= 80 else f"{one_line[:79]}…"
