"""Prometheus' text format, written, merged and read back."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from llmhost.metrics.text import Page, label_value, samples

HISTOGRAM = """# HELP t seconds to the first token
# TYPE t histogram
t_bucket{le="1"} 1
t_bucket{le="+Inf"} 2
t_sum 3.5
t_count 2
# TYPE n_total counter
n_total{a="x",} 7
n_created{a="x"} 1.7e9
"""


def merged(*texts: tuple[str, dict[str, str]]) -> str:
    page = Page()
    for text, labels in texts:
        page.merge(text, lambda _, labels=labels: labels)  # type: ignore[misc]
    return page.render()


def test_metrics_of_two_programs_stand_together_under_one_head() -> None:
    page = merged((HISTOGRAM, {"replica": "a-0"}), (HISTOGRAM, {"replica": "b-0"}))
    assert page.splitlines() == [
        "# HELP t seconds to the first token",
        "# TYPE t histogram",
        *(
            line
            for r in ("a-0", "b-0")
            for line in (
                f't_bucket{{replica="{r}",le="1"}} 1',
                f't_bucket{{replica="{r}",le="+Inf"}} 2',
                f't_sum{{replica="{r}"}} 3.5',
                f't_count{{replica="{r}"}} 2',
            )
        ),
        "# TYPE n_total counter",
        'n_total{replica="a-0",a="x"} 7',
        'n_total{replica="b-0",a="x"} 7',
    ]


def test_a_label_that_is_there_already_is_renamed_and_not_doubled() -> None:
    text = r'm{service="its own",other="service=\"no\""} 1' + "\n"
    assert merged((text, {"service": "chat"})) == (
        r'm{service="chat",exported_service="its own",other="service=\"no\""} 1' + "\n"
    )


def test_broken_lines_are_left_out_and_the_others_stay() -> None:
    text = 'a 1\nb{x="1} 2\nc\n= 3\nd{x="\\"}"} 4 1700000000000\ne one\n'
    assert [name for name, _, _ in samples(merged((text, {"r": "1"})))] == ["a", "d"]


def test_label_may_leave_a_sample_out() -> None:
    page = Page()
    assert page.merge('a{c="x"} 1\na{c="y"} 2\n', lambda text: None if label_value(text, "c") == "x" else {}) == 1
    assert page.render() == 'a{c="y"} 2\n'


def test_numbers_are_written_short_and_exactly() -> None:
    page = Page()
    for number, value in enumerate((1, True, 0.1, 2.0, 1e300, 1234567890123)):
        page.add(f"m{number}", "gauge", "", value)
    assert [line.split()[1] for line in page.render().splitlines() if not line.startswith("#")] == [
        "1", "1", "0.1", "2", "1e+300", "1234567890123",
    ]  # fmt: skip


@given(st.dictionaries(st.from_regex(r"[a-z]{1,5}", fullmatch=True), st.text(st.characters(codec="utf-8")), max_size=4))
def test_any_label_value_comes_back(labels: dict[str, str]) -> None:
    page = Page()
    page.add("m", "gauge", "told", 1, labels)
    again = Page()
    again.merge(page.render(), lambda _: {"zzzzzz": "mine"})
    assert list(samples(again.render())) == [("m", {"zzzzzz": "mine", **labels}, 1.0)]


@given(st.text(alphabet='ab_{}="\\,# TYPEHL1.e+\n\r\t\x0b\u2028', max_size=200))
def test_whatever_a_program_says_the_page_can_be_read_back(text: str) -> None:
    page = Page()
    taken = page.merge(text, lambda _: {"service": "s"})
    assert len([s for s in samples(page.render()) if s[1]["service"] == "s"]) == taken
