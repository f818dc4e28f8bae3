"""What a command line starts, behind `bash -c`, `env`, `exec`, assignments and other commands."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

SHELLS = ("bash", "sh", "dash", "zsh", "ash")
BEFORE = ("exec", "nohup", "command", "time", "stdbuf", "nice", "tini", "dumb-init", "--")
"""Words before a command that run it."""
WORKERS = ("fastchat.serve.vllm_worker", "fastchat.serve.model_worker")
FRONT = ("fastchat.serve.controller", "fastchat.serve.openai_api_server", "fastchat.serve.gradio_web_server")
_ASSIGNED = re.compile(r"([A-Za-z_]\w*)=(.*)", re.DOTALL)
_REDIRECTS = re.compile(r"\d?[<>]+&?\d?|&>+|[<>]+&|\d?[<>]+&?\S+")
_PROGRAM = re.compile(r"python[\d.]*|vllm")
_WITH_VALUE = ("-u", "-C", "-n")
"""Options of env and nice with a value of their own."""
_DEEP = 4


@dataclass
class Started:
    """The server's own words, the variables and the directory that the script gives it, and the commands beside it."""

    words: list[str]
    env: dict[str, str] = field(default_factory=dict)
    directory: str = ""
    others: list[list[str]] = field(default_factory=list)


def is_server(words: Sequence[str]) -> bool:
    """Whether these words start vLLM or one of FastChat's servers."""
    return any(word in (*WORKERS, *FRONT) or word.startswith("vllm.entrypoints") for word in words) or _is_vllm(words)


def _is_vllm(words: Sequence[str]) -> bool:
    return any(word.rpartition("/")[2] == "vllm" and words[i + 1 : i + 2] == ["serve"] for i, word in enumerate(words))


def started(words: Sequence[str]) -> Started:
    """The server that the words start; the first command when none of them is known as one."""
    found = Started([])
    commands = list(_commands(list(words), found, _DEEP))
    server = next((command for command in commands if is_server(command)), commands[0] if commands else [])
    start = next((i for i, word in enumerate(server) if _PROGRAM.fullmatch(word.rpartition("/")[2])), 0)
    found.words = server[start:]
    before = [server[:start]] if start else []  # numactl, taskset, conda run
    found.others = [*before, *(command for command in commands if command is not server)]
    return found


def _commands(words: list[str], found: Started, depth: int) -> Iterator[list[str]]:
    words = _bare(words, found)
    script = _script(words) if depth else None
    if script is None:
        if words[:1] == ["cd"] and len(words) > 1:
            found.directory = words[1]
        elif words[:1] == ["export"]:
            found.env |= {m[1]: m[2] for word in words[1:] if (m := _ASSIGNED.fullmatch(word))}
        elif words:
            yield words
        return
    for command in _split(script):
        yield from _commands(command, found, depth - 1)


def _bare(words: list[str], found: Started) -> list[str]:
    """Without assignments, `env`, `exec` and the like; the assignments are kept."""
    given: dict[str, str] = {}
    wrapped = False
    while words:
        used = 1
        if assigned := _ASSIGNED.fullmatch(words[0]):
            given[assigned[1]] = assigned[2]
        elif words[0].rpartition("/")[2] in ("env", *BEFORE):
            wrapped = True
        elif wrapped and words[0].startswith("-"):
            used = 2 if words[0] in _WITH_VALUE else 1
        else:
            break
        words = words[used:]
    if is_server(words) or (words and _script(words) is not None):
        found.env |= given
    return words


def _script(words: Sequence[str]) -> str | None:
    """What a shell is told by `-c` (also `-lc`, `-ec`, `-x -c`)."""
    if not words or words[0].rpartition("/")[2] not in SHELLS:
        return None
    for i, word in enumerate(words[1:], 1):
        if re.fullmatch(r"-[a-z]*c[a-z]*", word):
            return words[i + 1] if i + 1 < len(words) else ""
        if not word.startswith(("-", "+")) and words[i - 1] not in ("-o", "+o"):
            return None
    return None


def _split(script: str) -> Iterator[list[str]]:
    """The simple commands of a script, without redirections."""
    lexer = shlex.shlex(script.replace("\\\n", " ").replace("\n", " ; "), posix=True, punctuation_chars=";|&")
    lexer.whitespace_split = True
    command: list[str] = []
    try:
        words = list(lexer)
    except ValueError:  # a quote that is not closed
        words = script.split()
    for word in _without_redirects(words):
        if word and set(word) <= set(";|&"):
            yield command
            command = []
        else:
            command.append(word)
    yield command


def _without_redirects(words: list[str]) -> Iterator[str]:
    """`2>&1`, `> FILE`; the splitter takes the & of one for a word."""
    skip = 0
    for i, word in enumerate(words):
        if skip:
            skip -= 1
        elif re.fullmatch(r"\d?[<>]+", word):
            skip = 2 if words[i + 1 : i + 2] == ["&"] else 1
        elif word == "&" and words[i + 1 : i + 2] and words[i + 1].startswith(">"):
            skip = 1 if words[i + 1].strip(">") else 2
        elif not _REDIRECTS.fullmatch(word):
            yield word
