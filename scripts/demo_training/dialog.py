"""Whole conversations: plain ones, function calls, results of functions, several turns, system prompts."""

from __future__ import annotations

import random
from typing import Any

from .meanings import loose_fact, random_fact
from .render import Message, Sample
from .results import report, result
from .tools import Request, Tool, ask, capabilities, invent, offer, value_for
from .topics import NO_TOOL, dress, plain, recall
from .words import Words

SYSTEM = (
    "You are a helpful assistant.",
    "You are a helpful assistant that can call functions.",
    "You are a helpful AI assistant. Answer briefly.",
    "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.",
    "Answer the user's questions.",
    "You are an assistant with access to tools. Use them when they help.",
    "Be concise.",
    "You are a support agent of a small company. Be polite and never make things up.",
    "Use the given functions if you need them. Do not guess arguments.",
    "You are a helpful assistant. Today is 2025-06-01. Always answer in the language of the user.",
    "Don't make assumptions about what values to plug into functions. Ask for clarification if a request is ambiguous.",
    "你是一个有用的助手。",
    "你是一个智能助手，请简洁地回答用户的问题。",
    "你可以调用工具来完成任务。",
)


def make(rng: random.Random, held: bool = False) -> Sample:
    """One training conversation."""
    words = Words(rng, held)
    roll = rng.random()
    zh = rng.random() < 0.35
    if roll < 0.3:
        sample = plain_sample(words, zh)
    elif roll < 0.71:
        sample = call_sample(words, zh, 2 if rng.random() < 0.22 else 1)
    elif roll < 0.74:
        sample = follow_up_sample(words, zh)
    elif roll < 0.75:
        sample = recall_sample(words, zh)
    elif roll < 0.85:
        sample = result_sample(words, zh)
    elif roll < 0.895:
        return context_sample(words, zh)
    elif roll < 0.905:
        return Sample([], says(plain(words, zh).answer), topic="raw")
    else:
        sample = decline_sample(words, zh)
    _add_history(sample, words)
    _add_system(sample, words)
    if rng.random() > 0.15:
        sample.thought = None
    return sample


def user(text: str) -> Message:
    """A message of the user."""
    return {"role": "user", "content": text}


def says(text: str) -> Message:
    """A plain message of the model."""
    return {"role": "assistant", "content": text}


def calls(requests: list[Request]) -> Message:
    """A message of the model that calls functions."""
    made = [{"type": "function", "function": {"name": r.tool.name, "arguments": r.arguments}} for r in requests]
    return {"role": "assistant", "content": "", "tool_calls": made}


# --- the kinds of conversations --------------------------------------------------------------------------------------


def plain_sample(words: Words, zh: bool, tools: float = 0.35) -> Sample:
    """A question that the model answers by itself, although functions may be on offer."""
    asked = plain(words, zh)
    offered: list[Tool] = []
    if words.chance(tools):
        banned = (
            {"arith"}
            if asked.topic == "sum"
            else ASKED_ANYTHING
            if asked.topic in ("unknown", "echo", "capital")
            else set()
        )
        offered = others(words, words.rng.randint(1, 4), banned)
    return Sample([user(asked.question)], says(asked.answer), [t.schema for t in offered], asked.thought, asked.topic)


#: Functions that could well answer a question about anything.
ASKED_ANYTHING = {
    "search",
    "define",
    "news",
    "translate",
    "user",
    "product_price",
    "stock_level",
    "shopping",
    "todo",
    "file",
    "web",
    "tag",
    "stock",
}


def call_sample(words: Words, zh: bool, count: int = 1) -> Sample:
    """A request that one or two calls serve."""
    if count > 1 and words.chance(0.35):
        return pair_sample(words, zh)
    requests, offered = _requests(words, zh, count)
    text = _join([r.text for r in requests], words, zh) if count > 1 else requests[0].text
    return Sample([user(_dress(text, words, zh))], calls(requests), offered, _thought(requests), "call")


def _asked_for_one(words: Words, zh: bool) -> tuple[Tool, Request, str]:
    """A function, a request for it with one argument, and the parameter of that argument."""
    while True:
        tool = offer(words.rng.choice(capabilities()), words)
        request = ask(tool, words, zh)
        slots = [param for param, name, _ in tool.properties if name in request.arguments]
        if len(slots) == 1 and tool.kinds[slots[0]] in FOLLOWED and tool.name not in request.text:
            return tool, request, slots[0]


def pair_sample(words: Words, zh: bool) -> Sample:
    """The same for two things at once: "the weather in A and in B"."""
    while True:
        tool, request, slot = _asked_for_one(words, zh)
        value = value_for(tool, slot, words, zh)
        first = str(request.arguments[next(iter(request.arguments))])
        before, found, after = request.text.partition(first)
        if found and first not in after and value.said != first:
            break
    last = before.split(" ")[-2] if before.endswith(" ") and " " in before[:-1] else ""
    linked = (
        f" and {last} "
        if last in ("in", "for", "of", "at", "about") and words.chance(0.6)
        else words.rng.choice((" and ", " and ", ", ", " and also "))
    )
    if any("一" <= c <= "龥" for c in before + after):
        linked = words.rng.choice(("和", "、", "还有", "跟", "以及"))
    both = [request, Request("", tool, {next(iter(request.arguments)): value.given})]
    offered = [tool, *others(words, words.rng.randint(0, 3), {tool.group}, tool)]
    words.rng.shuffle(offered)
    text = _dress(f"{before}{first}{linked}{value.said}{after}", words, zh)
    return Sample([user(text)], calls(both), [t.schema for t in offered], _thought(both), "call")


def follow_up_sample(words: Words, zh: bool) -> Sample:
    """After a call and its result: the same for something else."""
    tool, request, slot = _asked_for_one(words, zh)
    sample = _with_results([request], words, zh, others(words, words.rng.randint(0, 3), {tool.group}, tool))
    value = value_for(tool, slot, words, zh)
    form = (
        ("那{}呢", "{}呢", "还有{}呢", "再查一下{}")
        if zh
        else ("and in {}", "and {}", "what about {}", "how about {}", "and for {}", "now {}", "the same for {}")
    )
    again = Request(words.rng.choice(form).format(value.said), tool, {next(iter(request.arguments)): value.given})
    sample.messages += [sample.answer, user(_dress(again.text, words, zh))]
    return Sample(sample.messages, calls([again]), sample.tools, _thought([again]), "call")


#: Kinds of values that a short follow-up can replace.
FOLLOWED = {"place", "person", "product", "id", "ticker", "host", "date", "word"}


def recall_sample(words: Words, zh: bool) -> Sample:
    """A name told in an earlier turn."""
    told, asked = recall(words, zh)
    between = plain(words, zh)
    messages = [user(told.question), says(told.answer)]
    if words.chance(0.4):
        messages += [user(between.question), says(between.answer)]
    return Sample([*messages, user(asked.question)], says(asked.answer), [], asked.thought, "recall")


CONTEXT = {
    "en": (
        "Context:\n{}\n\nQuestion: {}",
        "Answer the question from the context.\n\n{}\n\nQuestion: {}",
        "Use the following documents to answer.\n{}\n{}",
        "{}\n\n{}",
        "Documents:\n{}\n\nUser question: {}\nAnswer:",
        "Use the following pieces of context to answer the question at the end.\n\n{}\n\nQuestion: {}\nHelpful Answer:",
    ),
    "zh": ("资料：\n{}\n\n问题：{}", "根据以下内容回答问题。\n{}\n问题：{}", "{}\n\n{}"),
}


def context_sample(words: Words, zh: bool) -> Sample:
    """A question about given documents: the answer is the sentence that holds it."""
    make = words.rng.choice((random_fact, loose_fact))
    facts = [make(words) for _ in range(words.rng.randint(1, 5))]
    asked = words.rng.choice(facts)
    told = [fact.tell(words, zh if words.chance(0.9) else not zh) for fact in facts]
    bullet = words.rng.choice(("", "- ", "* ", "[{}] ", "{}. ", ""))
    lines = [bullet.format(n + 1) + text for n, text in enumerate(told)]
    documents = words.rng.choice(("\n", "\n\n", "\n", " ")).join(lines)
    form = words.rng.choice(CONTEXT["zh" if zh else "en"])
    answer = told[facts.index(asked)]
    question = asked.ask(words, zh)
    sample = Sample([user(form.format(documents, question))], says(answer), topic="context")
    if words.chance(0.2):
        told_first = words.rng.choice(("Answer from these documents.\n{}", "Context:\n{}", "资料：\n{}", "{}"))
        sample.messages = [{"role": "system", "content": told_first.format(documents)}, user(question)]
    elif words.chance(0.2):
        sample.messages = [{"role": "system", "content": words.rng.choice(SYSTEM)}, *sample.messages]
    return sample


def decline_sample(words: Words, zh: bool) -> Sample:
    """A request that no function on offer serves, if any is on offer."""
    while True:
        request = ask(_some_tool(words), words, zh)
        if request.tool.group != "arith":
            break
    count = words.rng.choice((0, 1, 2, 3, 4))
    offered = others(words, count, {request.tool.group}, request.tool)
    thought = f"The user {request.tool.wish}. No function fits."
    answer = says(
        NO_TOOL["zh" if any("一" <= c <= "龥" for c in request.text[:2] + request.text[-2:]) and zh else "en"]
    )
    return Sample([user(_dress(request.text, words, zh))], answer, [t.schema for t in offered], thought, "decline")


def result_sample(words: Words, zh: bool) -> Sample:
    """The answer after the functions have returned."""
    count = 2 if words.chance(0.25) else 1
    requests, offered = _requests(words, zh, count)
    return _with_results(requests, words, zh, offered)


def _with_results(requests: list[Request], words: Words, zh: bool, offered: list[Any]) -> Sample:
    schemas = [t.schema if isinstance(t, Tool) else t for t in offered]
    if isinstance(next(iter(offered), None), Tool) or not offered:
        schemas = [*schemas, requests[0].tool.schema]
        words.rng.shuffle(schemas)
    text = _join([r.text for r in requests], words, zh) if len(requests) > 1 else requests[0].text
    results = [result(words, zh) for _ in requests]
    messages = [user(_dress(text, words, zh)), calls(requests)]
    for call, (content, _) in zip(messages[1]["tool_calls"], results, strict=True):
        call["id"] = f"call_{words.rng.randint(0, 10**6)}"
        messages.append({"role": "tool", "tool_call_id": call["id"], "content": content})
    answer = says(report([said for _, said in results], zh))
    return Sample(messages, answer, schemas, "The result is there, so I can answer.", "result")


def _requests(words: Words, zh: bool, count: int) -> tuple[list[Request], list[dict[str, Any]]]:
    tools = [_some_tool(words)]
    if count > 1 and words.chance(0.55):
        tools.append(next(iter(others(words, 1, {tools[0].group}, tools[0]))))
    requests = [ask(tools[0], words, zh)]
    while len(requests) < count:
        more = ask(tools[-1], words, zh)
        if (more.tool.name, more.arguments) != (requests[0].tool.name, requests[0].arguments):
            requests.append(more)
        elif not more.arguments:  # the same call again says nothing: take another function
            tools[1:] = others(words, 1, {tools[0].group}, tools[0])
    groups = {t.group for t in tools}
    room = 4 - len(tools)
    tools = tools + others(words, words.rng.randint(0, room), _conflicts(tools), *tools, same_group=groups)
    words.rng.shuffle(tools)
    return requests, [t.schema for t in tools]


def _some_tool(words: Words) -> Tool:
    return invent(words) if words.chance(0.3) else offer(words.rng.choice(capabilities()), words)


#: Groups whose members cannot be told apart by any request.
_ALIKE = {"search", "todo", "message", "calendar"}


def _conflicts(tools: list[Tool]) -> set[str]:
    found = {t.group for t in tools if t.group in _ALIKE}
    if any(t.capability and t.capability.name == "calculator" for t in tools):
        found.add("arith")
    return found


def others(words: Words, count: int, banned: set[str], *tools: Tool, same_group: set[str] | None = None) -> list[Tool]:
    """Other functions to choose from: none of the banned groups, no capability and no name twice."""
    found: list[Tool] = []
    taken = {t.capability.name for t in tools if t.capability}
    names = {t.name for t in tools} | {t.group for t in tools if not t.capability}
    while len(found) < count:
        if same_group and words.chance(0.35):
            near = [c for c in capabilities() if c.group in same_group]
            tool = offer(words.rng.choice(near), words) if near else _some_tool(words)
        else:
            tool = _some_tool(words)
        label = tool.capability.name if tool.capability else tool.group
        if tool.group in banned or label in taken or label == "calculator" or tool.name in names or label in names:
            continue
        taken.add(label)
        names.add(tool.name)
        found.append(tool)
    return found


def _thought(requests: list[Request]) -> str:
    steps = [f"The user {r.tool.wish}. The function {r.tool.name} fits." for r in requests]
    return " ".join(steps)


def _join(texts: list[str], words: Words, zh: bool) -> str:
    if zh and words.chance(0.7):
        return words.rng.choice(("，然后", "，还有", "。另外，", "，再")).join(texts)
    return words.rng.choice((" and ", ". Also, ", ", and then ", "; ", " and also ", ". Then ", "? And ", ", ")).join(
        texts
    )


def _dress(text: str, words: Words, zh: bool) -> str:
    """Requests hold names, so only their ends are dressed."""
    rng = words.rng
    if words.chance(0.1):
        return words.pick("leads_zh" if zh else "leads") + text + rng.choice(("", "。" if zh else "."))
    if zh:
        return (
            rng.choice(("", "", "", "请", "请帮我", "你好，", "麻烦", "请问", "请问", "请问一下，", "帮我看看"))
            + text
            + rng.choice(("", "", "。", "？", "！"))
        )
    if words.chance(0.18):
        text = (
            rng.choice(
                (
                    "please ",
                    "hey, ",
                    "can you ",
                    "could you ",
                    "hi, ",
                    "Please ",
                    "Hello! ",
                    "I want you to ",
                    "i need you to ",
                )
            )
            + text
        )
    elif words.chance(0.5):
        text = text[0].upper() + text[1:]
    if words.chance(0.06):
        text += rng.choice((" please", ", please", ", thanks"))
    return text + rng.choice(("", "", "?", ".", ".", "!"))


# --- what comes before -----------------------------------------------------------------------------------------------


def _add_history(sample: Sample, words: Words) -> None:
    """Earlier turns: they must not confuse the last one."""
    turns = words.rng.choices((0, 1, 2), (70, 20, 10))[0]
    for _ in range(turns):
        zh = words.chance(0.35)
        earlier = result_sample(words, zh) if sample.tools and words.chance(0.4) else plain_sample(words, zh, 0)
        names = {t["function"]["name"] for t in sample.tools}
        if earlier.tools and (
            len(sample.tools) + len(earlier.tools) > 4
            or sample.topic in ("decline", "call")
            or names & {t["function"]["name"] for t in earlier.tools}
        ):
            earlier = plain_sample(words, zh, 0)
        if earlier.topic == "sum" and sample.tools:
            continue
        if sample.topic != "plain" and earlier.tools:
            sample.tools = [*sample.tools, *earlier.tools]
        sample.messages = [*earlier.messages, earlier.answer, *sample.messages]


def _add_system(sample: Sample, words: Words) -> None:
    roll = words.rng.random()
    if roll < 0.5:
        return
    text = words.rng.choice(SYSTEM)
    if roll > 0.8:
        extra = [
            words.rng.choice(SYSTEM) if words.chance(0.4) else dress(words.text(high=14), words, False)
            for _ in range(words.rng.randint(1, 4))
        ]
        text = words.rng.choice((" ", "\n", "\n\n")).join([text, *extra])
    sample.messages = [{"role": "system", "content": text}, *sample.messages]
