"""What is written into supervisord's files, read back by supervisor's own parser."""

from __future__ import annotations

import shlex
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmhost.errors import RenderError
from llmhost.supervisor_format import quote_command

AWKWARD = st.one_of(
    st.text(st.sampled_from(" \t;#%'\"\\=$(){}[]*~!&|<>,:a中é\u2028\x0b\x0c\x1c\x85")),
    st.text(st.characters(exclude_characters="\n\r\0", exclude_categories=["Cs"])),
)


def parsed(value: str) -> list[str]:
    """The argument vector that supervisord would run for ``command=value``."""
    from supervisor.options import ServerOptions

    with tempfile.TemporaryDirectory() as directory:
        conf = Path(directory) / "supervisord.conf"
        conf.write_text(f"[supervisord]\nnodaemon=true\n[program:chat-0]\ncommand={value}\n", encoding="utf-8")
        options = ServerOptions()
        options.realize(["-c", str(conf)])
        (group,) = options.process_group_configs
        return shlex.split(group.process_configs[0].command)


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
