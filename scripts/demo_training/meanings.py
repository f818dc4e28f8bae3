"""Meanings that can be said in many ways: the data of the embedding model and of the reranker."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from .grammar import expand, held_out
from .tools import capabilities
from .topics import capitals, dress, intents
from .words import DATA, Words, draw, phrases

Say = Callable[[Words, bool], str]


@dataclass(frozen=True)
class Meaning:
    """Something that can be asked (``ask``) and stated (``tell``) in English and in Chinese."""

    key: str
    ask: Say
    tell: Say
    subject: str = ""


def draw_meaning(words: Words) -> Meaning:
    """A random meaning."""
    return words.rng.choices(_SOURCES, _WEIGHTS)[0](words)


def wording(form: str, words: Words) -> str:
    """A wording of the right side of the split, where the form has one."""
    text = ""
    for _ in range(12):
        text = expand(form, words.rng)
        if held_out(text) == words.held:
            break
    return text


def fill(text: str, first: str, first_value: str, second: str, second_value: str) -> str:
    """Put two values into a wording; a value may hold the letter of the other slot."""
    marked = text.replace(first, "\0").replace(second, "\1")
    return marked.replace("\0", first_value).replace("\1", second_value)


def _intent(words: Words) -> Meaning:
    intent = words.rng.choice(intents())

    def question(w: Words, zh: bool) -> str:
        return dress(wording(w.rng.choice(intent.wordings["zh" if zh else "en"]), w), w, zh)

    return Meaning(intent.name, question, lambda _w, zh: intent.answers["zh" if zh else "en"])


def _capital(words: Words) -> Meaning:
    country, city, country_zh, city_zh = words.rng.choice(capitals())

    def put(text: str, zh: bool) -> str:
        return fill(text, "C", country_zh if zh else country, "T", city_zh if zh else city)

    return Meaning(
        f"capital {country}",
        lambda w, zh: dress(put(wording(phrases()["capital asked zh" if zh else "capital asked en"], w), zh), w, zh),
        lambda w, zh: _sentence(put(wording(phrases()["capital told zh" if zh else "capital told en"], w), zh), w, zh),
        country,
    )


def _request(words: Words) -> Meaning:
    capability = words.rng.choice(capabilities())
    values = {p.id: draw(words, p.kind, words.chance(0.2)).said for p in capability.params}

    def say(w: Words, zh: bool) -> str:
        text = wording(w.rng.choice(capability.requests["zh" if zh else "en"]), w)
        for name, value in values.items():
            text = text.replace("{" + name + "}", value)
        return _sentence(text, w, zh)

    return Meaning(f"{capability.name} {sorted(values.items())}", say, say)


# --- facts about a subject -------------------------------------------------------------------------------------------


@dataclass
class Fact:
    """A kind of fact, with wordings: en. and zh. state it, en? and zh? ask for it."""

    name: str
    subject: str
    object: str
    forms: dict[str, str]


@cache
def fact_kinds() -> list[Fact]:
    """Everything in data/facts.txt."""
    found: list[Fact] = []
    for line in (DATA / "facts.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            name, rest = line[1:].split("] ")
            found.append(Fact(name, *rest.split(), {}))
        elif line and not line.startswith("#"):
            found[-1].forms[line[:3]] = line[4:]
    return found


def _number(words: Words, low: int, high: int) -> str:
    return str(words.rng.randint(low, high))


_OBJECTS: dict[str, Callable[[Words], str]] = {
    "job": lambda w: w.pick("jobs"),
    "money": lambda w: f"{_number(w, 1, 900)} {w.rng.choice(('euros', 'dollars', 'yuan', 'pounds'))}",
    "clock": lambda w: f"{_number(w, 1, 12)}{w.rng.choice((' am', ' pm', ':30', ' sharp'))}",
    "phone": lambda w: f"{_number(w, 100, 999)}-{_number(w, 1000, 9999)}",
    "count": lambda w: w.rng.choice(
        (f"{_number(w, 1, 900)},000", _number(w, 100, 99999), f"{_number(w, 2, 20)} million")
    ),
    "color": lambda w: w.pick("colors"),
    "year": lambda w: _number(w, 1400, 2030),
    "food": lambda w: w.pick("foods"),
    "sport": lambda w: w.pick("sports"),
    "language": lambda w: w.pick("languages") if w.chance(0.7) else w.name(),
    "roomno": lambda w: f"{w.rng.choice('ABCDEF')}{_number(w, 1, 400)}",
    "speed": lambda w: f"{_number(w, 10, 400)} km/h",
    "mass": lambda w: f"{_number(w, 1, 900)} {w.rng.choice(('kg', 'grams', 'tons', 'pounds'))}",
    "material": lambda w: w.pick("materials"),
}


def _named(kind: str, words: Words) -> str:
    if kind in _OBJECTS:
        return _OBJECTS[kind](words)
    return draw(words, kind, words.chance(0.25)).said


def fact_about(fact: Fact, subject: str, words: Words) -> Meaning:
    """A fact of this kind about this subject."""
    value = _named(fact.object, words)

    def put(text: str) -> str:
        return fill(text, "S", subject, "O", value)

    def question(w: Words, zh: bool) -> str:
        return dress(put(wording(fact.forms["zh?" if zh else "en?"], w)), w, zh)

    def statement(w: Words, zh: bool) -> str:
        return _sentence(put(wording(fact.forms["zh." if zh else "en."], w)), w, zh)

    return Meaning(f"{fact.name} {subject}", question, statement, subject)


def random_fact(words: Words) -> Meaning:
    """Any fact about an invented or a known subject."""
    fact = words.rng.choice(fact_kinds())
    return fact_about(fact, _named(fact.subject, words), words)


_LOOSE = {
    "en.": "(the R of S is O|S has a R of O|the R for S is O|for S, the R is O|S: R O|"
    "S uses O as its R|the W W R of S is O)",
    "en?": "(what is the R of S|what R does S have|tell me the R of S|which R has S|R of S|what is the R for S)",
    "zh.": "(S的R是O|S的R为O|S使用O作为R|对于S，R是O)",
    "zh?": "(S的R是什么|S的R是多少|告诉我S的R|S有什么R)",
}


def loose_fact(words: Words) -> Meaning:
    """Something is something's something, in words that no fact has: its sentence can only be copied."""
    zh_words = words.chance(0.2)
    relation = words.word(zh_words)
    subject = words.name(zh_words) if words.chance(0.6) else words.text(zh_words, high=2)
    value = words.rng.choice((words.text(zh_words, high=3), words.number().said, words.name(), words.code()))

    slots = {"S": lambda: subject, "O": lambda: value, "R": lambda: relation, "W": words.word}

    def put(form: str, w: Words) -> str:
        return re.sub("[SORW]", lambda m: slots[m[0]](), expand(_LOOSE[form], w.rng))

    return Meaning(
        f"{relation} {subject}",
        lambda w, zh: dress(put("zh?" if zh else "en?", w), w, zh),
        lambda w, zh: _sentence(put("zh." if zh else "en.", w), w, zh),
        subject,
    )


# --- everyday sentences ----------------------------------------------------------------------------------------------


@cache
def concepts() -> dict[str, list[tuple[list[str], list[str]]]]:
    """Everything in data/concepts.txt."""
    found: dict[str, list[tuple[list[str], list[str]]]] = {}
    for line in (DATA / "concepts.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            kind, rest = line.split(": ", 1)
            english, chinese = rest.split(" = ")
            found.setdefault(kind, []).append((english.split("|"), chinese.split("|")))
    return found


def everyday(words: Words) -> Meaning:
    """Someone does something with something, somewhere."""
    chosen = {kind: words.rng.choice(options) for kind, options in concepts().items()}
    placed = words.chance(0.7)

    def say(w: Words, zh: bool) -> str:
        part = {kind: w.rng.choice(names[1 if zh else 0]) for kind, names in chosen.items()}
        where = part["where"] if placed else ""
        article = w.rng.choice(("一个", "这个", "") if zh else ("the", "a", "this"))
        if zh:
            return _sentence(
                f"{article}{part['who']}{where}{part['does']}{w.rng.choice(('了', ''))}{part['what']}",
                w,
                True,
            )
        core = f"{article} {part['who']} {part['does']} {w.rng.choice(('the', 'a', 'some'))} {part['what']}"
        return _sentence(f"{where}, {core}" if where and w.chance(0.3) else f"{core} {where}".strip(), w, False)

    key = " ".join(str(names[0][0]) for kind, names in chosen.items() if placed or kind != "where")
    return Meaning(f"everyday {key}", say, say, str(chosen["who"][0][0]))


def _keywords(words: Words) -> Meaning:
    """A few words, common or invented, that a document holds and a query asks for."""
    zh_words = words.chance(0.25)
    terms = [words.word(zh_words) for _ in range(words.rng.choice((1, 2, 2, 3)))]
    terms[0] = words.name(zh_words) if words.chance(0.6) else terms[0]

    def question(w: Words, _zh: bool) -> str:
        said = ("" if zh_words else " ").join(terms)
        form = (
            "(T|关于T的资料|什么是T|介绍一下T|T怎么用)"
            if zh_words
            else "(T|what is T|tell me about T|how does T work|information about T|T explained|i am looking for T)"
        )
        return dress(wording(form, w).replace("T", said), w, zh_words)

    def statement(w: Words, _zh: bool) -> str:
        fill = [w.word(zh_words) for _ in range(w.rng.randint(2, 7))]
        for term in terms if w.chance(0.7) else reversed(terms):
            fill.insert(w.rng.randint(0, len(fill)), term)
        return _sentence(("" if zh_words else " ").join(fill), w, zh_words)

    return Meaning(f"words {sorted(terms)}", question, statement)


def _sentence(text: str, words: Words, zh: bool) -> str:
    if zh:
        return text + words.rng.choice(("。", "", "！"))
    if words.chance(0.7):
        text = text[0].upper() + text[1:]
    return text + words.rng.choice((".", ".", "", "!"))


_SOURCES: tuple[Callable[[Words], Meaning], ...] = (_intent, _capital, _request, random_fact, everyday, _keywords)
_WEIGHTS = (26, 5, 17, 26, 16, 10)

__all__ = ["Meaning", "draw_meaning", "fact_about", "fact_kinds", "loose_fact", "random_fact"]
