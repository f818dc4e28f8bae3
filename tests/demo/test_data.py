"""The generated training data: held-out words and wordings stay apart, and calls fit their schemas. Needs no torch."""

from __future__ import annotations

import json
import random

import pytest

from llmhost import demo
from scripts.demo_training import dialog, grammar, meanings, render, tools, topics
from scripts.demo_training.words import Words


def samples(count: int, held: bool = False) -> list[render.Sample]:
    rng = random.Random(4)
    return [dialog.make(rng, held) for _ in range(count)]


def test_at_least_sixty_intents_in_two_languages() -> None:
    intents = topics.intents()
    assert len(intents) >= 60
    for intent in intents:
        for language in ("en", "zh"):
            assert intent.wordings[language], intent.name
            assert intent.answers[language], intent.name


def test_every_capability_can_be_asked_for_in_two_languages() -> None:
    for capability in tools.capabilities():
        known = {param.id for param in capability.params}
        for wordings in capability.requests.values():
            assert wordings, capability.name
            for wording in wordings:
                assert set(tools._SLOT.findall(wording)) <= known, wording


@pytest.mark.parametrize(
    ("text", "wordings"),
    [("a (b|c|) d", {"a b d", "a c d", "a  d"}), ("ab?", {"a", "ab"}), ("x (y|z)?", {"x y", "x z", "x"})],
)
def test_grammar(text: str, wordings: set[str]) -> None:
    rng = random.Random(1)
    assert {grammar.expand(text, rng) for _ in range(200)} == wordings


def test_invented_words_of_training_and_evaluation_never_meet() -> None:
    seen = {Words(random.Random(n)).invented() for n in range(3000)}
    held = {Words(random.Random(n), held=True).invented() for n in range(3000)}
    assert not seen & held


def test_calls_name_an_offered_function_and_only_its_parameters() -> None:
    for sample in samples(1500):
        offered = {t["function"]["name"]: t["function"]["parameters"] for t in sample.tools}
        for call in sample.answer.get("tool_calls", ()):
            schema = offered[call["function"]["name"]]
            arguments = call["function"]["arguments"]
            assert set(arguments) <= set(schema["properties"])
            assert set(schema["required"]) <= set(arguments)
            assert list(arguments) == [name for name in schema["properties"] if name in arguments]


def test_at_most_four_functions_with_different_names() -> None:
    for sample in samples(1500):
        names = [t["function"]["name"] for t in sample.tools]
        assert len(names) == len(set(names)) <= 4


def test_the_same_seed_gives_the_same_conversations() -> None:
    assert [render.pieces(s) for s in samples(50)] == [render.pieces(s) for s in samples(50)]


def test_the_shipped_template_is_the_one_of_the_training() -> None:
    shipped = (demo.model_path("chat") / "chat_template.jinja").read_text(encoding="utf-8")
    assert shipped == render.TEMPLATE.read_text(encoding="utf-8")


def test_the_template_shows_schemas_as_clients_send_them() -> None:
    schema = {
        "required": ["city"],
        "properties": {
            "city": {"description": "The city", "type": "string", "title": "City"},
            "unit": {"anyOf": [{"enum": ["c", "f"], "type": "string"}, {"type": "null"}], "default": None},
            "days": {"type": ["integer", "null"]},
        },
        "type": "object",
        "additionalProperties": False,
    }
    tool = {"function": {"parameters": schema, "description": "Weather.\n\nArgs: …", "name": "w"}, "type": "function"}
    text = render.prompt(render.Sample([{"role": "user", "content": "hi"}], {}, [tool]))
    shown = json.loads(text.split("<tools>\n")[1].split("\n</tools>")[0])
    assert shown == {
        "name": "w",
        "description": "Weather.",
        "parameters": {
            "city": "string, required. The city",
            "unit": "one of c, f, optional",
            "days": "integer, optional",
        },
    }


def test_meanings_say_the_same_thing_in_both_languages() -> None:
    words = Words(random.Random(2))
    for _ in range(300):
        meaning = meanings.draw_meaning(words)
        assert meaning.ask(words, False)
        assert meaning.tell(words, True)
