"""LangChain on llmhost: a chat model that calls tools, and embeddings for a RAG chain.

python examples/langchain_demo.py [http://127.0.0.1:8000/v1]
"""

from __future__ import annotations

import sys

from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from openai import APIConnectionError, APIStatusError
from pydantic import SecretStr

NO_KEY = SecretStr("-")


@tool
def get_weather(city: str) -> str:
    """Get the current weather in a city."""
    return f"sunny in {city}"


def main() -> None:
    base_url = sys.argv[1].rstrip("/") if len(sys.argv) > 1 else "http://127.0.0.1:8000/v1"
    try:
        ask(base_url)
    except APIConnectionError:
        sys.exit(f"error: nobody answers at {base_url}; is it running (`llmhost status`), and is that its address?")
    except APIStatusError as e:
        sys.exit(f"error: {base_url} answered {e.status_code}: {e.message}")


def ask(base_url: str) -> None:
    """A tool call, and two vectors."""
    model = ChatOpenAI(base_url=base_url, api_key=NO_KEY, model="demo-chat").bind_tools([get_weather])
    print("tool calls:", model.invoke("What is the weather in Zaragoza?").tool_calls)

    # check_embedding_ctx_length=False: otherwise LangChain sends token numbers of OpenAI's own tokenizer.
    embeddings = OpenAIEmbeddings(
        base_url=base_url, api_key=NO_KEY, model="demo-embed", check_embedding_ctx_length=False
    )
    vectors = embeddings.embed_documents(["How do I stop the server?", "What is the capital of France?"])
    print("embeddings:", len(vectors), "vectors of", len(vectors[0]), "dimensions")


if __name__ == "__main__":
    main()
