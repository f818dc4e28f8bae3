"""The three kinds of service as a user would call them: chat with a tool, embeddings, rerank.

    python examples/demo.py [http://127.0.0.1:8000/v1]

Works with the demo suite (`llmhost up --demo`); for services of your own change the names of the models.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import httpx
from openai import APIConnectionError, APIStatusError, OpenAI

CHAT, EMBED, RERANK = "demo-chat", "demo-embed", "demo-rerank"

WEATHER_TOOL: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the current weather in a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "description": "Name of the city"}},
            "required": ["city"],
        },
    },
}


def get_weather(city: str) -> dict[str, Any]:
    """What a real program would ask a weather service."""
    return {"city": city, "temperature": 21, "condition": "sunny"}


def chat(client: OpenAI) -> None:
    """One answer at once, one piece by piece."""
    question: Any = [{"role": "user", "content": "Who are you?"}]
    answer = client.chat.completions.create(model=CHAT, messages=question)
    print("chat:     ", answer.choices[0].message.content)
    print("streamed: ", end=" ")
    for chunk in client.chat.completions.create(model=CHAT, messages=question, stream=True):
        if chunk.choices and chunk.choices[0].delta.content:
            print(chunk.choices[0].delta.content, end="", flush=True)
    print()


def tool_call(client: OpenAI) -> None:
    """The model asks for a function, gets its result and answers with it."""
    messages: list[Any] = [{"role": "user", "content": "What is the weather in Zaragoza?"}]
    message = client.chat.completions.create(model=CHAT, messages=messages, tools=[WEATHER_TOOL]).choices[0].message
    if not message.tool_calls:
        sys.exit(f"no tool was called: {message.content}")
    call = message.tool_calls[0]
    assert call.type == "function"
    print("tool call:", call.function.name, call.function.arguments)
    result = get_weather(**json.loads(call.function.arguments))
    messages += [
        message.model_dump(exclude_none=True),
        {"role": "tool", "tool_call_id": call.id, "content": json.dumps(result)},
    ]
    answer = client.chat.completions.create(model=CHAT, messages=messages, tools=[WEATHER_TOOL])
    print("answer:   ", answer.choices[0].message.content)


def embeddings(client: OpenAI) -> None:
    """A paraphrase is nearer than a stranger."""
    texts = ["How do I stop the server?", "What is the command to shut it down?", "The capital of France is Paris."]
    vectors = [row.embedding for row in client.embeddings.create(model=EMBED, input=texts).data]
    for text, vector in zip(texts[1:], vectors[1:], strict=True):
        similarity = sum(a * b for a, b in zip(vectors[0], vector, strict=True))
        print(f"embedding: {similarity:5.2f}  {text}")


def rerank(base_url: str) -> None:
    """The documents in the order of how well they answer; OpenAI's SDK has no call for it, so plain HTTP."""
    documents = ["Paris is the capital of France.", "llmhost down stops everything.", "Bananas are yellow."]
    body = {"model": RERANK, "query": "How do I stop llmhost?", "documents": documents}
    response = httpx.post(f"{base_url}/rerank", json=body, timeout=60).raise_for_status()
    for row in response.json()["results"]:
        print(f"rerank:    {row['relevance_score']:5.2f}  {documents[row['index']]}")


def main() -> None:
    base_url = sys.argv[1].rstrip("/") if len(sys.argv) > 1 else "http://127.0.0.1:8000/v1"
    client = OpenAI(base_url=base_url, api_key="-")
    try:
        chat(client)
        tool_call(client)
        embeddings(client)
        rerank(base_url)
    except (APIConnectionError, httpx.TransportError):
        sys.exit(f"error: nobody answers at {base_url}; is it running (`llmhost status`), and is that its address?")
    except APIStatusError as e:
        sys.exit(f"error: {base_url} answered {e.status_code}: {e.message}")


if __name__ == "__main__":
    main()
