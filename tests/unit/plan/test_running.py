"""Plans for machines on which engines run already: who keeps what."""

from __future__ import annotations

from dataclasses import replace

import pytest

from llmhost import config
from llmhost.errors import PlanError
from llmhost.facts import ModelFacts
from llmhost.plan import Plan
from llmhost.plan.build import make_plan
from llmhost.plan.cpu import missing_bytes
from llmhost.plan.running import NOTHING, Running, beside, program_names, running
from tests.samples import GIB, machine, model

CHAT = "services: {chat: {model: /m}}"
TWO = "services: {chat: {model: /m}, embedding: {model: /e}}"
THREE = "services: {chat: {model: /m, replicas: 3}}"
MODELS = {"chat": model(), "embedding": model("embed")}


def plan(text: str, there: Running = NOTHING, models: dict[str, ModelFacts] = MODELS, **host: int) -> Plan:
    return make_plan(config.parse(text), machine(**host), models, there)


def all_of(given: Plan) -> Running:
    return running(given, [p.name for p in given.programs])


def cores(given: Plan) -> dict[str, tuple[int, ...]]:
    return {p.name: p.cores for p in given.programs}


def test_without_what_runs_all_is_shared_out_evenly() -> None:
    assert cores(plan(TWO)) == {"chat-0": (0, 1, 2, 3), "embedding-0": (4, 5, 6, 7)}
    assert plan(TWO, running(plan(CHAT), [])) == plan(TWO)
    assert plan(TWO, running(None, ["chat-0"])) == plan(TWO)


def test_a_new_service_leaves_the_others_as_they_are() -> None:
    alone = plan(CHAT)
    both = plan(TWO, all_of(alone))
    assert both.services[0] == alone.services[0]
    new = both.services[1].replicas[0]
    assert (new.cores, new.threads) == ((), 4)
    assert (new.env["VLLM_CPU_OMP_THREADS_BIND"], new.env["OMP_NUM_THREADS"]) == ("nobind", "4")
    assert plan(TWO, all_of(both)) == both


def test_a_service_that_goes_leaves_its_cores_to_the_next_one() -> None:
    both = plan(TWO)
    alone = plan(CHAT, all_of(both))
    assert alone.services == both.services[:1]
    assert cores(plan(TWO, all_of(alone))) == cores(both)


def test_replicas_that_run_keep_their_names_and_shares() -> None:
    three = plan(THREE)
    two = plan(THREE.replace("3", "2"), all_of(three))
    assert two.programs == three.programs[:2]
    assert plan(THREE, all_of(two)).programs[:2] == two.programs


def test_unbound_engines_keep_the_number_of_their_threads() -> None:
    few = plan(THREE, cores=2)
    assert {(p.cores, p.threads) for p in few.programs} == {((), 1)}
    one = plan(CHAT, running(few, ["chat-0"]), cores=2)
    assert one.programs == few.programs[:1]


def test_a_share_that_does_not_do_any_more_is_given_out_anew() -> None:
    before = plan("services: {chat: {model: /m, args: {max_model_len: 1024}}}")
    longer = "args: {max_model_len: 65536}, env: {VLLM_ALLOW_LONG_MAX_MODEL_LEN: '1'}"
    after = plan(f"services: {{chat: {{model: /m, {longer}}}}}", all_of(before))
    assert after.programs[0].kv_cache_bytes >= 65536 * model().kv_bytes_per_token
    heavier = plan(CHAT, all_of(plan(CHAT)), {"chat": model(weights_gib=9)})
    assert heavier.programs[0].memory_bytes > 9 * GIB
    assert cores(plan(CHAT, all_of(plan(CHAT)), cores=2)) == {"chat-0": (0, 1)}


def test_when_memory_is_short_all_is_shared_out_anew() -> None:
    alone = plan(CHAT, memory_gib=8)
    both = plan(TWO, all_of(alone), memory_gib=8)
    assert both == plan(TWO, memory_gib=8)
    assert both.services[0] != alone.services[0]


def test_a_surge_takes_names_that_are_free_and_the_cores_of_those_that_leave() -> None:
    both = plan(TWO)
    there = replace(all_of(both), surge=frozenset({"chat"}))
    next_one = plan(TWO, there)
    assert cores(next_one) == {"chat-1": (0, 1, 2, 3), "embedding-0": (4, 5, 6, 7)}
    assert next_one.services[1] == both.services[1]
    assert plan(TWO, all_of(next_one)) == next_one, "an `up` after it changes nothing"
    assert "chat-0" in cores(plan(TWO, replace(all_of(next_one), surge=frozenset({"chat"}))))


def test_a_surge_gets_the_memory_that_is_left_or_is_refused() -> None:
    before = plan(CHAT, memory_gib=10)
    there = replace(all_of(before), surge=frozenset({"chat"}))
    second = plan(CHAT, there, memory_gib=10).programs[0]
    assert second.kv_cache_bytes < before.programs[0].kv_cache_bytes
    assert before.programs[0].memory_bytes + second.memory_bytes <= 9 * GIB
    with pytest.raises(
        PlanError, match=r"no room for a second chat beside what runs: \d\.\d GiB of memory are missing"
    ):
        plan(CHAT, replace(all_of(plan(CHAT, memory_gib=6)), surge=frozenset({"chat"})), memory_gib=6)


def test_names_of_the_next_engines() -> None:
    there = all_of(plan(THREE))
    assert program_names("chat", 2, there) == ("chat-0", "chat-1")
    assert program_names("chat", 4, there) == ("chat-0", "chat-1", "chat-2", "chat-3")
    assert program_names("chat", 2, replace(there, surge=frozenset({"chat"}))) == ("chat-3", "chat-4")
    assert program_names("cha", 1, there) == ("cha-0",)
    gap = running(plan(THREE), ["chat-0", "chat-2"])
    assert program_names("chat", 3, gap) == ("chat-0", "chat-1", "chat-2")


def test_the_same_service_beside_itself() -> None:
    given = plan(CHAT)
    home = machine().home
    moved = beside(given.services[0], replace(all_of(given), surge=frozenset({"chat"})), home)
    (old,), (new,) = given.services[0].replicas, moved.replicas
    assert (new.name, new.socket) == ("chat-1", "/srv/llmhost/run/chat-1.sock")
    assert new.argv == tuple(new.socket if word == old.socket else word for word in old.argv)
    assert new.env == {**old.env, "LLMHOST_PROGRAM": "/srv/llmhost:chat-1"}
    assert (new.cores, new.memory_bytes) == (old.cores, old.memory_bytes)


def test_missing_memory() -> None:
    programs = plan(THREE, memory_gib=20).programs
    assert missing_bytes(programs, machine(memory_gib=20).host) == 0
    assert missing_bytes((*programs, *programs), machine(memory_gib=20).host) > 0
