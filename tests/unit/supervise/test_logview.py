"""Several logs as one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from llmhost.supervise import logs
from llmhost.supervise.loglines import parse_since
from llmhost.supervise.logview import Selection, view_logs
from tests.unit.supervise.test_loglines import NOW


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    written = {
        "chat-0": ["INFO 01-31 10:00:00 [a] one", "a wrapped line", "ERROR 01-31 10:00:04 [a] five", "Traceback x"],
        "gateway": ["2026-01-31 10:00:02.100 warning gateway: three", "2026-01-31 10:00:01.000 warning gateway: early"],
        "supervisord": ["2026-01-31 10:00:01,500 INFO two"],
    }
    for name, lines in written.items():
        (tmp_path / name).write_text("".join(f"{line}\n" for line in lines))
    return {name: tmp_path / name for name in written}


def shown(files: dict[str, Path], **selection: object) -> list[str]:
    return [line.text.split()[-1] for line in view_logs(files, Selection(**selection))]  # type: ignore[arg-type]


def test_the_order_of_time_and_within_a_program_its_own(files: dict[str, Path]) -> None:
    assert shown(files) == ["one", "line", "two", "three", "early", "five", "x"]
    assert shown(files, lines=1) == ["early", "two", "x"]


def test_what_is_left_out(files: dict[str, Path]) -> None:
    assert shown(files, level="warning") == ["three", "early", "five", "x"]
    assert shown(files, level="error") == ["five", "x"]
    assert shown(files, grep=re.compile("w")) == ["line", "two", "three", "early"]  # "warning" and "wrapped", too
    since = parse_since("2026-01-31 10:00:02", NOW)
    assert shown(files, lines=None, since=since) == ["three", "five", "x"]
    assert shown(files, lines=1, level="warning") == ["early", "x"]


def test_following_goes_on_where_the_tail_ended(files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "POLL_SECONDS", 0)
    steps = iter(["  File y", "INFO 01-31 10:00:09 [a] six", None])

    def until() -> bool:
        step = next(steps)
        if step:
            with files["chat-0"].open("a") as file:
                file.write(f"{step}\n")
        return step is None

    found = [line.text for line in view_logs(files, Selection(0, level="error"), follow=True, until=until)]
    assert found == ["  File y"]  # it belongs to the error before it
