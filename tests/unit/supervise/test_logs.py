"""Reading logs: tails, rotation, and whatever bytes an engine prints."""

from __future__ import annotations

import os
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmhost.supervise import logs
from llmhost.supervise.logs import CUT, MAX_LINE, clean, read_logs


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "POLL_SECONDS", 0)


def tail(path: Path, lines: int | None = 10) -> list[str]:
    return [line for batch in read_logs({"a": path}, lines=lines) for line in batch["a"]]


def follow(path: Path, steps: list[Callable[[], object]], lines: int | None = 0) -> list[str]:
    """What a follower sees when these things happen one after the other while it looks."""
    todo = iter(steps)

    def until() -> bool:
        step = next(todo, None)
        if step is None:
            return True
        step()
        return False

    return [line for b in read_logs({"a": path}, lines=lines, follow=True, until=until) for line in b["a"]]


def append(path: Path, text: str) -> Callable[[], object]:
    def write() -> None:
        with path.open("a") as file:
            file.write(text)

    return write


def rotate(path: Path, backups: int = 3) -> Callable[[], object]:
    """As supervisord does: name.2 -> name.3, name.1 -> name.2, name -> name.1, a new name."""

    def move() -> None:
        for n in range(backups - 1, 0, -1):
            if (old := Path(f"{path}.{n}")).exists():
                old.replace(f"{path}.{n + 1}")
        path.replace(f"{path}.1")
        path.touch()

    return move


@pytest.mark.parametrize(
    ("text", "lines", "seen"),
    [
        ("", 3, []),
        ("a\nb\nc\n", 2, ["b", "c"]),
        ("a\nb\nc", 2, ["b", "c"]),
        ("a\nb\nc\n", 3, ["a", "b", "c"]),
        ("a\nb\nc\n", 99, ["a", "b", "c"]),
        ("a\nb\n", 0, []),
        ("a\n\n\n", 2, ["", ""]),
        ("\n", 5, [""]),
        ("a\nb\n", None, ["a", "b"]),
    ],
)
def test_the_last_lines(tmp_path: Path, text: str, lines: int | None, seen: list[str]) -> None:
    path = tmp_path / "log"
    path.write_text(text)
    assert tail(path, lines) == seen


@given(st.lists(st.text(st.sampled_from("ab"), max_size=9), max_size=30), st.integers(1, 35), st.integers(1, 40))
def test_the_last_lines_do_not_depend_on_blocks(written: list[str], lines: int, block: int) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as directory, pytest.MonkeyPatch.context() as patch:
        patch.setattr(logs, "BLOCK", block)
        path = Path(directory) / "log"
        path.write_text("".join(f"{line}\n" for line in written))
        assert tail(path, lines) == written[-lines:]


def test_the_last_lines_reach_into_rotated_files(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("e\nf\n")
    Path(f"{path}.1").write_text("c\nd\n")
    Path(f"{path}.2").write_text("a\nb\n")
    assert tail(path, 3) == ["d", "e", "f"]
    assert tail(path, 5) == ["b", "c", "d", "e", "f"]
    assert tail(path, None) == ["a", "b", "c", "d", "e", "f"]


def test_a_file_that_does_not_exist_yet(tmp_path: Path) -> None:
    path = tmp_path / "log"
    assert tail(path) == []
    assert follow(path, [lambda: None, append(path, "first\n"), append(path, "second\n")]) == ["first", "second"]


def test_a_line_is_shown_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "log"
    assert follow(path, [append(path, "one"), lambda: None, append(path, " line\ntwo")]) == ["one line", "two"]


def test_following_across_rotation(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("old\n")
    steps = [
        append(path, "a\n"),
        append(path, "b\n"),
        rotate(path),
        append(path, "c\n"),
        rotate(path),
        append(path, "d\n"),
    ]
    assert follow(path, steps) == ["a", "b", "c", "d"]


def test_several_rotations_between_two_looks(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("old\n")

    def busy() -> None:
        for letter in "abc":
            append(path, f"{letter}\n")()
            rotate(path)()
        append(path, "d\n")()

    assert follow(path, [busy]) == ["a", "b", "c", "d"]


def test_rotation_in_the_middle_of_a_line(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.touch()
    assert follow(path, [append(path, "be"), rotate(path), append(path, "gun\nnext\n")]) == ["begun", "next"]


def test_truncation(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("long enough\n")
    steps = [append(path, "a\n"), lambda: os.truncate(path, 0), append(path, "b\n")]
    assert follow(path, steps) == ["a", "b"]


def test_a_removed_file_that_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("old\n")
    assert follow(path, [append(path, "a\n"), path.unlink, lambda: None, append(path, "b\n")]) == ["a", "b"]


def test_several_files(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_text("1\n")
    two.write_text("2\n")
    batches = [{name: list(lines) for name, lines in batch.items()} for batch in read_logs({"a": one, "b": two})]
    assert batches == [{"a": ["1"], "b": ["2"]}, {"a": [], "b": []}]


def test_rotated_parts_from_before_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("new\n")
    for n, when in ((1, 2000), (2, 1000)):
        Path(f"{path}.{n}").write_text(f"{when}\n")
        os.utime(f"{path}.{n}", (when, when))
    os.utime(path, (500, 500))  # the file itself is read whatever its time is
    assert [line for b in read_logs({"a": path}, lines=None, since=1500) for line in b["a"]] == ["2000", "new"]


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        (b"plain \xe4\xb8\xad\xe6\x96\x87\ttab", "plain 中文\ttab"),
        (b"\xff\xfe broken \xe4\xb8", "\ufffd\ufffd broken \ufffd"),
        (b"\x1b[31mred\x1b[0m \x1b[2J\x1b[1;1H", "red "),
        (b"\x1b]0;title\x07\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\", "link"),
        (b"\x1bPdevice\x1b\\rest \x1bc\x1b(B", "rest "),
        (b"nul\x00 bell\x07 back\x08 del\x7f", "nul bell back del"),
        ("c1 \x9b31mred \x85".encode(), "c1 red "),
        (b" 10%\r 50%\r100% done", "100% done"),
        (b"windows\r", "windows"),
        (b"\x1b", ""),
    ],
)
def test_no_control_of_the_terminal_gets_through(line: bytes, shown: str) -> None:
    assert clean(line) == shown


def test_colours_on_request() -> None:
    assert clean(b"\x1b[31mred\x1b[0m", ansi=True) == "\x1b[31mred\x1b[0m"


@given(st.binary(max_size=200))
def test_any_bytes(data: bytes) -> None:
    text = clean(data.replace(b"\n", b""))
    assert all(c == "\t" or c.isprintable() or ord(c) > 0x9F for c in text)


def test_endless_lines_are_cut_and_memory_stays_small(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with path.open("wb") as file:
        for _ in range(200):
            file.write(b"x" * 100_000)
        file.write(b"\nshort\n")
    tracemalloc.start()
    try:
        assert tail(path, 1) == ["short"]
        first, second = tail(path, 2)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (first, second) == ("x" * MAX_LINE + CUT, "short")
    assert peak < 2_000_000  # of 20 MB


def test_closing_the_generator_closes_the_files(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("a\nb\n")
    found: Iterator[dict[str, Iterator[str]]] = read_logs({"a": path}, follow=True)
    assert next(next(found)["a"]) == "a"
    found.close()  # type: ignore[attr-defined]  # a file left open would be a ResourceWarning, and so an error
