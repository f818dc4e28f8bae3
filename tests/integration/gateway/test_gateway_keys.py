"""Keys, scopes and limits, as a client meets them: the real Envoy before stub engines."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import httpx
import openai
import pytest

from llmhost.plan.types import Limits, ServicePlan
from tests.integration.gateway.locked import Locked
from tests.integration.gateway.running import LIMIT, Gateway, eventually
from tests.integration.gateway.stub import Stub
from tests.integration.gateway.test_gateway_answers import error
from tests.integration.gateway.test_gateway_changes import load
from tests.unit.gateway.issued import issue
from tests.unit.gateway.plans import make_service

pytestmark = pytest.mark.integration

CHAT = "/v1/chat/completions"


@pytest.fixture
def locked(gateway: Gateway) -> Iterator[Locked]:
    with Locked(gateway) as made:
        yield made


def test_both_headers_and_what_clients_make_of_them(locked: Locked) -> None:
    key = locked.secret
    for headers in (
        {"authorization": f"Bearer {key}"},
        {"Authorization": f"bearer  {key}"},
        {"x-api-key": key},
        {"X-API-Key": key, "Authorization": "Basic dXNlcjpwYXNz"},
    ):
        with locked.gateway.client() as client:
            answer = client.post(CHAT, json={"model": "gpt-4"}, headers=headers)
        assert answer.status_code == 200, headers


def test_openai_client(locked: Locked) -> None:
    url = f"http://127.0.0.1:{locked.gateway.port}/v1"
    with openai.OpenAI(base_url=url, api_key=locked.chat_secret, max_retries=0) as client:
        assert [m.id for m in client.models.list()] == ["gpt-4"]
        with pytest.raises(openai.PermissionDeniedError, match="may not use the model 'gte'"):
            client.embeddings.create(model="gte", input="x")
    with (
        openai.OpenAI(base_url=url, api_key="sk-wrong", max_retries=0) as client,
        pytest.raises(openai.AuthenticationError, match="not valid"),
    ):
        client.models.list()


def test_the_engine_learns_nothing_of_the_key(locked: Locked) -> None:
    locked.post(CHAT, "gpt-4", locked.secret, **{"x-api-key": locked.secret})
    (seen,) = locked.stubs["chat"].asked
    assert not {name for name in seen.headers if "key" in name or "auth" in name or "llmhost" in name}
    assert locked.secret not in str(seen.headers)


def test_no_key_a_wrong_one_and_none_of_ours(locked: Locked) -> None:
    told = error(locked.post(CHAT, "gpt-4"), 401)
    assert told["message"].startswith("No API key")
    wrong = ("sk-", "x", "-", locked.secret[:-1], locked.secret + "A", locked.secret.swapcase(), "sk-ä", "Bearer x")
    for key in wrong:
        answer = locked.post(CHAT, "gpt-4", **{"x-api-key": key.encode("utf-8")})  # type: ignore[arg-type]
        assert error(answer, 401)["type"] == "AuthenticationError", key
        assert answer.headers["www-authenticate"] == "Bearer"
    assert not locked.stubs["chat"].asked


def test_what_only_the_gateway_may_say_is_not_believed(locked: Locked) -> None:
    user, basic = locked.everything.user, f"Basic {locked.secret.removeprefix('sk-')}"
    for headers in ({"x-llmhost-user": user}, {"x-llmhost-credential": basic}, {"authorization": basic}):
        with locked.gateway.client() as client:
            error(client.get("/v1/models", headers=headers), 401)
            error(client.post(CHAT, json={"model": "gpt-4"}, headers=headers), 401)
    told = error(locked.post("/v1/embeddings", "gte", locked.chat_secret, **{"x-llmhost-user": user}), 403)
    assert "'chat-only'" in told["message"]


def test_only_health_is_open(locked: Locked) -> None:
    own = locked.services[1].port
    for port in (locked.gateway.port, own):
        assert locked.get("/health", port=port).status_code == 200
        for path in ("/v1/models", "/v1/models/gte", "/docs", "/openapi.json", "/metrics", "/nothing", "/healthx"):
            error(locked.get(path, port=port), 401)


@pytest.mark.parametrize("path", ["/v1/embeddings", "/v2/embed", "/v1/rerank", "/tokenize", "/pooling"])
@pytest.mark.parametrize("model", ["gte", None, ""])
def test_a_key_of_another_service_reaches_no_engine(locked: Locked, path: str, model: str | None) -> None:
    answer = locked.post(path, model, locked.chat_secret)
    # Without a model a path that any kind answers is the one service that the key may use.
    if path == "/tokenize" and not model:
        assert answer.json()["stub"] == "chat"
    else:
        error(answer, 403 if model else 404)
    assert not locked.stubs["embedding"].asked


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'"x"', b"null", b'{"model": ["gte"]}', b'{"model": 5}'])
def test_no_body_leads_around_the_scope(locked: Locked, body: bytes) -> None:
    with locked.gateway.client() as client:
        answer = client.post("/v1/embeddings", content=body, headers={"x-api-key": locked.chat_secret})
    assert answer.status_code in (400, 404)
    assert not locked.stubs["embedding"].asked


def test_a_key_is_told_of_its_services_only(locked: Locked) -> None:
    assert [m["id"] for m in locked.get("/v1/models", locked.chat_secret).json()["data"]] == ["gpt-4"]
    assert [m["id"] for m in locked.get("/v1/models", locked.secret).json()["data"]] == ["gpt-4", "gte"]
    assert "gte" not in error(locked.get("/v1/models/gte", locked.chat_secret), 404)["message"]
    assert "gte" not in locked.get("/docs", locked.chat_secret).text
    assert "gte" not in error(locked.post(CHAT, "nobody", locked.chat_secret), 404)["message"]
    assert "gte" not in error(locked.post("/v1/embeddings", None, locked.chat_secret), 404)["message"]


def test_scope_holds_on_a_port_of_its_own(locked: Locked) -> None:
    with locked.gateway.client(locked.services[1].port) as client:
        for key, status in ((locked.embed_secret, 200), (locked.secret, 200), (locked.chat_secret, 403)):
            answer = client.post("/v1/embeddings", json={"model": "gte"}, headers={"x-api-key": key})
            assert answer.status_code == status
        assert client.post("/v1/embeddings", json={}, headers={"x-api-key": locked.chat_secret}).status_code == 404
    assert len(locked.stubs["embedding"].asked) == 2


def test_a_key_expires_by_itself(locked: Locked) -> None:
    soon, text = issue("soon", expires=int(time.time()) + 3)
    locked.gateway.keys += (soon,)
    locked.gateway.change(*locked.services)
    assert locked.post(CHAT, "gpt-4", text).status_code == 200
    eventually(lambda: locked.post(CHAT, "gpt-4", text).status_code == 401, "the key expires")
    for answer in (locked.post(CHAT, "gpt-4", text), locked.get("/v1/models", text)):
        assert error(answer, 401)["message"] == "The API key 'soon' has expired"


def test_the_last_key_is_revoked_and_the_gateway_stays_locked(locked: Locked) -> None:
    locked.gateway.keys, locked.gateway.locked = (), True
    locked.gateway.change(*locked.services)
    error(locked.post(CHAT, "gpt-4", locked.secret), 401)
    error(locked.post(CHAT, "gpt-4"), 401)
    assert locked.get("/health").status_code == 200


def test_keys_come_and_go_without_a_lost_request_or_a_closed_connection(gateway: Gateway) -> None:
    """From open to locked, keys added and revoked, under load over connections that are kept; a stream stays open."""
    service = make_service(gateway.root, "chat", "chat", ("steady",))
    ours, text = issue("ours")
    with Stub(Path(service.replicas[0].socket)) as stub, gateway.client() as client:
        gateway.start(service)
        gateway.wait_healthy(chat=1)
        stub.release()
        body = {"model": "steady", "stub": {"stream": 2}}
        with (
            load(gateway.port, headers={"authorization": f"Bearer {text}"}) as running,
            client.stream("POST", CHAT, json=body) as stream,
        ):
            pieces = stream.iter_raw()
            assert next(pieces) == b"data: 0\n\n"
            for others in ([], ["a"], ["a", "b"], ["b"], []):
                gateway.keys = (ours, *(issue(name)[0] for name in others))
                gateway.change(service)
                running.wait_for_more()
            stub.release()
            assert list(pieces) == [b"data: 1\n\n"]
        assert running.failed == []
    assert client.is_closed


def test_a_revoked_key_is_refused_on_the_connection_that_it_used(locked: Locked) -> None:
    with locked.gateway.client() as client:
        headers = {"x-api-key": locked.secret}
        assert client.get("/v1/models", headers=headers).status_code == 200
        locked.gateway.keys = (locked.chat_only,)
        locked.gateway.change(*locked.services)
        error(client.get("/v1/models", headers=headers), 401)


# --- limits ---------------------------------------------------------------------------------------------------------


def test_requests_per_minute_of_a_key(locked: Locked) -> None:
    few, text = issue("few", requests_per_minute=2)
    locked.gateway.keys += (few,)
    locked.gateway.change(*locked.services)
    answers = [locked.post(CHAT, "gpt-4", text) for _ in range(3)]
    assert [a.status_code for a in answers] == [200, 200, 429]
    assert [a.headers["x-ratelimit-remaining-requests"] for a in answers] == ["1", "0", "0"]
    assert {a.headers["x-ratelimit-limit-requests"] for a in answers} == {"2"}
    assert error(answers[2], 429)["type"] == "RateLimitError"
    assert 0 < int(answers[2].headers["retry-after"]) <= 30
    other = locked.post(CHAT, "gpt-4", locked.secret)
    assert other.status_code == 200
    assert "x-ratelimit-limit" not in other.headers
    with openai.OpenAI(
        base_url=f"http://127.0.0.1:{locked.gateway.port}/v1", api_key=text, max_retries=0
    ) as client:  # fmt: skip
        with pytest.raises(openai.RateLimitError) as caught:
            client.models.list()
        assert int(caught.value.response.headers["retry-after"]) > 0


def limited(gateway: Gateway, limits: Limits) -> tuple[ServicePlan, ServicePlan]:
    """A chat service with limits beside another, so that a request is for it only when its body says so."""
    first = make_service(gateway.root, "chat", "chat", ("gpt-4",))
    return replace(first, limits=limits), make_service(gateway.root, "other", "chat", ("other",))


def test_requests_per_minute_of_a_service(gateway: Gateway) -> None:
    services = limited(gateway, Limits(requests_per_minute=2))
    with Stub(Path(services[0].replicas[0].socket)), Stub(Path(services[1].replicas[0].socket)):
        gateway.start(*services)
        gateway.wait_healthy(chat=1, other=1)
        with gateway.client() as client:
            answers = [client.post(CHAT, json={"model": "gpt-4"}) for _ in range(3)]
            assert [a.status_code for a in answers] == [200, 200, 429]
            assert error(answers[2], 429)["type"] == "RateLimitError"
            assert int(answers[2].headers["retry-after"]) == 30
            assert [client.post(CHAT, json={"model": "other"}).status_code for _ in range(4)] == [200] * 4


def test_a_service_counts_whoever_asks_it_however(locked: Locked) -> None:
    """Keys of different scopes have routes of their own, and so have paths; what is counted is one service."""
    chat, embedding = locked.services
    locked.services = (replace(chat, limits=Limits(requests_per_minute=3)), embedding)
    locked.gateway.change(*locked.services)
    assert locked.post(CHAT, "gpt-4", locked.secret).status_code == 200
    assert locked.post(CHAT, "gpt-4", locked.chat_secret).status_code == 200
    assert locked.post(CHAT, None, locked.chat_secret).status_code == 200
    error(locked.post("/tokenize", "gpt-4", locked.secret), 429)
    error(locked.post(CHAT, "gpt-4", locked.chat_secret), 429)
    assert locked.post("/v1/embeddings", "gte", locked.secret).status_code == 200


def test_requests_at_once_of_a_service(gateway: Gateway) -> None:
    services = limited(gateway, Limits(concurrent_requests=2))
    with Stub(Path(services[0].replicas[0].socket)) as stub:
        gateway.start(*services)
        gateway.wait_healthy(chat=1)
        answers: list[int] = []

        def hold() -> None:
            with gateway.client() as client:
                answers.append(client.post(CHAT, json={"model": "gpt-4", "stub": "hold"}).status_code)

        holders = [threading.Thread(target=hold) for _ in range(2)]
        for holder in holders:
            holder.start()
        eventually(lambda: len(stub.asked) == 2, "two requests are with the engine")
        with gateway.client() as client:
            refused = client.post(CHAT, json={"model": "gpt-4"})
            assert "as many requests at once as it may have" in error(refused, 429)["message"]
            assert refused.headers["retry-after"] == "1"
            stub.release()
            stub.release()
            for holder in holders:
                holder.join(LIMIT)
            assert answers == [200, 200]
            assert client.post(CHAT, json={"model": "gpt-4"}).status_code == 200


def test_body_size_of_a_service(gateway: Gateway) -> None:
    services = limited(gateway, Limits(max_body_bytes=100_000))
    with Stub(Path(services[0].replicas[0].socket)), Stub(Path(services[1].replicas[0].socket)):
        gateway.start(*services)
        gateway.wait_healthy(chat=1, other=1)

        def ask(path: str, model: str, size: int, chunked: bool = False) -> httpx.Response:
            body = b'{"model": "%s", "x": "%s"}' % (model.encode(), b"y" * size)
            with gateway.client() as client:
                return client.post(path, content=iter([body]) if chunked else body)

        assert ask(CHAT, "gpt-4", 90_000).status_code == 200
        told = error(ask(CHAT, "gpt-4", 110_000), 413)
        assert told["message"] == "The request is larger than the 0.0954 MiB that the service 'chat' takes"
        # The gateway has the whole body before it looks for the route, so a length need not be announced.
        assert ask(CHAT, "gpt-4", 90_000, chunked=True).status_code == 200
        assert error(ask(CHAT, "gpt-4", 110_000, chunked=True), 413)["message"] == told["message"]
        assert "larger than 1 MiB" in error(ask(CHAT, "gpt-4", 2**20), 413)["message"]
        assert ask(CHAT, "other", 110_000).status_code == 200


@contextmanager
def held(locked: Locked, key: str, *models: str) -> Iterator[list[int]]:
    """Requests of a key that engines hold while the block runs; afterwards, the statuses of their answers."""
    paths = {"gpt-4": CHAT, "gte": "/v1/embeddings"}
    stubs = {"gpt-4": locked.stubs["chat"], "gte": locked.stubs["embedding"]}
    answers: list[int] = []

    def hold(model: str) -> None:
        with locked.gateway.client() as client:
            body = {"model": model, "stub": "hold"}
            answers.append(client.post(paths[model], json=body, headers={"x-api-key": key}).status_code)

    before = locked.reached
    holders = [threading.Thread(target=hold, args=(model,)) for model in models]
    for holder in holders:
        holder.start()
    eventually(lambda: locked.reached == before + len(models), "the engines have the requests")
    yield answers
    for model in models:
        stubs[model].release()
    for holder in holders:
        holder.join(LIMIT)


def busy(answer: httpx.Response, whose: str) -> None:
    assert error(answer, 429)["message"] == f"{whose} has as many requests at once as it may have"
    assert answer.headers["retry-after"] == "1"


def test_requests_at_once_of_a_key(locked: Locked) -> None:
    """At all services together, on every port; nobody else is counted."""
    few, text = issue("a.few", concurrent_requests=2)
    locked.gateway.keys += (few,)
    locked.gateway.change(*locked.services)
    with held(locked, text, "gpt-4", "gte") as answers:
        busy(locked.post(CHAT, "gpt-4", text), "The API key")
        port = locked.services[1].port
        with locked.gateway.client(port) as client:
            busy(client.post("/v1/embeddings", json={}, headers={"x-api-key": text}), "The API key")
        assert locked.get("/v1/models", text).status_code == 200  # no engine works on it
        error(locked.post(CHAT, "nobody", text), 404)
        assert locked.post(CHAT, "gpt-4", locked.secret).status_code == 200
    assert answers == [200, 200]
    with held(locked, text, "gpt-4", "gpt-4"):
        busy(locked.post(CHAT, None, text), "The API key")


def test_a_stream_of_a_limited_key_counts_until_its_last_byte(locked: Locked) -> None:
    one, text = issue("one", concurrent_requests=1)
    locked.gateway.keys += (one,)
    locked.gateway.change(*locked.services)
    stub = locked.stubs["chat"]
    body, key = {"model": "gpt-4", "stub": {"stream": 3}}, {"authorization": f"Bearer {text}"}
    with locked.gateway.client() as client, client.stream("POST", CHAT, json=body, headers=key) as stream:
        pieces = stream.iter_raw()
        for number in range(3):
            busy(locked.post(CHAT, "gpt-4", text), "The API key")
            stub.release()
            assert next(pieces) == b"data: %d\n\n" % number  # not held back on the way, either
        assert list(pieces) == []
    assert locked.post(CHAT, "gpt-4", text).status_code == 200
    with locked.gateway.client() as client, client.stream("POST", CHAT, json=body, headers=key) as stream:
        stub.release()
        next(stream.iter_raw())
    eventually(lambda: stub.abandoned == 1, "the engine knows that the client has left")
    eventually(lambda: locked.post(CHAT, "gpt-4", text).status_code == 200, "it is not counted any more")


def test_a_limited_key_comes_and_goes_under_a_stream_of_another(locked: Locked) -> None:
    """Another limit of one key is a new cluster: streams of all of them go on."""
    one, text = issue("one", concurrent_requests=1)
    other, others = issue("other", concurrent_requests=1)
    locked.gateway.keys += (one, other)
    locked.gateway.change(*locked.services)
    stub, body = locked.stubs["chat"], {"model": "gpt-4", "stub": {"stream": 2}}
    with locked.gateway.client() as client, ExitStack() as stack:
        streams = [
            stack.enter_context(client.stream("POST", CHAT, json=body, headers={"x-api-key": key}))
            for key in (text, others)
        ]
        wider = replace(one, limits=Limits(concurrent_requests=2))
        for keys in ((wider, other), (wider,), (locked.everything,)):
            locked.gateway.keys = keys
            locked.gateway.change(*locked.services)
        for _ in range(4):
            stub.release()
        assert [b"".join(stream.iter_raw()) for stream in streams] == [b"data: 0\n\ndata: 1\n\n"] * 2


def test_what_a_limited_key_is_told_and_an_engine_sees_is_as_ever(locked: Locked) -> None:
    chat, embedding = locked.services
    few, text = issue("few", concurrent_requests=5)
    locked.gateway.keys += (few,)
    locked.services = (replace(chat, limits=Limits(concurrent_requests=1)), embedding)
    locked.gateway.change(*locked.services)
    locked.gateway.wait_healthy(chat=1, embedding=1)
    with held(locked, text, "gpt-4"):
        busy(locked.post(CHAT, "gpt-4", text), "The service 'chat'")
    mine = {"x-llmhost-way": "chat", "x-llmhost-service": "embedding", "x-llmhost-user": "everything.1"}
    for key in (text, locked.secret):
        assert locked.post(f"{CHAT}?a=b", "gpt-4", key, **mine).json()["stub"] == "chat"
    limited, straight = locked.stubs["chat"].asked[-2:]
    changing = ("x-request-id", "x-llmhost-prefix")
    assert limited.target == straight.target == f"{CHAT}?a=b"
    heads = [{k: v for k, v in seen.headers.items() if k not in changing} for seen in (limited, straight)]
    assert heads[0] == heads[1]
    assert not any(name.startswith("x-llmhost") for name in heads[0])
    locked.stubs["chat"].healthy = False
    locked.gateway.wait_healthy(chat=0)
    refused = locked.post(CHAT, "gpt-4", text)
    assert error(refused, 503)["message"] == "The service 'chat' has no engine that is ready"
    assert refused.headers["retry-after"] == "5"


def test_body_size_of_a_key(locked: Locked) -> None:
    small, text = issue("small", max_body_bytes=100_000)
    locked.gateway.keys += (small,)
    locked.gateway.change(*locked.services)

    def ask(key: str, size: int, chunked: bool = False) -> httpx.Response:
        body = b'{"model": "gpt-4", "x": "%s"}' % (b"y" * size)
        with locked.gateway.client() as client:
            return client.post(CHAT, content=iter([body]) if chunked else body, headers={"x-api-key": key})

    reached = locked.reached
    for chunked in (False, True):
        said = error(ask(text, 110_000, chunked), 413)["message"]
        assert said == "The API key 'small' takes bodies up to 0.0954 MiB; this one is larger"
    assert locked.reached == reached
    for chunked in (False, True):
        assert ask(text, 90_000, chunked).status_code == 200
        assert ask(locked.secret, 110_000, chunked).status_code == 200
    with locked.gateway.client() as client:  # without a body there is no length, either
        answer = client.request("POST", "/v1/responses/resp_1/cancel", headers={"x-api-key": text})
        assert answer.json()["stub"] == "chat"


def test_a_default_service_answers_what_names_no_model(gateway: Gateway) -> None:
    first = make_service(gateway.root, "chat", "chat", ("gpt-4",))
    second = replace(make_service(gateway.root, "other", "chat", ("other",)), default=True)
    with Stub(Path(first.replicas[0].socket), "chat"), Stub(Path(second.replicas[0].socket), "other"):
        gateway.start(first, second)
        gateway.wait_healthy(chat=1, other=1)
        with gateway.client() as client:
            assert client.post(CHAT, json={}).json()["stub"] == "other"
            assert client.post(CHAT, json={"model": "gpt-4"}).json()["stub"] == "chat"
            assert client.get("/v1/responses/resp_1").json()["stub"] == "other"
            error(client.post(CHAT, json={"model": "nobody"}), 404)


def test_a_gateway_that_is_short_of_memory_says_so(gateway: Gateway) -> None:
    gateway.edit = lambda text: text.replace(str(2 * 2**30), str(2**20))
    service = make_service(gateway.root, "chat", "chat", ("gpt-4",))
    with Stub(Path(service.replicas[0].socket)) as stub:
        gateway.launch(service)
        with gateway.client() as client:

            def answer() -> httpx.Response | None:
                try:
                    return client.post(CHAT, json={"model": "gpt-4"})
                except httpx.HTTPError:
                    return None

            eventually(lambda: (found := answer()) is not None and "memory" in found.text, "it is short of memory")
            before = len(stub.asked)  # some, until the gateway has looked at its memory
            refused = client.post(CHAT, json={"model": "gpt-4"})
        assert "out of memory" in error(refused, 503)["message"]
        assert int(refused.headers["retry-after"]) > 0
        assert len(stub.asked) == before
