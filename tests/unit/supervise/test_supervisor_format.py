"""What is written into supervisord's files, read back by supervisor's own parser."""

from __future__ import annotations

import shlex
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmhost.errors import RenderError
from llmhost.supervisor_format import quote_command, quote_value

AWKWARD = st.one_of(
    st.text(st.sampled_from(" \t;#%'\"\\=$(){}[]*~!&|<>,:a中é\u2028\x0b\x0c\x1c\x85")),
    st.text(st.characters(exclude_characters="\n\r\0", exclude_categories=["Cs"])),
)


def parsed(value: str) -> list[str]:
    """The argument vector that supervisord would run for ``command=value``."""
    with tempfile.TemporaryDirectory() as directory:
        (group,) = read_back(Path(directory), f"[program:chat-0]\ncommand={value}").process_group_configs
        return shlex.split(group.process_configs[0].command)


def read_back(directory: Path, text: str) -> Any:
    from supervisor.options import ServerOptions

    conf = directory / "supervisord.conf"
    conf.write_text(f"[supervisord]\nnodaemon=true\n{text}\n", encoding="utf-8")
    options = ServerOptions()
    options.realize(["-c", str(conf)])
    return options


@given(st.lists(AWKWARD, min_size=1, max_size=4))
def test_every_argument_comes_back(words: list[str]) -> None:
    argv = ["/usr/bin/python", *words]
    assert parsed(quote_command(argv)) == argv


@pytest.mark.parametrize("word", ["a ; b", "a # b", " ;", "#", "100%", "%(here)s", "'\" '", "中文 ；", "", "\t;x"])
def test_known_traps(word: str) -> None:
    assert parsed(quote_command(["/bin/x", word, "end"])) == ["/bin/x", word, "end"]


@pytest.mark.parametrize("word", ["a\nb", "a\rb", "a\0b"])
def test_what_no_quoting_carries_is_refused(word: str) -> None:
    with pytest.raises(RenderError, match="argument of the engine contains"):
        quote_command(["/bin/x", word])


@pytest.mark.parametrize("name", ["plain", "a b", "中文", "it's", 'say "x"', "a;b", "a#b", "$HOME"])
def test_paths_come_back_wherever_they_stand(tmp_path: Path, name: str) -> None:
    home = tmp_path / name
    home.mkdir()
    at = {key: quote_value(str(home / key)) for key in ("sock", "log", "pid", "out")}
    options = read_back(
        tmp_path,
        f"logfile={at['log']}\npidfile={at['pid']}\ndirectory={quote_value(str(home))}\nchildlogdir={quote_value(str(home))}\n"
        f"[unix_http_server]\nfile={at['sock']}\n[program:chat-0]\ncommand=/bin/true\nstdout_logfile={at['out']}",
    )
    assert options.logfile == str(home / "log")
    assert options.pidfile == str(home / "pid")
    assert (options.directory, options.childlogdir) == (str(home), str(home))
    assert options.server_configs[0]["file"] == str(home / "sock")
    assert options.process_group_configs[0].process_configs[0].stdout_logfile == str(home / "out")


@pytest.mark.parametrize(
    "text", ["/100%", "/%(here)s", "/a ;b", "/a\t#b", " /a", "/a ", "/a\nb", "/a\rb", "/a\0b", "/a\x1bb"]
)
def test_a_value_that_would_be_cut_is_refused(text: str) -> None:
    with pytest.raises(RenderError):
        quote_value(text)
