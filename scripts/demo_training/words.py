"""Words and values: common ones, and endless invented ones that no list holds."""

from __future__ import annotations

import random
import re
import string
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from .grammar import expand, held_out

DATA = Path(__file__).parent / "data"
NUMBER_WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
HAN_START, HAN_END = 0x4E00, 0x9FA5
#: Characters of the sentence around a name; an invented name that held one could not be told from its sentence.
FUNCTION_HAN = frozenset(
    "请问今明后天现在会有没的了吗呢吧和跟与及还以是到从把将给对我你他她它们这那哪什么怎几多少很都也就要想能可告诉查看帮下上里谢麻烦"
    "点吃喝说叫做去来个为用或但不再又让被比呀啊哦嗯"
)


@dataclass(frozen=True)
class Value:
    """A value as it is said, and as the function gets it."""

    said: str
    given: Any


@cache
def lists() -> dict[str, list[str]]:
    """The word lists of data/words.txt."""
    found: dict[str, list[str]] = {}
    for line in (DATA / "words.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            name, words = line.split(":", 1)
            found[name] = [word.replace("~", " ") for word in words.split()]
    return found


@cache
def phrases() -> dict[str, str]:
    """The wordings of data/phrases.txt."""
    lines = (DATA / "phrases.txt").read_text(encoding="utf-8").splitlines()
    return dict(line.split(" = ", 1) for line in lines if line and not line.startswith("#"))


@cache
def common_han() -> str:
    """Every Chinese character that the project's own sentences use."""
    text = "".join(
        (DATA / name).read_text(encoding="utf-8") for name in ("words.txt", "intents.txt", "capabilities.txt")
    )
    return "".join(sorted({c for c in text if HAN_START <= ord(c) <= HAN_END} - FUNCTION_HAN))


@cache
def common_words() -> tuple[str, ...]:
    """Every longer English word of the project's own sentences."""
    text = " ".join((DATA / name).read_text(encoding="utf-8") for name in ("words.txt", "intents.txt", "facts.txt"))
    return tuple(sorted({word for word in re.findall(r"[a-z]{5,}", text.lower()) if word.isascii()}))


class Words:
    """Draws words and values; ``held`` draws only invented words that training never sees."""

    def __init__(self, rng: random.Random, held: bool = False) -> None:
        self.rng = rng
        self.held = held

    def pick(self, name: str) -> str:
        """One word of a list."""
        return self.rng.choice(lists()[name])

    def chance(self, probability: float) -> bool:
        """True that often."""
        return self.rng.random() < probability

    def _admit(self, make: Any) -> str:
        while True:
            word: str = make()
            if held_out(word) == self.held:
                return word

    def invented(self) -> str:
        """An invented lower-case word."""
        return self._admit(self._invent)

    def _invent(self) -> str:
        rng = self.rng
        if rng.random() < 0.12:
            return "".join(rng.choices(string.ascii_lowercase, k=rng.randint(2, 9)))
        if rng.random() < 0.2:  # pieces of real words, as the real words that no list holds are made of
            return "".join(_piece(rng) for _ in range(rng.choice((2, 2, 3))))[:14]
        parts = [_syllable(rng) for _ in range(rng.choice((1, 2, 2, 2, 3)))]
        if rng.random() < 0.1:
            parts[0] = self.pick("vowels")
        if rng.random() < 0.35:
            parts.append(self.pick("endings"))
        return "".join(parts)[:14]

    def han(self, low: int = 2, high: int = 4) -> str:
        """An invented Chinese word."""
        return self._admit(lambda: "".join(self._han_char() for _ in range(self.rng.randint(low, high))))

    def _han_char(self) -> str:
        if self.rng.random() < 0.6:
            return self.rng.choice(common_han())
        while (char := chr(self.rng.randint(HAN_START, HAN_END))) in FUNCTION_HAN:
            pass
        return char

    def name(self, zh: bool = False) -> str:
        """An invented proper name."""
        if zh and self.chance(0.6):
            return self.han()
        word = self.invented()
        word = word.capitalize() if self.chance(0.9) else word
        roll = self.rng.random()
        if roll < 0.12:
            return f"{word} {self.invented().capitalize()}"
        if roll < 0.16:
            return f"{word}-{self.invented().capitalize()}"
        if roll < 0.19:
            return f"{self.rng.choice(('San', 'New', 'Port', 'El', 'Bad', 'Saint'))} {word}"
        return word

    def identifier(self) -> str:
        """An invented name of a function, parameter or account."""
        first, second = self.invented(), self.invented() if self.chance(0.5) else self.pick("nouns")
        shape = self.rng.randint(0, 4)
        made = (f"{first}_{second}", f"{first}{second.capitalize()}", first, f"{second}_{first}", f"{first}-{second}")
        return _ascii(made[shape])

    def number(self, low: int = 0) -> Value:
        """A number as digits, sometimes with decimals or a sign."""
        rng = self.rng
        digits = rng.choice((1, 1, 2, 2, 2, 3, 3, 4, 5, 6))
        whole = rng.randint(low, 10**digits - 1)
        roll = rng.random()
        if roll < 0.2:
            tail = rng.choice(("5", "25", "75", "1", str(rng.randint(1, 9)), f"{rng.randint(1, 9)}{rng.randint(1, 9)}"))
            text = f"{whole}.{tail}"
            return Value(text, float(text))
        if roll < 0.24 and whole:
            return Value(f"-{whole}", -whole)
        return Value(str(whole), whole)

    def integer(self) -> Value:
        """A positive whole number, mostly small."""
        number = self.rng.randint(1, self.rng.choice((9, 12, 30, 99, 999)))
        return Value(str(number), number)

    def code(self) -> str:
        """An identifier such as an order number."""
        return self._admit(self._code)

    def _code(self) -> str:
        rng = self.rng
        digits = "".join(rng.choices(string.digits, k=rng.randint(2, 8)))
        letters = "".join(rng.choices(string.ascii_uppercase, k=rng.randint(1, 4)))
        mixed = "".join(rng.choices(string.ascii_letters + string.digits, k=rng.randint(5, 10)))
        shapes = (digits, digits, f"{letters}-{digits}", f"{letters}{digits}", f"{digits}-{letters}", mixed)
        return rng.choice(shapes)

    def word(self, zh: bool = False) -> str:
        """A common or an invented word."""
        if zh:
            return self.pick("zh") if self.chance(0.7) else self.han(1, 3)
        roll = self.rng.random()
        if roll < 0.62:
            return self.pick("en")
        return self.invented() if roll < 0.93 else self.name()

    def phrase(self) -> str:
        """Free text with small words in it, which stand in requests too: "see you at noon"."""
        text = expand(phrases()["free text"], self.rng)
        kinds = {
            "W": self.word,
            "V": lambda: self.pick("verbs"),
            "N": lambda: self.pick("nouns"),
            "C": lambda: _place(self, False),
            "P": self.name,
        }
        text = "".join(kinds[c]() if c in kinds else c for c in text)
        return text[0].upper() + text[1:] if self.chance(0.3) else text

    def text(self, zh: bool = False, high: int = 5) -> str:
        """A few words of free text."""
        count = self.rng.randint(1, high)
        if not zh and high > 2 and self.chance(0.4):
            return self.phrase()
        if zh and self.chance(0.8):
            return "".join(self.word(zh=True) for _ in range(count))
        words = " ".join(self.word() for _ in range(count))
        if self.chance(0.08):
            words += f" {self.integer().said}"
        return words.capitalize() if self.chance(0.25) else words


def _syllable(rng: random.Random) -> str:
    known = lists()
    return rng.choice(known["onsets"]) + rng.choice(known["vowels"]) + rng.choice(["", *known["codas"]])


def _piece(rng: random.Random) -> str:
    word = rng.choice(common_words())
    length = rng.randint(2, 5)
    at = rng.choice((0, rng.randint(0, len(word) - length), len(word) - length))
    return word[at : at + length]


def _ascii(text: str) -> str:
    return "".join(c for c in text if c.isascii()) or "tool"


def draw(words: Words, kind: str, zh: bool) -> Value:
    """A value of a kind (see data/capabilities.txt), as said in a request in English or Chinese."""
    if kind.startswith("enum("):
        choice = words.rng.choice(kind[5:-1].split(","))
        return Value(choice, choice)
    if kind == "int":
        value = words.integer()
        spelled = not zh and value.given <= 12 and words.chance(0.15)
        return Value(NUMBER_WORDS[value.given - 1], value.given) if spelled else value
    if kind in ("numbers", "texts"):
        return _several(words, kind, zh)
    if kind == "num":
        return words.number()
    text = _TEXTS[kind](words, zh)
    return Value(text, text)


def _several(words: Words, kind: str, zh: bool) -> Value:
    """A list: three, four and five."""
    count = words.rng.randint(2, 5)
    made = [words.number() if kind == "numbers" else Value(*[words.word(zh)] * 2) for _ in range(count)]
    said = [value.said for value in made]
    if zh:
        text = "、".join(said) if words.chance(0.6) else "，".join(said[:-1]) + "和" + said[-1]
    else:
        text = ", ".join(said[:-1]) + words.rng.choice((" and ", ", ", ", and ")) + said[-1]
    return Value(text, [value.given for value in made])


def _listed(words: Words, names: tuple[str, ...], zh: bool, invented: float) -> str:
    if words.chance(1.0 if words.held else invented):
        return words.name(zh)
    options = [n for n in names if n.endswith("_zh") == zh or (zh and words.chance(0.3))]
    return words.pick(words.rng.choice(options or list(names)))


def _place(words: Words, zh: bool) -> str:
    city = _listed(words, ("cities", "cities2", "cities_zh"), zh, 0.65)
    if zh or words.chance(0.93):
        return city
    region = words.rng.choice(("CA", "NY", "TX", "UK", "Germany", "France", "China", words.invented().capitalize()))
    return f"{city}, {region}"


def _email(words: Words, _zh: bool) -> str:
    user = _ascii(
        words.rng.choice((words.invented(), words.pick("people").lower(), f"{words.invented()}.{words.invented()}"))
    )
    host = words.rng.choice(
        ("example.com", "mail.com", "example.org", f"{_ascii(words.invented())}.com", f"{_ascii(words.invented())}.net")
    )
    return f"{user}@{host}"


def _date(words: Words, zh: bool) -> str:
    year, month, day = words.rng.randint(2020, 2035), words.rng.randint(1, 12), words.rng.randint(1, 28)
    if words.chance(0.7):
        return f"{year}-{month:02d}-{day:02d}"
    if zh:
        return words.rng.choice((f"{month}月{day}日", "明天", "周一", "周五", "今天", "后天", "下周三"))
    weekday = words.pick("days")
    months = lists()["months"]
    return words.rng.choice((weekday, f"{months[month - 1]} {day}"))


def _time(words: Words, zh: bool) -> str:
    hour, minute = words.rng.randint(0, 23), words.rng.choice((0, 0, 15, 30, 45, words.rng.randint(0, 59)))
    if zh and words.chance(0.3):
        return words.rng.choice((f"{hour}点", f"早上{hour % 12}点", f"下午{hour % 12}点"))
    if not zh and words.chance(0.3):
        return words.rng.choice(
            (f"{hour % 12 + 1}pm", f"{hour % 12 + 1} am", "noon", f"{hour % 12 + 1}:{minute:02d} pm")
        )
    return words.rng.choice((f"{hour:02d}:{minute:02d}", f"{hour}:{minute:02d}"))


def _path(words: Words, _zh: bool) -> str:
    parts = [
        _ascii(words.invented() if words.chance(0.6) else words.pick("nouns")) for _ in range(words.rng.randint(1, 3))
    ]
    suffix = words.rng.choice(("", ".txt", ".md", ".json", ".csv", ".log", ".py", ".yaml", ".pdf"))
    return words.rng.choice(("", "/", "./", "/tmp/", "/home/", "/etc/")) + "/".join(parts) + (suffix or ".txt")


def _url(words: Words, _zh: bool) -> str:
    host = f"{_ascii(words.invented())}.{words.rng.choice(('com', 'org', 'io', 'net', 'dev', 'cn'))}"
    tail = words.rng.choice(("", f"/{_ascii(words.invented())}", f"/{words.pick('nouns')}/{words.integer().said}"))
    return words.rng.choice(("https://", "http://", "https://www.", "www.", "")) + host + tail


def _expression(words: Words, _zh: bool) -> str:
    terms = [words.integer().said]
    for _ in range(words.rng.randint(1, 3)):
        terms += [words.rng.choice("+-*/+*"), words.integer().said]
    if len(terms) > 3 and words.chance(0.4):
        terms = ["(" + terms[0], terms[1], terms[2] + ")", *terms[3:]]
    return (" " if words.chance(0.6) else "").join(terms)


def _sql(words: Words, _zh: bool) -> str:
    table, column = words.rng.choice((words.pick("nouns"), _ascii(words.invented()))), words.pick("params")
    tail = words.rng.choice(
        ("", f" WHERE {column} = {words.integer().said}", f" LIMIT {words.integer().said}", f" ORDER BY {column}")
    )
    return f"SELECT {words.rng.choice(('*', column, f'count({column})'))} FROM {table}{tail}"


def _host(words: Words, _zh: bool) -> str:
    word = _ascii(words.invented())
    return words.rng.choice(
        (
            f"{word}-{words.integer().said}",
            word,
            f"{word}.{words.pick('nouns')}.local",
            f"{words.pick('nouns')}{words.integer().said}",
        )
    )


def _product(words: Words, zh: bool) -> str:
    if zh and words.chance(0.6):
        return words.text(zh=True, high=2)
    shapes = (
        f"{words.name()} {words.integer().said}",
        words.name(),
        f"{words.pick('en')} {words.pick('en')}",
        words.code(),
        f"{words.name()} {words.pick('nouns')}",
        words.pick("nouns"),
    )
    return words.rng.choice(shapes)


def _title(words: Words, zh: bool) -> str:
    if zh and words.chance(0.7):
        return words.han(2, 5)
    return words.rng.choice((words.name(), " ".join(words.word().capitalize() for _ in range(words.rng.randint(1, 3)))))


_TEXTS: dict[str, Any] = {
    "place": _place,
    "person": lambda w, zh: _listed(w, ("people", "people_zh"), zh, 0.65),
    "room": lambda w, zh: _listed(w, ("rooms", "rooms2", "rooms_zh"), zh, 0.3),
    "lang": lambda w, zh: _listed(w, ("languages", "languages_zh"), zh, 0.2),
    "currency": lambda w, zh: w.pick("currencies_zh" if zh else "currencies"),
    "unit": lambda w, zh: w.pick("units_zh" if zh else "units"),
    "ticker": lambda w, _zh: (
        "".join(w.rng.choices(string.ascii_uppercase, k=w.rng.randint(2, 5))) if w.chance(0.7) else w.name()
    ),
    "text": lambda w, zh: w.text(zh),
    "word": lambda w, zh: w.han(1, 3) if zh and w.chance(0.6) else w.rng.choice((w.invented(), w.pick("en"))),
    "title": _title,
    "product": _product,
    "email": _email,
    "date": _date,
    "time": _time,
    "path": _path,
    "url": _url,
    "id": lambda w, _zh: w.code(),
    "expr": _expression,
    "sql": _sql,
    "host": _host,
}
