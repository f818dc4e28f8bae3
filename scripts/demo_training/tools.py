"""Functions and requests for them: those of data/capabilities.txt, and endless invented ones."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from .grammar import expand, held_out
from .words import DATA, Value, Words, draw

_SLOT = re.compile(r"\{(\w+)\}")
_PARAM = re.compile(r"(\w+)=([^\s!]+)(!?) (\S+) # (.*)")


@dataclass(frozen=True)
class Param:
    """A parameter of a capability."""

    id: str
    kind: str
    required: bool
    names: list[str]
    descriptions: str


@dataclass
class Capability:
    """Something a function can do, and how people ask for it."""

    name: str
    wish: str
    group: str
    names: list[str] = field(default_factory=list)
    descriptions: str = ""
    params: list[Param] = field(default_factory=list)
    mentions: dict[tuple[str, str], str] = field(default_factory=dict)
    requests: dict[str, list[str]] = field(default_factory=lambda: {"en": [], "zh": []})


@dataclass
class Tool:
    """A function as a request offers it: its schema, and which property stands for which parameter."""

    schema: dict[str, Any]
    name: str
    wish: str
    group: str
    capability: Capability | None = None
    properties: list[tuple[str, str, str]] = field(default_factory=list)  # (parameter id, property, JSON type)
    kinds: dict[str, str] = field(default_factory=dict)
    words: tuple[str, str] = ("", "")
    described: bool = True


@dataclass(frozen=True)
class Request:
    """What the user says, and the call that it asks for."""

    text: str
    tool: Tool
    arguments: dict[str, Any]


@cache
def capabilities() -> list[Capability]:
    """Everything in data/capabilities.txt."""
    found: list[Capability] = []
    for line in (DATA / "capabilities.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            name, rest = line[1:].split("]", 1)
            wish, _, group = rest.strip().partition(" @")
            found.append(Capability(name, wish, group or name))
        elif line and not line.startswith("#"):
            _read_line(found[-1], line)
    return found


def _read_line(capability: Capability, line: str) -> None:
    word, rest = line.split(" ", 1)
    if word == "names":
        capability.names = rest.split()
    elif word == "desc":
        capability.descriptions = rest
    elif word == "p":
        match = _PARAM.fullmatch(rest)
        assert match, line
        name, kind, required, names, descriptions = match.groups()
        capability.params.append(Param(name, kind, bool(required), names.split("|"), descriptions))
    elif word.startswith("+"):
        language, text = rest.split(" ", 1)
        capability.mentions[word[1:], language] = text
    else:
        capability.requests[word.rstrip("?")].append(rest)


# --- schemas ---------------------------------------------------------------------------------------------------------


def offer(capability: Capability, words: Words) -> Tool:
    """A function with this capability, under some name and with some of its parameters."""
    rng = words.rng
    name, plain = _function_name(capability, words)
    described = not plain or words.chance(0.88)
    tool = Tool({}, name, capability.wish, capability.group, capability, described=described)
    properties: dict[str, Any] = {}
    required: list[str] = []
    params = [p for p in capability.params if p.required or words.chance(0.55)]
    if words.chance(0.2):
        rng.shuffle(params)
    for param in params:
        _add_property(tool, param, words, properties, required)
    if words.chance(0.06):
        noise = rng.choice(("verbose", "debug", "timeout", "locale", "page", "api_version", "dry_run"))
        properties.setdefault(noise, {"type": rng.choice(("boolean", "integer")), "description": "Optional setting"})
    text = expand(capability.descriptions, words.rng) if described else ""
    tool.schema = function_schema(name, text, properties, [] if words.chance(0.08) else required, words)
    return tool


def _function_name(capability: Capability, words: Words) -> tuple[str, bool]:
    known = words.rng.choice(capability.names)
    roll = words.rng.random()
    if words.held or roll < 0.3:
        return words.identifier(), False
    if roll < 0.42:
        extra = words.rng.choice(("my", "tool", "v2", "api", "do", "fn", "new", words.pick("nouns"), words.invented()))
        return words.rng.choice((f"{extra}_{known}", f"{known}_{extra}")), True
    return known, True


def _add_property(tool: Tool, param: Param, words: Words, properties: dict[str, Any], required: list[str]) -> None:
    invented = words.chance(0.14)
    name = words.identifier() if invented else words.rng.choice(param.names)
    if name in properties:
        name = f"{name}_2" if name != param.id else param.id + "_value"
    schema, kind = _property_schema(param.kind, words)
    if invented or words.chance(0.65):
        schema["description"] = expand(param.descriptions, words.rng)
    properties[name] = schema
    tool.properties.append((param.id, name, kind))
    tool.kinds[param.id] = param.kind
    if param.required:
        required.append(name)


def _property_schema(kind: str, words: Words) -> tuple[dict[str, Any], str]:
    if kind.startswith("enum("):
        return {"type": "string", "enum": kind[5:-1].split(",")}, "string"
    if kind == "num":
        json_type = words.rng.choice(
            ("number", "number", "number", "integer", "string" if words.chance(0.3) else "number")
        )
    elif kind == "int":
        json_type = words.rng.choice(("integer", "integer", "number"))
    elif kind == "id":
        json_type = words.rng.choice(("string", "string", "string", "integer"))
    elif kind == "bool":
        json_type = "boolean"
    elif kind in ("numbers", "texts"):
        return {"type": "array", "items": {"type": "number" if kind == "numbers" else "string"}}, "array"
    else:
        json_type = "string"
    return {"type": json_type}, json_type


def function_schema(
    name: str, description: str, properties: dict[str, Any], required: list[str], words: Words
) -> dict[str, Any]:
    """A function as OpenAI clients send it."""
    function: dict[str, Any] = {"name": name}
    if description:
        if words.chance(0.3) and description[-1].isascii():
            description += words.rng.choice((".", "!", ". Use it when the user asks for it."))
        function["description"] = description
    function["parameters"] = {"type": "object", "properties": properties, "required": required}
    return {"type": "function", "function": function}


def invent(words: Words) -> Tool:
    """A function that nobody has heard of: its name or its description says what it does."""
    rng = words.rng
    verb = words.pick("verbs") if words.chance(0.6) else words.invented()
    noun = words.pick("nouns") if words.chance(0.6) and not words.held else words.invented()
    named = words.chance(0.7)
    name = _compose(verb, noun, words) if named else words.identifier()
    text = rng.choice(
        (
            f"{verb} a {noun}",
            f"{verb.capitalize()} the {noun}",
            f"{verb.capitalize()} {noun}s",
            f"Lets you {verb} a {noun}",
        )
    )
    described = not named or words.chance(0.7)
    tool = Tool({}, name, f"wants to {verb} a {noun}", f"{verb} {noun}", words=(verb, noun), described=described)
    properties: dict[str, Any] = {}
    required: list[str] = []
    for _ in range(rng.choice((0, 1, 1, 1, 2, 2, 2, 3, 4))):
        kind = rng.choice(
            (
                "place",
                "person",
                "text",
                "int",
                "num",
                "id",
                "int",
                "bool",
                "date",
                "title",
                f"enum({words.invented()},{words.pick('nouns')},{words.pick('en')})",
            )
        )
        pname = words.pick("params") if words.chance(0.6) else words.identifier()
        if pname not in properties:
            _add_property(
                tool,
                Param(pname, kind, words.chance(0.7), [pname], f"The {pname.replace('_', ' ')}"),
                words,
                properties,
                required,
            )
    tool.schema = function_schema(name, text if described else "", properties, required, words)
    return tool


def _compose(verb: str, noun: str, words: Words) -> str:
    return words.rng.choice(
        (f"{verb}_{noun}", f"{verb}_{noun}", f"{verb}{noun.capitalize()}", f"{noun}_{verb}", f"{verb}_{noun}s")
    )


# --- requests --------------------------------------------------------------------------------------------------------


def ask(tool: Tool, words: Words, zh: bool) -> Request:
    """A request that this function serves."""
    if tool.capability is None or words.chance(0.04):
        return _ask_by_name(tool, words, zh)
    language = "zh" if zh and tool.capability.requests["zh"] else "en"
    for _ in range(80):
        text = _wording(tool, words, language)
        if held_out(text) == words.held:
            break
    else:  # all wordings of this one are on the other side
        return _ask_by_name(tool, words, zh)
    text = _other_quotes(text, words)
    values = {slot: value_for(tool, slot, words, language == "zh") for slot in set(_SLOT.findall(text))}
    spoken = _SLOT.sub(lambda m: values[m.group(1)].said, text)
    return Request(spoken, tool, _arguments(tool, values))


def _other_quotes(text: str, words: Words) -> str:
    """A wording with the quotation marks that somebody else would type."""
    if words.chance(0.75):
        return text
    pair = words.rng.choice(("''", "‘’", "“”", "「」"))
    return re.sub(r'["“](\{\w+\})["”]', lambda m: pair[0] + m.group(1) + pair[1], text)


def _wording(tool: Tool, words: Words, language: str) -> str:
    capability = tool.capability
    assert capability is not None
    text = expand(words.rng.choice(capability.requests[language]), words.rng)
    for param, _, _ in tool.properties:
        mention = capability.mentions.get((param, language))
        if mention and "{" + param + "}" not in text and words.chance(0.5):
            # The leading space of an English mention is lost in expand().
            part = expand(mention, words.rng)
            text += part if part.startswith((",", "，")) or language == "zh" else f" {part}"
    return text


def value_for(tool: Tool, slot: str, words: Words, zh: bool) -> Value:
    """A value for a parameter that fits its kind and its JSON type."""
    kind = tool.kinds.get(slot)
    if kind is None:  # a slot whose parameter the schema does not have
        kind = next(p.kind for p in (tool.capability.params if tool.capability else []) if p.id == slot)
    if kind == "bool":
        yes = words.chance(0.5)
        return Value("true" if yes else "false", yes)
    json_type = next((t for param, _, t in tool.properties if param == slot), "string")
    if json_type == "integer":
        number = words.rng.randint(0, 10 ** words.rng.choice((1, 1, 2, 2, 3, 4, 5, 6)) - 1)
        return Value(str(number), number) if kind != "int" else draw(words, kind, zh)
    value = draw(words, kind, zh)
    return Value(value.said, value.said) if json_type == "string" else value


def _arguments(tool: Tool, values: dict[str, Value]) -> dict[str, Any]:
    return {name: values[param].given for param, name, _ in tool.properties if param in values}


def _ask_by_name(tool: Tool, words: Words, zh: bool) -> Request:
    """A request in the words of the function itself, as for a function nobody has heard of."""
    required = set(tool.schema["function"]["parameters"]["required"])
    chosen = [(param, name) for param, name, _ in tool.properties if name in required or words.chance(0.6)]
    values = {param: value_for(tool, param, words, zh) for param, _ in chosen}
    words.rng.shuffle(chosen)
    pairs = [(name, values[param].said) for param, name in chosen]
    text = _by_name_zh(tool, pairs, words) if zh else _by_name_en(tool, pairs, words)
    return Request(text, tool, _arguments(tool, values))


def _by_name_en(tool: Tool, pairs: list[tuple[str, str]], words: Words) -> str:
    rng = words.rng
    verb, noun = tool.words
    by_words = bool(verb) and words.chance(0.65)
    article = rng.choice(("the", "a", "my", "this"))
    order = rng.choice(("call", "use", "run", "invoke", "execute", "start", "apply", "call", "use"))
    named = rng.choice(
        (
            tool.name,
            tool.name,
            f"the {tool.name} tool",
            f"the {tool.name} function",
            f"the function {tool.name}",
            f"the tool {tool.name}",
            f"`{tool.name}`",
            f"{tool.name}()",
        )
    )
    start = f"{verb} {article} {noun}" if by_words else f"{order} {named}"
    if not pairs:
        return start
    if len(pairs) == 1 and words.chance(0.6):
        joiner = (
            rng.choice((" ", " for ", ": "))
            if by_words
            else rng.choice(
                (" for ", " with ", " on ", " to look up ", f" on the {noun or 'value'} ", f" for {noun or 'item'} ")
            )
        )
        return f"{start}{joiner}{pairs[0][1]}"
    form = rng.choice(("{} {}", "{}={}", "{}: {}", "{} = {}", 'the {} "{}"', "{} set to {}", '{} "{}"', "the {} is {}"))
    said = [
        form.format(name.replace("_", " ") if form == "{} {}" and words.chance(0.3) else name, value)
        for name, value in pairs
    ]
    glue = rng.choice((", ", " and ", ", "))
    return f"{start}{rng.choice((' with ', ', ', ' using '))}{glue.join(said)}"


def _by_name_zh(tool: Tool, pairs: list[tuple[str, str]], words: Words) -> str:
    rng = words.rng
    start = f"{rng.choice(('调用', '使用', '运行', '请调用', '用'))}{rng.choice((' ', '', '函数 '))}{tool.name}"
    if len(pairs) == 1 and words.chance(0.5):
        return f"{start}{rng.choice(('，参数是', '处理', '查询', '，'))}{pairs[0][1]}"
    form = rng.choice(("{}是{}", "{}为{}", "{}={}", "{}: {}", "{}设为{}"))
    return start + "".join("，" + form.format(name, value) for name, value in pairs)
