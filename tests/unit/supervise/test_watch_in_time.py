"""The hang watch against an engine and a clock that are played: when it judges, and what it asks for."""

from __future__ import annotations

import contextlib
import types
from collections.abc import Callable
from typing import Any, cast

import pytest

from llmhost.supervise.guarding import watch
from llmhost.supervise.guarding.children import Children
from llmhost.supervise.guarding.probe import Engine
from llmhost.supervise.guarding.spec import Spec
from llmhost.supervise.guarding.watch import Hung, Watch, longest

HANG_TIMEOUT = 60.0
OWN_WORK = 3
"""That `Load.work` grows by with a request of the guard: one of the prompt, one generated, one answered."""


class Over(Exception):
    """The time that is played is over."""


class Played:
    """An engine at whose end nobody is: it answers, or hangs from a moment on; waiting moves the clock."""

    def __init__(self, until: float) -> None:
        self.now = 0.0
        self.until = until
        self.hangs_at = float("inf")
        self.dead_at = float("inf")
        """From then on /metrics are not answered either."""
        self.answered_at: Callable[[float], float] = lambda _: 0.0
        """How many requests of others were answered until a moment."""
        self.filled_at: Callable[[float], float] = lambda _: 0.0
        """How much of the KV cache was in use at a moment."""
        self.requests = 0
        self.page_seconds = 0.0
        self.own = 0
        self.asked: list[float] = []
        self.glances = 0
        self.last_tokens = 2
        self.last_answer = ""

    def pause(self, seconds: float | None, _: tuple[int, ...] = ()) -> list[int]:
        assert seconds is not None
        self.now += seconds
        if self.now > self.until:
            raise Over
        return []

    def ask(self, _: bytes, deadline: float) -> bytes:
        self.glances += 1
        if self.now >= self.dead_at or self.page_seconds > deadline - self.now:
            self.pause(deadline - self.now)
            return b""
        self.pause(self.page_seconds)
        now = min(self.now, self.hangs_at)
        work, filled = self.answered_at(now) + OWN_WORK * self.own, self.filled_at(now)
        page = (
            f"running {float(self.requests)}\nvllm:generation_tokens_total {work}\nvllm:kv_cache_usage_perc {filled}\n"
        )
        return f"vllm:num_requests_{page}".encode()

    def works(self, deadline: float) -> bool:
        self.asked.append(self.now)
        if self.now < self.hangs_at:
            self.own += 1
            return True
        self.pause(deadline - self.now)
        return False


def play(engine: Played, monkeypatch: pytest.MonkeyPatch, **spec: Any) -> list[tuple[str | None, bool]]:
    """What the watch says until the time is over or it raises Hung."""
    monkeypatch.setattr(watch, "time", types.SimpleNamespace(monotonic=lambda: engine.now))
    health = types.SimpleNamespace(timeout=None)
    given = {"hang_timeout": HANG_TIMEOUT, "socket": b"/s", "is_vllm": True, "gpus": [0], "health": health, **spec}
    said: list[tuple[str | None, bool]] = []
    nobody = cast(Children, types.SimpleNamespace(engine=-1))
    watching = Watch(
        cast(Spec, types.SimpleNamespace(**given)),
        nobody,
        cast(Engine, engine),
        lambda words, lasting: said.append((words, lasting)),
    )
    with contextlib.suppress(Over):
        watching.run()
    return said


@pytest.mark.parametrize("requests", [0, 1, 100])
@pytest.mark.parametrize("server", [True, False], ids=["server alive", "server stopped"])
@pytest.mark.parametrize("every", [0.05, 4.0, 14.0, 1e9], ids=["busy", "some", "few", "none"])
def test_it_is_found_out_in_time_whenever_it_hangs(
    monkeypatch: pytest.MonkeyPatch, requests: int, server: bool, every: float
) -> None:
    for tenths in range(0, 400, 13):
        engine = Played(until=1000)
        engine.requests, engine.hangs_at = requests, 60 + tenths / 10
        engine.answered_at = lambda now: now // every
        engine.dead_at = float("inf") if server else engine.hangs_at
        with pytest.raises(Hung, match="3 times in a row"):
            play(engine, monkeypatch)
        assert engine.now - engine.hangs_at <= longest(HANG_TIMEOUT)


def test_an_idle_engine_is_asked_every_quarter(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Played(until=3600)
    assert play(engine, monkeypatch) == []
    assert len(engine.asked) == 3600 / 15
    assert engine.glances <= 3600 / 5 + len(engine.asked)


def test_one_that_serves_others_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Played(until=3600)
    engine.answered_at = lambda now: now // 5
    assert play(engine, monkeypatch) == []
    assert engine.asked == []


def test_one_that_does_not_count_is_asked_as_often_and_read_no_oftener(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Played(until=3600)
    monkeypatch.setattr(watch, "read_load", lambda _: None)
    assert play(engine, monkeypatch) == []
    assert len(engine.asked) == engine.glances == 3600 / 15


def test_one_that_is_late_and_works_is_never_taken_for_hung(monkeypatch: pytest.MonkeyPatch) -> None:
    """It generates a token every half minute, and our request waits behind all others for ever."""
    engine = Played(until=7200)
    engine.requests, engine.hangs_at = 64, 0
    monkeypatch.setattr(engine, "works", lambda deadline: bool(engine.pause(deadline - engine.now)))
    engine.hangs_at, engine.answered_at = 1e9, lambda now: now // 30
    said = play(engine, monkeypatch)
    assert not any(lasting for _, lasting in said)


@pytest.mark.parametrize("requests", [0, 1, 2])
@pytest.mark.parametrize(("cores", "gpus", "hung"), [(1.0, [], False), (0.0, [], True), (1.0, [0], True)])
def test_a_long_prompt_on_the_cpu_is_computed_for_minutes(
    monkeypatch: pytest.MonkeyPatch, requests: int, cores: float, gpus: list[int], hung: bool
) -> None:
    """Nothing is counted meanwhile, in its first step not even the prompt; processor time shows that it works."""
    engine = Played(until=700)
    engine.requests, engine.hangs_at = requests, 60
    monkeypatch.setattr(watch, "cpu_seconds", lambda _: engine.now * cores)
    if hung:
        with pytest.raises(Hung):
            play(engine, monkeypatch, gpus=gpus)
    else:
        said = play(engine, monkeypatch, gpus=gpus)
        assert "(1 of 120)" in str(said[0][0])
        assert [lasting for _, lasting in said[:4]] == [False, False, True, True]


def test_a_long_prompt_on_a_gpu_fills_the_cache_while_nothing_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten minutes of it, a step every eight seconds, and our request waits behind it; then it hangs in the middle."""
    engine = Played(until=2000)
    engine.requests = 2
    monkeypatch.setattr(engine, "works", lambda deadline: bool(engine.pause(deadline - engine.now)))
    engine.filled_at = lambda now: now // 8 * 0.01
    engine.hangs_at = 600
    with pytest.raises(Hung):
        play(engine, monkeypatch)
    assert 600 < engine.now <= 600 + longest(HANG_TIMEOUT)


@pytest.mark.parametrize("stalls", [4.0, 20.0])
def test_a_server_that_stalls_after_an_answer_is_given_the_quiet_time_first(
    monkeypatch: pytest.MonkeyPatch, stalls: float
) -> None:
    engine = Played(until=60 + stalls)
    engine.answered_at, engine.dead_at = lambda now: now // 1, 60
    assert bool(play(engine, monkeypatch)) is (stalls > watch.quiet(HANG_TIMEOUT))


def test_a_kernel_that_is_compiled_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Played(until=300)
    engine.requests, engine.hangs_at = 1, 60
    monkeypatch.setattr(watch, "descendants", lambda _: [7] if engine.now < 200 else [])
    monkeypatch.setattr(watch, "title", lambda _: "cicc")
    monkeypatch.setattr(watch.Watch, "_vital", lambda _: {})
    with pytest.raises(Hung):
        play(engine, monkeypatch)
    assert 200 < engine.now < 200 + longest(HANG_TIMEOUT)


def test_a_miss_in_between_does_not_end_one_that_computed_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes as many in a row without computing as for any engine."""
    engine = Played(until=300)
    engine.requests, engine.hangs_at = 2, 60
    monkeypatch.setattr(watch, "cpu_seconds", lambda _: min(engine.now, 200.0) + max(0.0, engine.now - 208))
    said = play(engine, monkeypatch, gpus=[])
    assert any("of 120" not in str(words) for words, _ in said)
