"""What the installed vLLM's own argument parser says, for comparison with what llmhost reads from its source."""

from __future__ import annotations

import json
import subprocess
from typing import Any

PARSER = """
import argparse, json, sys
from vllm.entrypoints.launchers.cli_args import create_parser_for_docs
parser = create_parser_for_docs()
"""
DUMP = """
from vllm.reasoning import ReasoningParserManager
from vllm.tool_parsers import ToolParserManager
flags = {}
for action in parser._actions:
    negatable = isinstance(action, argparse.BooleanOptionalAction)
    names = [o for o in action.option_strings if o.startswith("--") and o != "--help"]
    for name in names[:1] if negatable else names:
        flags[name[2:].replace("-", "_")] = {
            "boolean": negatable or action.nargs == 0,
            "negatable": negatable,
            "multiple": action.nargs in ("+", "*") or (isinstance(action.nargs, int) and action.nargs > 0),
            "repeated": isinstance(action, argparse._AppendAction),
            "optional_value": action.nargs == "?",
        }
print(json.dumps({
    "flags": flags,
    "tool_call_parsers": sorted(ToolParserManager.list_registered()),
    "reasoning_parsers": sorted(ReasoningParserManager.list_registered()),
}))
"""
PARSE = """
read = vars(parser.parse_args(json.loads(sys.argv[1])))
print(json.dumps({key: read[key] for key in json.loads(sys.argv[2])}, default=str))
"""


def parser_facts(python: str) -> dict[str, Any]:
    """Flags (each with its properties) and parser names, from the argparse object of the vLLM of an interpreter."""
    facts: dict[str, Any] = json.loads(_run(python, PARSER + DUMP))
    return facts


def parsed(python: str, argv: tuple[str, ...], keys: tuple[str, ...]) -> dict[str, Any]:
    """What vLLM's parser makes of an argument vector, for some of its keys."""
    values: dict[str, Any] = json.loads(_run(python, PARSER + PARSE, json.dumps(argv), json.dumps(keys)))
    return values


def _run(python: str, code: str, *args: str) -> str:
    done = subprocess.run([python, "-c", code, *args], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]
