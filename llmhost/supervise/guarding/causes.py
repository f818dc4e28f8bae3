"""Why an engine ended, told from its last lines: whether starting it again can help.

`RULES` is data. Each rule has an excerpt of a log of vLLM as its test (tests/unit/supervise/engine_logs); the messages
are those of vLLM 0.32, which are nearly all the same since 0.9.
"""

from __future__ import annotations

import os
import re
import signal

from llmhost.supervise.guarding.words import error_lines, last_words, points_elsewhere

DOOMED, TRANSIENT = True, False

RULES: list[tuple[str, bool, str]] = [
    # What was written or installed is wrong: it will be so the next time.
    ("flag", DOOMED, r"error: unrecognized arguments"),
    ("flag-value", DOOMED, r"error: argument "),
    ("model", DOOMED, r"Invalid repository ID or local directory|HFValidationError|LocalEntryNotFoundError"),
    ("config", DOOMED, r"config file at .* is not a valid JSON file"),
    ("weights", DOOMED, r"Cannot find any model weights"),
    ("weights-broken", DOOMED, r"SafetensorError"),
    ("architecture", DOOMED, r"Model architectures? .* (?:not supported|failed to be inspected)"),
    ("tool-parser", DOOMED, r"invalid tool call parser"),
    ("reasoning-parser", DOOMED, r"invalid reasoning parser|Reasoning parser .* not found"),
    ("quantization", DOOMED, r"Unknown quantization method"),
    ("context", DOOMED, r"User-specified max_model_len"),
    ("parallel", DOOMED, r"must be divisible by tensor parallel size|World size .* is larger than the number of"),
    ("dtype", DOOMED, r"Bfloat16 is only supported on GPUs"),
    ("kv-cache", DOOMED, r"To serve at least one request|No available memory for the cache blocks"),
    ("template", DOOMED, r"The supplied chat template"),
    # The machine is not as it should be at this moment.
    ("gpu-memory", TRANSIENT, r"Free memory on device .* is less than"),
    ("cpu-memory", TRANSIENT, r"Available memory on node .* is less than"),
    ("gpu-oom", TRANSIENT, r"OutOfMemoryError: CUDA out of memory"),
    ("cuda", TRANSIENT, r"CUDA error: "),
    ("driver", TRANSIENT, r"Failed to infer device type|No CUDA GPUs are available"),
    ("nccl", TRANSIENT, r"NCCL error"),
    ("part-killed", TRANSIENT, r"Failed core proc\(s\): \{[^}]*: -\d"),
    ("engine-dead", TRANSIENT, r"EngineDeadError|RuntimeError: Executor failed"),
    ("disk-full", TRANSIENT, r"No space left on device"),
    # Exceptions that come from what was given, in vLLM as elsewhere; whatever else there is, is tried a few times.
    ("settings", DOOMED, r"validation errors? for \w+"),
    ("mistake", DOOMED, r"(?:Value|Type|Key|Index|Attribute|Assertion|NotImplemented|Import|ModuleNotFound)Error\b"),
]
"""Name, verdict, and a pattern that is searched in lines that look like errors; the first that fits counts."""

_RULES = [(name, doomed, re.compile(pattern)) for name, doomed, pattern in RULES]


class Cause:
    """`words`: one line for people, '' when the log holds none; `known`: a rule said so."""

    def __init__(self, rule: str, doomed: bool, words: str) -> None:
        self.rule = rule
        self.doomed = doomed
        self.words = words

    @property
    def known(self) -> bool:
        return bool(self.rule)


def classify(status: int, log: str) -> Cause:
    """The cause of an end before the engine was ready, from its wait status and what it printed."""
    number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    if number == signal.SIGILL:
        return Cause("illegal-instruction", DOOMED, "the engine was killed by SIGILL: it was built for another CPU")
    if number in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT):
        return Cause("killed", TRANSIENT, "")
    return _find(log) or Cause("", TRANSIENT, last_words(log))


def known_line(log: str) -> str:
    """The last line of a log that a rule knows, '' when there is none."""
    cause = _find(log)
    return cause.words if cause else ""


def _find(log: str) -> Cause | None:
    """The last line that a rule knows, rather one that says something itself; of the rules the first."""
    lines = error_lines(log)
    pointers = [line for line in lines if points_elsewhere(line)]
    telling = [line for line in lines if line not in pointers]
    for line in (*reversed(telling), *reversed(pointers)):
        for name, doomed, pattern in _RULES:
            if pattern.search(line):
                return Cause(name, doomed, line)
    return None
