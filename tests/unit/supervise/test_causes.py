"""Each rule of `causes` with an excerpt of a log of vLLM: what made an engine end, and whether it is started again.

Most excerpts are of vLLM 0.32 on a CPU that was really given the mistake (paths are replaced); those of GPUs are put
together from its source and from reports. Directory: engine_logs/.
"""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from llmhost.supervise.guarding.causes import RULES, classify, known_line

LOGS = Path(__file__).parent / "engine_logs"
EXITED, KILLED = 1 << 8, int(signal.SIGKILL)

EXPECTED = {
    # log: (rule, doomed, what the line of `status` holds)
    "flag": ("flag", True, "unrecognized arguments: --no-such-flag"),
    "flag-value": ("flag-value", True, "argument --max-model-len: invalid"),
    "model": ("model", True, "'/nowhere/model'"),
    "model-config": ("model", True, "Invalid repository ID or local directory specified: '/srv/models/noconf'"),
    "model-hub": ("model", True, "LocalEntryNotFoundError: Cannot find an appropriate cached snapshot"),
    "config": ("config", True, "/srv/models/brokenconf/config.json' is not a valid JSON file"),
    "weights": ("weights", True, "Cannot find any model weights with `/srv/models/noweights`"),
    "weights-broken": ("weights-broken", True, "incomplete metadata, file not fully covered"),
    "architecture": ("architecture", True, "Model architectures ['FooForCausalLM'] are not supported"),
    "tool-parser": ("tool-parser", True, "invalid tool call parser: nope"),
    "reasoning-parser": ("reasoning-parser", True, "Reasoning parser 'nope' not found"),
    "quantization": ("quantization", True, "Unknown quantization method: nonsense"),
    "context": ("context", True, "User-specified max_model_len (10000000) is greater"),
    "parallel": ("parallel", True, "must be divisible by tensor parallel size (3)"),
    "dtype": ("dtype", True, "Bfloat16 is only supported on GPUs"),
    "kv-cache": ("kv-cache", True, "No available memory for the cache blocks"),
    "kv-cache-one": ("kv-cache", True, "To serve at least one request"),
    "template": ("template", True, "/nowhere.jinja) appears path-like, but doesn't exist"),
    "mistake": ("mistake", True, "IndexError: list index out of range"),
    "gpu-memory": ("gpu-memory", False, "Free memory on device cuda:0 (3.22/24.0 GiB)"),
    "cpu-memory": ("cpu-memory", False, "Available memory on node 0"),
    "gpu-oom": ("gpu-oom", False, "CUDA out of memory"),
    "cuda": ("cuda", False, "an illegal memory access was encountered"),
    "driver": ("driver", False, "Failed to infer device type"),
    "nccl": ("nccl", False, "unhandled system error"),
    "part-killed": ("part-killed", False, "{'EngineCore': -9}"),
    "engine-dead": ("engine-dead", False, "EngineDeadError"),
    "worker-killed": ("engine-dead", False, "RuntimeError: Executor failed."),
    "disk-full": ("disk-full", False, "No space left on device"),
    "unknown": ("", False, "RuntimeError: start (0) + length (512) exceeds dimension size (256)."),
}


def log(name: str) -> str:
    return (LOGS / f"{name}.log").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", EXPECTED)
def test_what_a_log_says(name: str) -> None:
    rule, doomed, words = EXPECTED[name]
    cause = classify(EXITED, log(name))
    assert (cause.rule, cause.doomed) == (rule, doomed)
    assert words in cause.words
    assert cause.known == bool(rule)
    assert len(cause.words.splitlines()) == 1


def test_every_rule_and_every_excerpt_is_tested() -> None:
    tested = {rule for rule, _, _ in EXPECTED.values()} - {""}
    assert {name for name, _, _ in RULES} - tested == {"settings"}  # tested below
    assert {path.stem for path in LOGS.iterdir()} == set(EXPECTED)


def test_settings_that_no_special_rule_knows() -> None:
    lines = "ValidationError: 1 validation error for CacheConfig\nblock_size\n  Input should be 8, 16 or 32\n"
    cause = classify(EXITED, lines)
    assert (cause.rule, cause.doomed) == ("settings", True)
    assert cause.words == "ValidationError: 1 validation error for CacheConfig: block_size"


def test_signals() -> None:
    """An engine that was killed says nothing of it; what it said before is of something else."""
    assert classify(KILLED, "ValueError: of a request\n").doomed is False
    assert classify(KILLED, "").known
    assert classify(int(signal.SIGILL), "").doomed
    cause = classify(int(signal.SIGSEGV), "Fatal Python error: Segmentation fault\n")
    assert (cause.known, cause.doomed, cause.words) == (False, False, "Fatal Python error: Segmentation fault")


def test_an_engine_that_ends_with_status_0_before_it_is_ready() -> None:
    cause = classify(0, "INFO: bye\n")
    assert (cause.known, cause.doomed, cause.words) == (False, False, "INFO: bye")


def test_of_an_engine_that_was_ready_only_known_lines_count() -> None:
    assert known_line("INFO: served\nRuntimeError: of one request\n") == ""
    assert "CUDA out of memory" in known_line(log("gpu-oom"))
