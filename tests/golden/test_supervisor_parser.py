"""What is rendered, read back by supervisord's own parser."""

from __future__ import annotations

import shlex
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from supervisor.options import ServerOptions

from llmhost import config, writer
from llmhost.errors import PlanError, RenderError
from llmhost.homedir import claim
from llmhost.paths import Home
from llmhost.plan import Plan
from llmhost.plan.build import make_plan
from llmhost.render import render
from llmhost.supervisor_format import quote_command
from tests.golden.test_tree import CASES, machine_with_all
from tests.samples import machine


@pytest.fixture
def short() -> Iterator[Path]:
    """Sockets below it have paths that are short enough, whatever pytest's own directory is called."""
    with tempfile.TemporaryDirectory(prefix="lh", dir="/tmp") as directory:
        yield Path(directory)


def parsed(plan: Plan) -> Any:
    home = Home(Path(plan.home))
    claim(home)
    writer.apply(home, writer.changes(home, render(plan)))
    options = ServerOptions()
    options.realize(["-c", str(home.supervisord_conf)])
    return options


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("folder", ["home", "my 家#1;"])
def test_every_program_comes_back_as_planned(name: str, folder: str, short: Path) -> None:
    text, models, cores = CASES[name]
    plan = make_plan(config.parse(text), machine_with_all(cores, str(short / folder)), models)
    options = parsed(plan)
    programs = {g.name: g.process_configs[0] for g in options.process_group_configs}
    assert set(programs) == {"gateway", "metrics", *(p.name for p in plan.programs)}
    for program in plan.programs:
        words = shlex.split(programs[program.name].command)
        assert tuple(words[words.index("--") + 1 :]) == program.argv
        assert programs[program.name].stdout_logfile == str(Home(Path(plan.home)).log_file(program.name))
        assert programs[program.name].exitcodes == [0, 78]
    assert options.serverurl == f"unix://{plan.home}/run/supervisor.sock"


@pytest.mark.parametrize("folder", ["a ; b", "a #b", "a\nb", "50%"])
def test_a_home_that_the_parser_would_change_is_refused(folder: str, short: Path) -> None:
    with pytest.raises(RenderError, match="supervisord cannot hold"):
        render(make_plan(config.parse(""), machine(root=f"{short}/{folder}/h"), {}))


def test_a_newline_in_an_argument_is_refused_with_its_value() -> None:
    text = 'services: {chat: {model: /m, args: {tool_call_parser: hermes, hf_overrides: "a\\nb"}}}'
    _, models, _ = CASES["odd"]
    with pytest.raises(PlanError, match=r"services\.chat\.args\.hf_overrides: the value contains a newline: 'a\\nb'"):
        make_plan(config.parse(text), machine(), models)
    with pytest.raises(RenderError, match="contains a newline"):
        quote_command(("--model", "/a\nb"))
