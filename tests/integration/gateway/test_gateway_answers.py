"""What a client gets: the real Envoy before stub engines; nothing changes while these tests run."""

from __future__ import annotations

import http.client
import json
import re
import socket
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import httpx
import openai
import pytest

from llmhost.gateway import ENDPOINTS
from tests.integration.gateway.conftest import CHINESE, Suite
from tests.integration.gateway.running import LIMIT

pytestmark = pytest.mark.integration

CHAT = "/v1/chat/completions"
NAMES = ("gpt-4", CHINESE, "100%", "gte", "bge", "absent")
MODEL_OF = {"chat": "gpt-4", "embed": "gte", "rerank": "bge"}
SERVICE_OF = {"chat": "chat", "embed": "embedding", "rerank": "rerank"}
UNLISTED = (
    "/",
    "/metrics/",
    "/redoc",
    "/v1/load_lora_adapter",
    "/load_lora_adapter",
    "/sleep",
    "/wake_up",
    "/server_info",
    "/version",
    "/load",
    "/ping",
    "/invocations",
    "/collective_rpc",
    "/start_profile",
    "/v1/chat/completions/render",
    "/tokenizer_info",
    "//v1/rerank",
    "/v1//rerank",
    "/V1/rerank",
    "/v1/rerank/",
    "/v1/rerank%2f",
    "/v1%2frerank",
    "/v1/./rerank",
    "/x/../v1/rerank",
    "/v1/responses/a%2f..%2f..%2fmetrics",
    "/admin",
    "/stats",
    "/quitquitquit",
    "/v1/rerank;a",
)
POSTED = [e for e in ENDPOINTS if e.method == "POST" and "{id}" not in e.path]


def error(response: httpx.Response, status: int) -> dict[str, Any]:
    """The error of an answer, after checking that it has the shape of OpenAI's."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert body["error"]["code"] == status
    assert body["error"]["message"]
    assert re.fullmatch(r"[A-Z][A-Za-z]+Error", body["error"]["type"])
    found: dict[str, Any] = body["error"]
    return found


# --- by model -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("path", "kind"), [(e.path, kind) for e in POSTED for kind in e.served_by])
def test_every_path_reaches_every_kind_that_serves_it(suite: Suite, path: str, kind: str) -> None:
    answer = suite.post(f"{path}?a=1", {"input": "x", "model": MODEL_OF[kind]})
    assert answer.status_code == 200, answer.text
    assert answer.json()["stub"].rpartition("-")[0] == SERVICE_OF[kind]
    assert answer.json()["target"] == f"{path}?a=1"


@pytest.mark.parametrize(("path", "kind"), [(e.path, k) for e in POSTED for k in MODEL_OF if k not in e.served_by])
def test_a_model_of_the_wrong_kind_is_told_which_would_do(suite: Suite, path: str, kind: str) -> None:
    told = error(suite.post(path, {"model": MODEL_OF[kind]}), 400)
    able = [m for k, m in MODEL_OF.items() if any(k in e.served_by for e in POSTED if e.path == path)]
    assert told["message"].startswith(f"The model '{MODEL_OF[kind]}' is of kind {kind}")
    assert all(f"'{model}'" in told["message"].partition("models that do:")[2] for model in able)
    assert told["param"] == "model"


@pytest.mark.parametrize("name", ["gpt-4", CHINESE, "100%"])
@pytest.mark.parametrize("ascii_only", [True, False])
def test_any_name_wherever_it_stands(suite: Suite, name: str, ascii_only: bool) -> None:
    body = {"messages": [{"model": "gte", "content": '"model": "gte"'}], "x": {"model": "bge"}, "model": name}
    text = json.dumps(body, ensure_ascii=ascii_only).encode()
    with suite.gateway.client() as client:
        answer = client.post(CHAT, content=text, headers={"content-type": "application/json"})
    assert answer.json()["stub"] in ("chat-0", "chat-1")
    assert answer.json()["bytes"] == len(text)


@pytest.mark.parametrize(
    "name", ["nobody", 'we"ird\n\\', "gpt-4 ", "GPT-4", "中", "%DYNAMIC_METADATA(x)%", "x" * 5000, "</script>"]
)
def test_unknown_model(suite: Suite, name: str) -> None:
    told = error(suite.post(CHAT, {"model": name}), 404)
    listed = ", ".join(f"'{n}'" for n in NAMES)
    assert told == {
        "message": f"The model '{name}' does not exist; models: {listed}",
        "type": "NotFoundError",
        "param": "model",
        "code": 404,
    }


@pytest.mark.parametrize("content_type", ["application/json", "application/json; charset=utf-8", "TEXT/plain", None])
def test_content_type_does_not_change_the_way(suite: Suite, content_type: str | None) -> None:
    headers = {} if content_type is None else {"content-type": content_type}
    with suite.gateway.client() as client:
        answer = client.post("/v1/embeddings", content=b'{"model": "gte"}', headers=headers)
    assert answer.json()["stub"] == "embedding-0"
    arrived = suite.stubs["embedding-0"].asked[-1]
    assert arrived.headers["content-type"] == (content_type or "application/json")
    assert arrived.body == b'{"model": "gte"}'


# --- without a model ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("body", [{}, {"model": ""}, {"model": None}, []])
def test_the_only_service_of_the_kind(suite: Suite, body: object) -> None:
    assert suite.post("/v1/embeddings", body).json()["stub"] == "embedding-0"
    assert suite.post(CHAT, body).json()["stub"] in ("chat-0", "chat-1")


def test_several_services_of_the_kind(suite: Suite) -> None:
    told = error(suite.post("/v1/rerank", {"query": "x"}), 400)
    assert told["message"] == "The request names no `model`; models that answer this path: 'gte', 'bge', 'absent'"
    assert told["param"] == "model"
    told = error(suite.post("/tokenize", {"prompt": "x"}), 400)
    assert all(f"'{name}'" in told["message"] for name in NAMES)


@pytest.mark.parametrize(
    "body", [b"{", b'{"model": "gpt-4"', b"model=gpt-4", b"\xff", b"[" * 50_000, b'{"model": NaN}']
)
def test_not_json(suite: Suite, body: bytes) -> None:
    with suite.gateway.client() as client:
        assert error(client.post(CHAT, content=body), 400)["message"] == "The body of the request is not valid JSON"


def test_a_response_is_fetched_where_it_was_made(suite: Suite) -> None:
    answer = suite.get("/v1/responses/resp_1?stream=true")
    assert answer.json()["target"] == "/v1/responses/resp_1?stream=true"
    with suite.gateway.client() as client:
        assert client.post("/v1/responses/resp_1/cancel").json()["target"] == "/v1/responses/resp_1/cancel"


# --- our own paths --------------------------------------------------------------------------------------------------


def test_model_list(suite: Suite) -> None:
    answer = suite.get("/v1/models")
    assert answer.headers["content-type"] == "application/json"
    assert [m["id"] for m in answer.json()["data"]] == list(NAMES)
    assert {m["kind"] for m in answer.json()["data"]} == {"chat", "embed", "rerank"}


@pytest.mark.parametrize("name", NAMES)
def test_one_model(suite: Suite, name: str) -> None:
    for path in (quote(name), quote(name, safe="")):
        assert suite.get(f"/v1/models/{path}").json()["id"] == name


def test_one_model_that_does_not_exist(suite: Suite) -> None:
    assert "'gpt-4'" in error(suite.get("/v1/models/gpt-40"), 404)["message"]


def test_openai_client_reads_the_lists(suite: Suite) -> None:
    with openai.OpenAI(base_url=f"http://127.0.0.1:{suite.gateway.port}/v1", api_key="none") as client:
        assert [m.id for m in client.models.list()] == list(NAMES)
        assert client.models.retrieve("gpt-4").owned_by == "llmhost"
        with pytest.raises(openai.NotFoundError, match="The model 'nobody' does not exist"):
            client.embeddings.create(model="nobody", input="x")


def test_health_and_docs(suite: Suite) -> None:
    assert suite.get("/health").json() == {"status": "ok"}
    page = suite.get("/docs")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert "中文/模型" in page.text


@pytest.mark.parametrize("path", ["/health", "/docs", "/v1/models", "/v1/models/gpt-4"])
def test_head(suite: Suite, path: str) -> None:
    with suite.gateway.client() as client:
        assert (client.head(path).status_code, client.head(path).content) == (200, b"")


@pytest.mark.parametrize(
    "path",
    UNLISTED,
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_what_is_not_on_the_list_does_not_exist(suite: Suite, path: str, method: str) -> None:
    told = raw(suite, f"{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())
    assert error(told, 404)["message"] == "This path is not served here; GET /docs lists those that are"


@pytest.mark.parametrize("path", sorted({e.path.replace("{id}", "resp_1") for e in ENDPOINTS}))
@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS"])
def test_wrong_method(suite: Suite, path: str, method: str) -> None:
    with suite.gateway.client() as client:
        answer = client.request(method, path)
    assert error(answer, 405)["type"] == "MethodNotAllowedError"
    assert answer.headers["allow"] in ("POST", "GET")


def test_wrong_method_on_our_own_paths(suite: Suite) -> None:
    with suite.gateway.client() as client:
        answers = [client.post(path) for path in ("/health", "/docs", "/v1/models", "/v1/models/gpt-4")]
        answers.append(client.get(CHAT))
    assert [error(a, 405)["message"] for a in answers] == ["This path takes GET and HEAD only"] * 4 + [
        "This path takes POST only"
    ]


# --- errors ---------------------------------------------------------------------------------------------------------


def test_a_service_without_an_engine(suite: Suite) -> None:
    answer = suite.post("/v1/rerank", {"model": "absent"})
    told = error(answer, 503)
    assert told["message"] == "The service 'down' has no engine that is ready"
    assert int(answer.headers["retry-after"]) > 0


def test_an_engine_that_breaks_off(suite: Suite) -> None:
    told = error(suite.post(CHAT, {"model": "gpt-4", "stub": "drop"}), 502)
    assert told["message"] == "The engine of the service 'chat' broke off its answer"


def test_a_request_that_was_begun_is_not_sent_again(suite: Suite) -> None:
    before = len(suite.stubs["embedding-0"].asked)
    error(suite.post("/v1/embeddings", {"model": "gte", "stub": "drop"}), 502)
    assert len(suite.stubs["embedding-0"].asked) == before + 1


def chunks(size: int) -> Iterator[bytes]:
    yield b'{"model": "gpt-4", "x": "'
    yield from (b"y" * 65536 for _ in range(size // 65536))
    yield b'"}'


def test_a_body_just_within_the_limit(suite: Suite) -> None:
    frame = b'{"model": "gte", "x": "%s"}'
    body = frame % (b"y" * (suite.gateway.max_body_bytes - len(frame) + 2))
    assert len(body) == suite.gateway.max_body_bytes
    with suite.gateway.client() as client:
        assert client.post("/v1/embeddings", content=body).json()["bytes"] == len(body)


@pytest.mark.parametrize("chunked", [True, False])
def test_too_large(suite: Suite, chunked: bool) -> None:
    content = chunks(4 * 2**20) if chunked else b"".join(chunks(4 * 2**20))
    with suite.gateway.client() as client:
        told = error(client.post(CHAT, content=content), 413)
    assert told["message"] == "The request is larger than 1 MiB"


def raw(suite: Suite, request: bytes) -> httpx.Response:
    """Send bytes as they are."""
    with socket.create_connection(("127.0.0.1", suite.gateway.port), timeout=LIMIT) as connection:
        connection.sendall(request)
        answer = http.client.HTTPResponse(connection)
        answer.begin()
        content = answer.read()
        answer.close()
    headers = {"content-type": answer.getheader("content-type", "")}
    return httpx.Response(answer.status, headers=headers, content=content)


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"NONSENSE\r\n\r\n", 400),
        (b"GET /health HTTP/1.1\r\n\r\n", 400),
        (b"POST /rerank HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (b"POST /rerank HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabc", 400),
        (b"OPTIONS * HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 404),
        (b"GET /health HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n", 403),
        (b"GET /health HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 70_000 + b"\r\n\r\n", 431),
    ],
)
def test_what_envoy_itself_refuses(suite: Suite, request_bytes: bytes, status: int) -> None:
    error(raw(suite, request_bytes), status)


def test_http_1_0(suite: Suite) -> None:
    assert raw(suite, b"GET /health HTTP/1.0\r\n\r\n").json() == {"status": "ok"}


def test_client_cannot_steer_envoy(suite: Suite) -> None:
    headers = {"x-envoy-upstream-rq-timeout-ms": "1", "x-envoy-retry-on": "5xx", "x-request-id": "mine"}
    answer = suite.post("/v1/embeddings", {"model": "gte"}, headers=headers)
    arrived = suite.stubs["embedding-0"].asked[-1].headers
    assert answer.status_code == 200
    assert not {h for h in arrived if h.startswith("x-envoy-") and h != "x-envoy-external-address"}
    assert arrived["x-request-id"] == "mine"
    assert not [h for h in answer.headers if h.startswith("x-envoy")]


def test_metrics_lead_to_the_exporter_which_does_not_run_here(suite: Suite) -> None:
    found = suite.get("/metrics")
    assert error(found, 503)
    assert found.headers["retry-after"] == "5"


# --- a port of its own ----------------------------------------------------------------------------------------------


def test_own_port_serves_one_service(suite: Suite) -> None:
    with suite.gateway.client(suite.own_port) as client:
        assert client.post("/v1/embeddings", json={"input": "x"}).json()["stub"] == "embedding-0"
        assert client.post("/v1/rerank", json={"query": "x"}).json()["stub"] == "embedding-0"
        assert client.post("/tokenize", json={"model": "gte"}).json()["stub"] == "embedding-0"
        assert [m["id"] for m in client.get("/v1/models").json()["data"]] == ["gte"]
        assert error(client.post("/v1/embeddings", json={"model": "gpt-4"}), 404)["message"] == (
            "The model 'gpt-4' does not exist; models: 'gte'"
        )
        assert error(client.get("/v1/models/gpt-4"), 404)
        error(client.post(CHAT, json={"model": "gpt-4"}), 404)
        error(client.post(CHAT, json={}), 404)
        error(client.post(CHAT, json={"model": "gte"}), 400)
        error(client.get("/metrics"), 404)


def test_health_of_an_own_port_is_the_health_of_its_service(suite: Suite) -> None:
    with suite.gateway.client(suite.own_port) as client:
        assert client.get("/health").status_code == 200
    with suite.gateway.client(suite.down_port) as client:
        error(client.get("/health"), 503)


# --- streaming ------------------------------------------------------------------------------------------------------


def test_a_stream_passes_chunk_by_chunk(suite: Suite) -> None:
    """Each chunk arrives before the engine may send the next."""
    stub = suite.stubs["embedding-0"]
    body = {"model": "gte", "stub": {"stream": 3}}
    stub.release()
    with suite.gateway.client() as client, client.stream("POST", "/v1/embeddings", json=body) as answer:
        pieces = answer.iter_raw()
        assert next(pieces) == b"data: 0\n\n"
        stub.release()
        assert next(pieces) == b"data: 1\n\n"
        stub.release()
        assert next(pieces) == b"data: 2\n\n"
        assert list(pieces) == []


def test_the_log_holds_errors_only(suite: Suite) -> None:
    lines = suite.gateway.log.read_text().splitlines()
    assert all("larger" in line or "exceeds maximum" in line for line in lines), lines
