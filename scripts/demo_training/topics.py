"""Plain questions and their answers: the fixed topics of data/intents.txt, and a few with slots."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache

from .grammar import expand, held_out
from .words import DATA, Words, phrases

UNKNOWN = {
    "en": "I do not know that. I am a very small demonstration model.",
    "zh": "这个我不知道。我只是一个很小的演示模型。",
}
NO_TOOL = {
    "en": "I have no function for that, so I cannot do it.",
    "zh": "我没有可以做这件事的函数，所以做不到。",
}


@dataclass(frozen=True)
class Plain:
    """A question, the one right answer, and the thought in between."""

    topic: str
    question: str
    answer: str
    thought: str


@dataclass
class Intent:
    """A topic with its wordings and answers, by language."""

    name: str
    wish: str
    wordings: dict[str, list[str]] = field(default_factory=lambda: {"en": [], "zh": []})
    answers: dict[str, str] = field(default_factory=dict)


@cache
def intents() -> list[Intent]:
    """Everything in data/intents.txt."""
    found: list[Intent] = []
    for line in (DATA / "intents.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            name, wish = line[1:].split("] ", 1)
            found.append(Intent(name, wish))
        elif line and not line.startswith("#"):
            key, text = line[:2], line[4:]
            if line[2] == "?":
                found[-1].wordings[key].append(text)
            else:
                found[-1].answers[key] = text
    return found


@cache
def capitals() -> list[list[str]]:
    """Rows of country and capital, in English and in Chinese."""
    lines = (DATA / "capitals.txt").read_text(encoding="utf-8").splitlines()
    return [[part.strip() for part in line.split("=")] for line in lines if line and not line.startswith("#")]


def plain(words: Words, zh: bool) -> Plain:
    """A question that needs no function.

    Every phrase is learnt. Held out are its combinations with the frames around it, by their hash.
    """
    while True:
        made = _SOURCES[words.rng.choices(range(len(_SOURCES)), _WEIGHTS)[0]](words, zh)
        framed = made.question
        if made.topic != "echo" and (words.held or words.chance(0.45)):
            framed = words.pick("frames_zh" if zh else "frames").format(made.question)
        framed = _typo(framed, words, zh) if made.topic != "echo" else framed
        if (framed != made.question and held_out(framed)) == words.held or made.topic == "echo":
            return Plain(made.topic, dress(framed, words, zh, made.topic != "echo"), made.answer, made.thought)


def _typo(text: str, words: Words, zh: bool) -> str:
    """Now and then a letter too few, two letters swapped, or a small word missing."""
    if zh or words.held or not words.chance(0.08) or len(text) < 9 or any(c.isdigit() for c in text):
        return text
    parts = text.split(" ")
    at = words.rng.randrange(len(parts))
    if parts[at] in ("the", "a", "is", "do", "you", "me", "of") and words.chance(0.6):
        return " ".join(parts[:at] + parts[at + 1 :])
    if len(parts[at]) > 3:
        cut = words.rng.randrange(1, len(parts[at]) - 1)
        word = parts[at]
        parts[at] = (
            word[:cut] + word[cut + 1 :]
            if words.chance(0.5)
            else word[:cut] + word[cut + 1] + word[cut] + word[cut + 2 :]
        )
    return " ".join(parts)


def dress(text: str, words: Words, zh: bool, shout: bool = True) -> str:
    """The same question as people type it: capitals, punctuation."""
    rng = words.rng
    if zh:
        return text + rng.choice(("", "？", "？", "。", "?", "！"))
    if words.chance(0.55):
        text = text[0].upper() + text[1:]
    elif shout and words.chance(0.04):
        text = text.upper()
    text = _proper(text) if words.chance(0.6) else text
    return text + rng.choice(("", "", "?", "?", ".", "!", "??", "..."))


def _proper(text: str) -> str:
    for low, high in (
        (" i ", " I "),
        ("i'm", "I'm"),
        ("vllm", "vLLM"),
        (" python", " Python"),
        (" linux", " Linux"),
        (" gpu", " GPU"),
        (" api", " API"),
        (" rag", " RAG"),
        (" docker", " Docker"),
        ("openai", "OpenAI"),
        ("langchain", "LangChain"),
        (" llm ", " LLM "),
        (" cpu", " CPU"),
    ):
        text = text.replace(low, high)
    return text


def _fixed(words: Words, zh: bool) -> Plain:
    intent = words.rng.choice(intents())
    language = "zh" if zh else "en"
    question = expand(words.rng.choice(intent.wordings[language]), words.rng)
    return Plain(intent.name, question, intent.answers[language], _no_function(intent.wish))


def _no_function(wish: str) -> str:
    return f"Here {wish}. No function is needed."


def _capital(words: Words, zh: bool) -> Plain:
    country, city, country_zh, city_zh = words.rng.choice(capitals())
    if zh:
        form = phrases()["capital zh"]
        return Plain(
            "capital",
            expand(form, words.rng).replace("C", country_zh),
            f"{country_zh}的首都是{city_zh}。",
            _no_function("the user asks for a capital"),
        )
    form = phrases()["capital en"]
    said = country if words.chance(0.7) else country.lower()
    return Plain(
        "capital",
        expand(form, words.rng).replace("C", said),
        f"The capital of {country} is {city}.",
        _no_function("the user asks for a capital"),
    )


def _sum(words: Words, zh: bool) -> Plain:
    a, b = words.rng.randint(0, 20), words.rng.randint(0, 20)
    minus = words.chance(0.35)
    a, b = (max(a, b), min(a, b)) if minus else (a, b)
    result = a - b if minus else a + b
    if zh:
        form = f"({a}(减|减去|-|－){b}|{a} - {b})" if minus else f"({a}(加|加上|+|＋){b}|{a} [+] {b})"
        question = expand(f"(算一下|计算|)({form}(等于多少|等于几|是多少|))", words.rng).replace("[+]", "+")
    else:
        form = f"({a} (minus|-) {b}|{a} take away {b})" if minus else f"({a} (plus|+|and) {b}|the sum of {a} and {b})"
        question = expand(f"(what is|what's|how much is|calculate|compute|tell me|) {form}", words.rng)
    sign = "-" if minus else "+"
    return Plain("sum", question, f"{a} {sign} {b} = {result}", _no_function("the user wants a small sum"))


def _echo(words: Words, zh: bool) -> Plain:
    text = words.text(zh, high=4)
    if zh:
        question = expand("(重复|请重复|跟我说|说|请说)(：|“|)", words.rng)
        question += text + ("”" if question.endswith("“") else "")
    else:
        question = expand('(repeat after me|say|repeat|echo|please repeat)(:| ")', words.rng)
        question += text + '"' if question.endswith('"') else f" {text}"
    return Plain("echo", question, text, _no_function("the user wants me to repeat something"))


def _unknown(words: Words, zh: bool) -> Plain:
    thing = words.text(zh, high=2)
    form = phrases()["unknown zh" if zh else "unknown en"]
    return Plain(
        "unknown",
        expand(form, words.rng).replace("T", thing),
        UNKNOWN["zh" if zh else "en"],
        _no_function("the user asks about something that I do not know"),
    )


def _introduce(words: Words, zh: bool) -> Plain:
    name = words.name(zh) if words.chance(0.7) else words.pick("people_zh" if zh else "people")
    form = phrases()["name told zh" if zh else "name told en"]
    answer = f"很高兴认识你，{name}。" if zh else f"Nice to meet you, {name}."
    return Plain("introduce", expand(form, words.rng).replace("N", name), answer, _no_function("the user says a name"))


def recall(words: Words, zh: bool) -> tuple[Plain, Plain]:
    """The user gives a name, and asks for it later."""
    told = _introduce(words, zh)
    name = told.answer[len("很高兴认识你，") : -1] if zh else told.answer[len("Nice to meet you, ") : -1]
    form = phrases()["name asked zh" if zh else "name asked en"]
    answer = f"你叫{name}。" if zh else f"Your name is {name}."
    question = dress(expand(form, words.rng), words, zh)
    return told, Plain("recall", question, answer, _no_function("the user asks for a name told before"))


_SOURCES: tuple[Callable[[Words, bool], Plain], ...] = (_fixed, _capital, _sum, _echo, _unknown, _introduce)
_WEIGHTS = (70, 8, 10, 4, 9, 2)
