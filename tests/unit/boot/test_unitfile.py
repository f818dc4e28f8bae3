"""The text of the unit: quoting, and what depends on the machine."""

from __future__ import annotations

import shlex
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmhost.boot.unitfile import UnitPlan, quote_command, quote_words, render_unit, specifiers
from llmhost.errors import RenderError

PLAN = UnitPlan(
    name="llmhost.service", scope="system", home="/srv/llm", account="llmhost", python="/opt/llmhost/bin/python",
    supervisord_script="/opt/llmhost/supervisord.py",
    supervisord_conf="/srv/llm/conf/supervisord.conf", start_seconds=480, stop_seconds=190,
    mounts=("/srv/llm", "/opt/llmhost"), writable=("/srv/llm", "-/home/a/.cache"), private_tmp=True,
    needs_network=False,
)  # fmt: skip


def setting(plan: UnitPlan, key: str) -> list[str]:
    lines = (line.partition("=") for line in render_unit(plan).splitlines() if not line.startswith("#"))
    return [value for name, _, value in lines if name == key]


def test_a_unit_of_the_system() -> None:
    assert setting(PLAN, "User") == ["llmhost"]
    assert setting(PLAN, "WantedBy") == ["multi-user.target"]
    (start,) = setting(PLAN, "ExecStart")
    assert shlex.split(start)[-3:] == ["-n", "-c", "/srv/llm/conf/supervisord.conf"]
    assert setting(PLAN, "TimeoutStopSec") == ["190"]
    assert setting(PLAN, "Restart") == ["on-failure"]
    assert setting(PLAN, "KillMode") == ["mixed"]
    assert setting(PLAN, "DeviceAllow")[0] == "char-nvidia* rw"
    assert setting(PLAN, "PrivateTmp") == ["yes"]
    assert setting(PLAN, "RestartSteps") == []
    assert "graphical" not in render_unit(PLAN)


def test_a_unit_of_a_user_has_nothing_that_only_the_system_can_do() -> None:
    plan = replace(PLAN, scope="user", account="alice")
    assert setting(plan, "WantedBy") == ["default.target"]
    for key in ("User", "DevicePolicy", "ProtectSystem", "CapabilityBoundingSet"):
        assert setting(plan, key) == []


def test_what_the_machine_has_decides() -> None:
    plan = replace(
        PLAN, modprobe=("/usr/bin/nvidia-modprobe",), growing_pauses=True, private_tmp=False, needs_network=True
    )
    assert setting(plan, "ExecStartPre")[0] == "-+/usr/bin/nvidia-modprobe -u -c 0"
    assert setting(plan, "RestartSteps") == ["8"]
    assert setting(plan, "PrivateTmp") == []
    assert "network-online.target" in setting(plan, "Wants")
    assert "network-online.target" not in setting(PLAN, "Wants")


@pytest.mark.parametrize(
    ("word", "written"),
    [
        ("/plain/path-1.0_x:y", "/plain/path-1.0_x:y"),
        ("/with space", '"/with space"'),
        ("/50%", "/50%%"),
        ('/a "b"', r'"/a \"b\""'),
        ("/back\\slash x", r'"/back\\slash x"'),
        ("/it's", '"/it\'s"'),
        ("/模型;#", '"/模型;#"'),
    ],
)
def test_words(word: str, written: str) -> None:
    assert quote_words([word]) == written


def test_a_dollar_is_no_variable_in_a_command() -> None:
    assert quote_command(["/a/$HOME"]) == "/a/$$HOME"
    assert quote_words(["/a/$HOME"]) == "/a/$HOME"


@pytest.mark.parametrize("text", ["a\nb", " a", "a ", "a\\", "a\x00", "a\x1b"])
def test_what_a_unit_cannot_hold_is_refused(text: str) -> None:
    with pytest.raises(RenderError, match="cannot hold"):
        specifiers(text)


@given(
    st.lists(st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=1), min_size=1, max_size=4)
)
def test_words_stay_as_many_as_they_were(words: list[str]) -> None:
    words = [word for word in words if not word.endswith("\\")] or ["x"]
    quoted = [w.replace("%%", "%") for w in shlex.split(quote_words(words), posix=True)]
    assert quoted == [word.replace("%%", "%") for word in words]
