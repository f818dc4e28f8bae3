"""What the gateway says itself: the list of models, the page at /docs, and the sentences of its errors."""

from __future__ import annotations

import html
import itertools
import json
import shlex
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from llmhost.facts import Kind
from llmhost.gateway.endpoints import ENDPOINTS, EndpointGroup
from llmhost.gateway.openapi import example_of
from llmhost.plan.types import ServicePlan

CREATED = 0
"""OpenAI's clients want a time of creation; a plan knows none, and equal plans must give equal bytes."""


def model_cards(services: Iterable[ServicePlan]) -> list[dict[str, Any]]:
    """One entry of OpenAI's model list for each served name."""
    return [_card(name, service) for service in services for name in service.served_as]


def model_list(services: Iterable[ServicePlan]) -> str:
    """The body of ``GET /v1/models``."""
    return json.dumps({"object": "list", "data": model_cards(services)}, ensure_ascii=False)


def _card(name: str, service: ServicePlan) -> dict[str, Any]:
    card: dict[str, Any] = {"id": name, "object": "model", "created": CREATED, "owned_by": "llmhost"}
    card |= {"root": service.model, "service": service.name, "kind": service.kind}
    length = _max_model_len(service)
    return card if length is None else card | {"max_model_len": length}


def _max_model_len(service: ServicePlan) -> int | None:
    argv = service.replicas[0].argv if service.replicas else ()
    values = [v for flag, v in itertools.pairwise(argv) if flag == "--max-model-len"]
    return int(values[-1]) if values and values[-1].isdecimal() else None


def names(services: Iterable[ServicePlan], kinds: Sequence[Kind] | None = None) -> str:
    """The served names, quoted, for a sentence; only those of ``kinds`` if given."""
    chosen = [n for s in services if kinds is None or s.kind in kinds for n in s.served_as]
    return ", ".join(f"'{name}'" for name in chosen) or "none"


def which_model(services: Sequence[ServicePlan], group: EndpointGroup) -> str:
    """Said to a request without `model` that several services, or none, could answer."""
    if not any(s.kind in group.served_by for s in services):
        return f"No service here answers this path: it takes one of kind {' or '.join(group.kinds)}"
    if not group.by_model:
        return (
            "Several services answer this path and it names no model: ask the service at a port of its own"
            " (`port` in llmhost.yaml)"
        )
    return f"The request names no `model`; models that answer this path: {names(services, group.served_by)}"


def docs_page(services: Sequence[ServicePlan], locked: bool = False) -> str:
    """The body of ``GET /docs``: which names are served, which paths answer for them, and an example for each kind."""
    rows = [(n, s.kind, str(s.port or "")) for s in services for n in s.served_as]
    paths = [(e.method, e.path, ", ".join(e.served_by)) for e in ENDPOINTS]
    key = "<p>Every request needs an API key: <code>Authorization: Bearer …</code> or <code>x-api-key: …</code>.</p>"
    return "\n".join(
        (
            "<!doctype html>",
            '<html lang="en"><meta charset="utf-8"><title>llmhost</title>',
            "<style>body{font:1em sans-serif;margin:2em}td,th{text-align:left;padding:.1em 1em .1em 0}"
            "pre{background:#eee;padding:1em;overflow-x:auto}</style>",
            "<h1>llmhost</h1>",
            "<p>An OpenAI-compatible API. Name one of these models as <code>model</code>;"
            ' as JSON: <a href="/v1/models">/v1/models</a>, <a href="/openapi.json">/openapi.json</a>.</p>',
            *((key,) if locked else ()),
            _table(("model", "kind", "own port"), rows),
            *_examples(services, locked),
            "<h2>Paths</h2>",
            _table(("method", "path", "kinds of model that answer"), paths),
            '<p>Request and response formats: <a href="https://docs.vllm.ai/en/stable/serving/'
            "openai_compatible_server/\">vLLM's documentation</a>.</p>",
            "</html>\n",
        )
    )


def _examples(services: Sequence[ServicePlan], locked: bool) -> Iterator[str]:
    """One call for each kind that is there; the page does not know under which address it is read."""
    key = ' -H "Authorization: Bearer $LLMHOST_API_KEY"' if locked else ""
    for service in {s.kind: s for s in reversed(services)}.values():
        path, body = example_of(service.kind)
        text = json.dumps({"model": service.served_as[0], **body}, ensure_ascii=False, indent=1)
        yield f"<h2>{service.kind}</h2>"
        call = f"curl $URL{path}{key} -H 'Content-Type: application/json' -d {shlex.quote(text)}"
        yield f"<pre>{html.escape(call)}</pre>"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [_row("th", head), *(_row("td", row) for row in rows)]
    return "\n".join(("<table>", *lines, "</table>"))


def _row(cell: str, values: Iterable[str]) -> str:
    return "<tr>" + "".join(f"<{cell}>{html.escape(v)}</{cell}>" for v in values) + "</tr>"
