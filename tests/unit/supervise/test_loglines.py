"""Times and levels of log lines, each as the program that writes it really does."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from llmhost.supervise.loglines import Line, describe, parse_since, read_lines

NOW = datetime(2026, 2, 1, 12, 0, 0)


def local(*when: int) -> float:
    return datetime(*when).timestamp()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "time", "level"),
    [
        ("INFO 01-31 23:59:58 [api_server.py:1] Starting", local(2026, 1, 31, 23, 59, 58), "info"),
        ("(EngineCore pid=7) ERROR 01-31 00:00:01 [core.py:9] no", local(2026, 1, 31, 0, 0, 1), "error"),
        ("(APIServer pid=7) WARNING 12-31 00:00:01 [a.py:9] of last year", local(2025, 12, 31, 0, 0, 1), "warning"),
        ("(APIServer pid=7) INFO:     127.0.0.1:1 - \"POST /v1/x HTTP/1.1\" 200 OK", None, "info"),
        ("2026-01-31 13:41:14,032 CRIT Server 'x' running", local(2026, 1, 31, 13, 41, 14) + 0.032, "critical"),
        ("2026-01-31 13:41:14,032 WARN received SIGTERM", local(2026, 1, 31, 13, 41, 14) + 0.032, "warning"),
        ("2026-01-31 13:41:14.500 warning gateway: lds: no", local(2026, 1, 31, 13, 41, 14) + 0.5, "warning"),
        ("2026-01-31 13:41:14 [guard] chat-0: starting", local(2026, 1, 31, 13, 41, 14), None),
        ('{"time":"2026-01-31T13:41:14.250Z","status":200}',
         datetime(2026, 1, 31, 13, 41, 14, 250000, UTC).timestamp(), "info"),
        ('{"time":"2026-01-31T13:41:14.250Z","status":503,"ms":1}',
         datetime(2026, 1, 31, 13, 41, 14, 250000, UTC).timestamp(), "error"),
        ('{"time":"2026-01-31T13:41:14.250Z","status":404}',
         datetime(2026, 1, 31, 13, 41, 14, 250000, UTC).timestamp(), "warning"),
        ('{"some": "json"}', None, None),
        ('{"broken', None, None),
        ("Traceback (most recent call last):", None, "error"),
        ("torch.OutOfMemoryError: CUDA out of memory", None, "error"),
        ("  File \"x.py\", line 1", None, None),
        ("2026-13-77 99:99:99 nonsense", None, None),
        ("INFO 02-30 00:00:00 [x] no such day", None, "info"),
        ("INFO is a word", None, "info"),
        ("", None, None),
    ],
)  # fmt: skip
def test_what_a_line_says(text: str, time: float | None, level: str | None) -> None:
    assert describe(text, NOW) == (pytest.approx(time) if time is not None else None, level)


def test_the_29th_of_february_was_in_a_leap_year() -> None:
    assert describe("INFO 02-29 10:00:00 [x] y", datetime(2025, 1, 1))[0] == local(2024, 2, 29, 10)
    assert describe("INFO 02-29 10:00:00 [x] y", datetime(2028, 3, 1))[0] == local(2028, 2, 29, 10)


def test_what_follows_a_line_belongs_to_it() -> None:
    texts = [
        "before any time", "ERROR 01-31 10:00:00 [a.py:1] it broke", "  a detail", "INFO 01-31 10:00:01 [a.py:1] on",
        "Traceback (most recent call last):", "  File", "2026-01-31 10:00:02 [guard] x: ended",
    ]  # fmt: skip
    lines = list(read_lines("a", texts, NOW))
    assert [line.level for line in lines] == ["info", "error", "error", "info", "error", "error", "info"]
    assert [line.time for line in lines] == [None, *[local(2026, 1, 31, 10)] * 2, *[local(2026, 1, 31, 10, 0, 1)] * 3,
                                             local(2026, 1, 31, 10, 0, 2)]  # fmt: skip
    (after,) = read_lines("a", ["more"], NOW, lines[1])
    assert (after.time, after.level) == (lines[1].time, "error")


def test_as_json() -> None:
    assert Line("a", None, "info", "text").to_dict() == {"time": None, "program": "a", "level": "info", "text": "text"}
    request = Line("access", 0.0, "info", '{"time":"x","status":200}').to_dict()
    assert request["request"] == {"time": "x", "status": 200}
    assert "text" not in request
    assert datetime.fromisoformat(str(request["time"])).timestamp() == 0


@pytest.mark.parametrize(
    ("text", "time"),
    [
        ("90s", NOW.timestamp() - 90), ("10m", NOW.timestamp() - 600), ("1.5h", NOW.timestamp() - 5400),
        ("2d", NOW.timestamp() - 172800), ("9:30", local(2026, 2, 1, 9, 30)), ("11:30", local(2026, 2, 1, 11, 30)),
        ("2026-01-31", local(2026, 1, 31)), ("2026-01-31 13:30", local(2026, 1, 31, 13, 30)),
        ("2026-01-31T13:30:00+00:00", datetime(2026, 1, 31, 13, 30, tzinfo=UTC).timestamp()),
    ],
)  # fmt: skip
def test_since(text: str, time: float) -> None:
    assert parse_since(text, NOW) == time


@pytest.mark.parametrize("text", ["", "yesterday", "10", "25:99", "m"])
def test_no_time(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_since(text, NOW)
