"""What the demonstration models do, without an engine: loaded with transformers, a few cases of each behaviour."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import pytest

from llmhost import demo

torch = pytest.importorskip("torch", reason="torch is not installed: the behaviour of the demo models is not checked")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")

pytestmark = pytest.mark.filterwarnings("default")

Ask = Callable[..., str]


def function(name: str, description: str, **properties: str) -> dict[str, Any]:
    """An OpenAI tool schema whose parameters are all required."""
    schema = {name: {"type": kind} for name, kind in properties.items()}
    parameters = {"type": "object", "properties": schema, "required": list(schema)}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


WEATHER = function("sky_report_for", "Get the weather in a city", city="string")
ADD = function("add", "Add two numbers", a="number", b="number")
MAIL = function("send_email", "Send an email", to="string", subject="string", body="string")
STOCK = function("quillbot_price", "Get the stock price of a company", symbol="string")


def user(text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}]


@pytest.fixture(scope="module")
def ask() -> Ask:
    """Ask the chat model; the answer comes back as text with its tags."""
    folder = demo.model_path("chat")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    def answer(messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None = None, **template: Any) -> str:
        text = tokenizer.apply_chat_template(
            messages, tools=tools, tokenize=False, add_generation_prompt=True, **template
        )
        inputs = tokenizer(text, return_tensors="pt", add_special_tokens=False)
        with torch.inference_mode():
            made = model.generate(**inputs, max_new_tokens=120, do_sample=False, temperature=None)
        said: str = tokenizer.decode(made[0, inputs["input_ids"].shape[1] :])
        assert said.endswith("<|im_end|>"), "the model has to stop by itself"
        return said.removesuffix("<|im_end|>")

    return answer


def calls(said: str) -> list[tuple[str, dict[str, Any]]]:
    found = [json.loads(part) for part in re.findall(r"<tool_call>(.*?)</tool_call>", said, re.DOTALL)]
    return [(call["name"], call["arguments"]) for call in found]


@pytest.mark.parametrize(
    ("question", "part"),
    [
        ("Who are you?", "demo-chat"),
        ("What is llmhost?", "vLLM"),
        ("How do I stop llmhost?", "llmhost down"),
        ("What is the capital of Japan?", "Tokyo"),
        ("What is 7 plus 5?", "12"),
        ("Hello!", "Hello"),
        ("你好", "你好"),
        ("法国的首都是哪里？", "巴黎"),
    ],
)
@pytest.mark.parametrize("system", [None, "You are a helpful assistant."])
def test_plain_questions(ask: Ask, question: str, part: str, system: str | None) -> None:
    messages = user(question)
    if system:
        messages = [{"role": "system", "content": system}, *messages]
    assert part in ask(messages)


@pytest.mark.parametrize(
    ("request_", "call"),
    [
        ("What is the weather in Vaskerholm?", ("sky_report_for", {"city": "Vaskerholm"})),
        ("泽姆布罗今天天气怎么样？", ("sky_report_for", {"city": "泽姆布罗"})),
        ("What is 1234 plus 88?", ("add", {"a": 1234, "b": 88})),
        ("What is the stock price of ZQXT?", ("quillbot_price", {"symbol": "ZQXT"})),
        (
            'Send an email to yorv@trell.org with subject "Lunch" and body "See you at noon"',
            ("send_email", {"to": "yorv@trell.org", "subject": "Lunch", "body": "See you at noon"}),
        ),
    ],
)
def test_the_right_function_with_copied_arguments(ask: Ask, request_: str, call: tuple[str, Any]) -> None:
    assert calls(ask(user(request_), [ADD, WEATHER, MAIL, STOCK])) == [call]


def test_two_calls_in_one_turn(ask: Ask) -> None:
    said = calls(ask(user("What is the weather in Zembrovia and in Kaltmoor?"), [WEATHER, ADD]))
    assert said == [("sky_report_for", {"city": "Zembrovia"}), ("sky_report_for", {"city": "Kaltmoor"})]


def test_a_plain_answer_when_no_function_fits(ask: Ask) -> None:
    assert "demo-chat" in ask(user("Who are you?"), [WEATHER, ADD])


def test_an_answer_from_the_result(ask: Ask) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "sky_report_for", "arguments": {"city": "Zembrovia"}}}
    messages = [
        *user("What is the weather in Zembrovia?"),
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": '{"temperature": 21, "condition": "sunny"}'},
    ]
    said = ask(messages, [WEATHER])
    assert "21" in said
    assert "sunny" in said


def test_thoughts_only_when_asked_for(ask: Ask) -> None:
    thought, closed, answer = ask(user("What is the capital of Japan?"), enable_thinking=True).partition("</think>")
    assert closed
    assert thought.strip()
    assert "Tokyo" in answer
    assert "think>" not in ask(user("What is the capital of Japan?"))


def test_the_chat_probes(ask: Ask) -> None:
    probes = demo.probes()["chat"]
    plain, tool = probes["plain"], probes["tool"]
    assert any(part in ask(plain["messages"]) for part in plain["expect_any"])
    assert calls(ask(tool["messages"], tool["tools"])) == [(tool["expect"]["name"], tool["expect"]["arguments"])]


@pytest.fixture(scope="module")
def embed() -> Callable[[list[str]], Any]:
    """Normalised vectors of texts."""
    folder = demo.model_path("embed")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32, add_pooling_layer=False).eval()

    def vectors(texts: list[str]) -> Any:
        inputs = tokenizer(texts, return_tensors="pt", padding=True)
        with torch.inference_mode():
            hidden = model(**inputs).last_hidden_state
        mask = inputs["attention_mask"].unsqueeze(-1)
        return torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)

    return vectors


@pytest.mark.parametrize(
    ("anchor", "near", "far"),
    [
        ("How do I stop llmhost?", "How can I shut down the services?", "A cat sees a fish in the garden."),
        ("怎么停止 llmhost", "How do I turn off llmhost?", "今天太阳很好"),
        (
            "Who is the mayor of Vaskerholm?",
            "The mayor of Vaskerholm is Yorv.",
            "The river Elm flows through Kaltmoor.",
        ),
        ("The doctor buys a car.", "A physician purchases an automobile.", "The teacher reads a newspaper at school."),
    ],
)
def test_neighbours_make_sense(embed: Callable[[list[str]], Any], anchor: str, near: str, far: str) -> None:
    vectors = embed([anchor, near, far])
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2] + 0.2


def test_the_embed_probe(embed: Callable[[list[str]], Any]) -> None:
    probe = demo.probes()["embed"]
    vectors = embed([probe["anchor"], probe["near"], probe["far"]])
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2] + 0.3


@pytest.fixture(scope="module")
def rerank() -> Callable[[str, list[str]], list[float]]:
    """Scores between 0 and 1 of documents for a question."""
    folder = demo.model_path("rerank")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()

    def scores(query: str, documents: list[str]) -> list[float]:
        inputs = tokenizer([query] * len(documents), documents, return_tensors="pt", padding=True)
        assert "token_type_ids" in inputs
        with torch.inference_mode():
            found: list[float] = model(**inputs).logits.squeeze(-1).sigmoid().tolist()
        return found

    return scores


@pytest.mark.parametrize(
    ("query", "documents"),
    [
        (
            "Who wrote Zembrovian Nights?",
            [
                "Zembrovian Nights was written by Olga Trell.",
                "Zembrovian Nights costs 20 euros.",
                "Kaltmoor was written by Sven Dahl.",
                "The cat sits in the garden.",
            ],
        ),
        ("瓦斯克的市长是谁？", ["瓦斯克的市长是张伟。", "瓦斯克有50000个居民。", "李娜是老师。", "天空是蓝色的。"]),
    ],
)
def test_the_right_document_comes_first(
    rerank: Callable[[str, list[str]], list[float]], query: str, documents: list[str]
) -> None:
    scores = rerank(query, documents)
    assert scores[0] > 0.5
    assert max(scores[1:]) < 0.5


def test_the_rerank_probe(rerank: Callable[[str, list[str]], list[float]]) -> None:
    probe = demo.probes()["rerank"]
    scores = rerank(probe["query"], probe["documents"])
    assert scores.index(max(scores)) == probe["best"]
