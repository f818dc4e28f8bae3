"""Sharing out GPUs: nothing is over-committed, the same input gives the same plan, more memory never places less."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmhost import config
from llmhost.config import Service
from llmhost.errors import PlanError
from llmhost.facts import CacheFacts, Gpu, ModelFacts, ShapeFacts, VllmFlag
from llmhost.plan import stored
from llmhost.plan.build import make_plan
from llmhost.plan.gpu import Shares, gpus_have_room, share_gpus
from llmhost.plan.memory import loaded_bytes, rank_need, read_asked
from llmhost.plan.remedies import require_gpus
from llmhost.plan.running import Running
from llmhost.plan.search import Misfit
from llmhost.plan.shapes import GpuShare
from tests.samples import machine

GIB = 2**30
MIB = 2**20


def chat(parameters: float, layers: int, heads: int, kv: int, hidden: int, wide: int, **more: Any) -> ModelFacts:
    per_token = 2 * layers * kv * 128 * 2
    return ModelFacts(
        "/m", "Qwen2ForCausalLM", "chat", "for the test", int(parameters * 2), per_token, 32768,
        parameters=int(parameters), cache=CacheFacts(full_bytes=per_token),
        shape=ShapeFacts(layers, heads, kv, hidden, wide, 152064), **more,
    )  # fmt: skip


QWEN7 = chat(7.6156e9, 28, 28, 4, 3584, 18944)
QWEN72 = chat(72.7e9, 80, 64, 8, 8192, 29568)
ODD = replace(QWEN72, shape=replace(QWEN72.shape, heads=63, kv_heads=9))
SMALL = chat(0.5e9, 24, 14, 2, 896, 4864)
BERT = ModelFacts(
    "/e", "BertModel", "embed", "for the test", 335141888 * 4, 0, 512, parameters=335141888, dtype="float32",
    shape=ShapeFacts(24, 16, 16, 1024, 4096, 30522),
)  # fmt: skip
XLMR = replace(
    BERT,
    kind="rerank",
    weight_bytes=278044417 * 4,
    parameters=278044417,
    shape=ShapeFacts(12, 12, 12, 768, 3072, 250002),
)


def gpus(count: int, gib: float, free: float | None = None) -> tuple[Gpu, ...]:
    return tuple(Gpu(i, "GPU", int(gib * GIB), int((gib if free is None else free) * GIB)) for i in range(count))


def services(text: str) -> dict[str, Service]:
    return dict(config.parse(f"services: {{{text}}}").services)


def placed(text: str, on: tuple[Gpu, ...], **models: ModelFacts) -> Shares:
    found = share_gpus(services(text), on, models)
    assert not isinstance(found, Misfit), found
    return found


def one(shares: Shares, name: str) -> GpuShare:
    (share,) = shares[name].values()
    return share


def test_seven_billion_as_measured() -> None:
    """An H200 with vLLM 0.26: 75,988 MiB with 54.26 GiB of KV cache; weights 14.29, activations 1.13, graphs 0.89."""
    service = services("c: {model: /m, args: {max_model_len: 8192}}")["c"]
    need = rank_need(QWEN7, "chat", read_asked(service, QWEN7), 1, 1, int(140.4 * GIB))
    assert need.weights == pytest.approx(14.29 * GIB, rel=0.01)
    assert need.activations == pytest.approx(1.13 * GIB, rel=0.02)
    assert need.graphs == pytest.approx(0.89 * GIB, rel=0.02)
    assert need.fixed + 54.26 * GIB == pytest.approx(75_988 * MIB, rel=0.01)
    assert need.kv_least == 8192 * 57344


@pytest.mark.parametrize(("model", "measured"), [(BERT, 1744), (XLMR, 1829)])
def test_encoders_as_measured(model: ModelFacts, measured: int) -> None:
    """Cold starts, with weights that are read (docs/gpu.md); warm ones take 1,712 and 1,513 MiB."""
    service = services("e: {model: /e}")["e"]
    need = rank_need(model, model.kind, read_asked(service, model), 1, 1, int(140.4 * GIB))
    assert need.least == pytest.approx(measured * MIB, rel=0.05)
    assert need.kv_least == 0


@pytest.mark.parametrize(
    ("layers", "kv", "published"), [(80, 8, 327_680), (126, 8, 516_096)], ids=["Qwen2.5-72B", "Llama-3.1-405B"]
)
def test_cache_as_published(layers: int, kv: int, published: int) -> None:
    """Bytes per token in table 1 of the paper "Insights into DeepSeek-V3"."""
    assert chat(1e9, layers, 64, kv, 8192, 1).cache.of(1) == published


def test_weights_in_memory() -> None:
    assert loaded_bytes(BERT) == BERT.parameters * 2
    assert loaded_bytes(BERT, wide=True) == BERT.parameters * 4
    assert loaded_bytes(replace(QWEN7, quantization="gptq 4-bit", weight_bytes=5 * GIB)) == 5 * GIB


def test_three_services_on_one_gpu() -> None:
    shares = placed("c: {model: /m}, e: {model: /e}, r: {model: /r}", gpus(1, 80), c=QWEN7, e=BERT, r=XLMR)
    assert sum(one(shares, n).gpu_memory_bytes for n in "cer") <= 80 * GIB
    assert one(shares, "c").sequences > 8
    assert one(shares, "e").arguments == {"gpu_memory_utilization": "0.022"}
    assert set(one(shares, "c").arguments) == {"gpu_memory_utilization", "kv_cache_memory_bytes"}


def test_idle_gpus_are_used() -> None:
    shares = placed("c: {model: /m}, e: {model: /e}, r: {model: /r}", gpus(4, 80), c=QWEN7, e=BERT, r=XLMR)
    assert [one(shares, n).gpus for n in "cer"] == [(0,), (2,), (1,)]


@pytest.mark.parametrize(
    ("model", "on", "args", "split"),
    [
        (QWEN7, gpus(4, 24), "{max_model_len: 8192}", (1, 1)),
        (QWEN72, gpus(8, 80), "{max_model_len: 8192}", (2, 1)),
        (QWEN72, gpus(8, 24), "{max_model_len: 4096}", (8, 1)),
        (ODD, gpus(8, 24), "{max_model_len: 4096}", (1, 8)),
    ],
)  # fmt: skip
def test_fewest_gpus_that_are_enough(model: ModelFacts, on: tuple[Gpu, ...], args: str, split: tuple[int, int]) -> None:
    share = one(placed(f"c: {{model: /m, args: {args}}}", on, c=model), "c")
    assert (share.tensor, share.pipeline) == split
    assert len(share.gpus) == split[0] * split[1]


def test_what_is_written_is_done() -> None:
    on = gpus(4, 80)
    assert one(placed("c: {model: /m, gpus: [3, 1]}", on, c=QWEN7), "c").gpus == (3, 1)
    two = one(placed("c: {model: /m, gpus: 2}", on, c=QWEN7), "c")
    assert (two.tensor, two.arguments["tensor_parallel_size"]) == (2, "2")
    assert two.environment["CUDA_VISIBLE_DEVICES"] == "0,1"
    pipe = one(placed("c: {model: /m, args: {pipeline_parallel_size: 2}}", on, c=QWEN7), "c")
    assert (pipe.tensor, pipe.pipeline) == (1, 2)
    fixed = one(placed("c: {model: /m, args: {kv_cache_memory_bytes: 1073741824}}", on, c=QWEN7), "c")
    assert fixed.kv_cache_bytes == GIB


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("c: {model: /m, gpus: [0, 7]}", r"services.c.gpus: there is no GPU 7"),
        ("c: {model: /m, gpus: 5}", r"services.c.gpus: 5 GPUs are asked for, there are 4"),
        ("c: {model: /m, gpus: 2, args: {tensor_parallel_size: 4}}", r"2 GPUs, but its args split the model over 4"),
        ("c: {model: /m, args: {tensor_parallel_size: 8}}", r"ask for 8 GPUs, there are 4"),
    ],
)
def test_what_cannot_be(text: str, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        share_gpus(services(text), gpus(4, 80), {"c": QWEN7})


def test_data_parallel_ranks_have_gpus_of_their_own() -> None:
    one_copy = one(placed("c: {model: /m}", gpus(1, 80), c=QWEN7), "c")
    two = one(placed("c: {model: /m, args: {data_parallel_size: 2}}", gpus(4, 80), c=QWEN7), "c")
    assert (two.gpus, two.tensor, two.data) == ((0, 1), 1, 2)
    assert two.environment["CUDA_VISIBLE_DEVICES"] == "0,1"
    assert two.gpu_memory_bytes == one_copy.gpu_memory_bytes
    assert two.sequences == pytest.approx(2 * one_copy.sequences)
    all_three = "tensor_parallel_size: 4, pipeline_parallel_size: 2, data-parallel-size: 2"
    large = one(placed(f"c: {{model: /m, gpus: 16, args: {{{all_three}}}}}", gpus(16, 80), c=QWEN72), "c")
    assert (len(large.gpus), large.tensor, large.pipeline, large.data) == (16, 4, 2, 2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gpus: 3, args: {data_parallel_size: 2}", "3 GPUs cannot be divided among 2"),
        ("args: {data_parallel_size: 8}", "ask for 8 GPUs, there are 4"),
        ("gpus: 4, args: {data_parallel_size: 4, tensor_parallel_size: 2}", r"over 8 \(2 x 4\)"),
    ],
)
def test_data_parallel_ranks_without_gpus(text: str, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        share_gpus(services(f"c: {{model: /m, {text}}}"), gpus(4, 80), {"c": QWEN7})


@pytest.mark.parametrize(("name", "model"), [("c", QWEN7), ("e", BERT)])
def test_a_written_share_is_what_it_gets(name: str, model: ModelFacts) -> None:
    text = f"{name}: {{model: /m, args: {{gpu_memory_utilization: 0.5}}}}"
    share = one(placed(text, gpus(1, 80), **{name: model}), name)
    assert share.gpu_memory_bytes == pytest.approx(40 * GIB, abs=2 * MIB)
    assert share.gpu_memory_bytes <= 40 * GIB


def test_a_written_share_that_is_too_small() -> None:
    with pytest.raises(PlanError, match=r"services\.c\.args\.gpu_memory_utilization: 0\.1 is .* GiB less") as e:
        require_gpus(services("c: {model: /m, args: {gpu_memory_utilization: 0.1}}"), gpus(1, 80), {"c": QWEN7})
    assert "leave it out" in e.value.hint


def test_another_written_share_is_planned_anew() -> None:
    text = "c: {model: /m, args: {gpu_memory_utilization: %s}}"
    flags = {**machine().engine.flags, "gpu_memory_utilization": VllmFlag("gpu_memory_utilization", boolean=False)}
    engine = replace(machine().engine, device="cuda", flags=flags)
    there = replace(machine(), gpus=gpus(1, 80), engine=engine)
    before = make_plan(config.parse(f"services: {{{text % 0.5}}}"), there, {"c": QWEN7})
    again = share_gpus(services(text % 0.3), gpus(1, 80), {"c": QWEN7}, Running(before.programs))
    assert not isinstance(again, Misfit)
    assert one(again, "c").gpu_memory_bytes <= 0.3 * 80 * GIB


def test_what_others_hold_is_not_shared_out() -> None:
    assert isinstance(share_gpus(services("c: {model: /m}"), gpus(1, 80, free=15), {"c": QWEN7}), Misfit)


def test_misfit_says_how_much_is_missing_and_what_would_fit() -> None:
    with pytest.raises(PlanError, match=r"services\.e: \d+\.\d GiB of GPU memory are missing") as e:
        require_gpus(services("c: {model: /m}, e: {model: /e}"), gpus(1, 21), {"c": QWEN7, "e": BERT})
    assert "max_model_len: " in e.value.hint
    assert "under services.c.args" in e.value.hint
    assert "use 2 GPUs of 21 GiB" in e.value.hint
    context = int(e.value.hint.partition("max_model_len: ")[2].split()[0])
    for length, fits in ((context, True), (context + 1024, False)):
        shorter = services(f"c: {{model: /m, args: {{max_model_len: {length}}}}}, e: {{model: /e}}")
        assert isinstance(share_gpus(shorter, gpus(1, 21), {"c": QWEN7, "e": BERT}), Misfit) != fits


def test_the_nearest_remedy_is_named() -> None:
    """A chat model that would fit with little less context, beside small ones that have little to give."""
    small = "s: {model: /s, concurrency: 4, args: {max_model_len: 8192}}"
    wanted = services(f"{small}, c: {{model: /m, args: {{max-model-len: 32768}}}}")
    on = gpus(1, 24.4)
    with pytest.raises(PlanError) as e:
        require_gpus(wanted, on, {"c": QWEN7, "s": SMALL})
    length = int(e.value.hint.partition("max_model_len: ")[2].split()[0])
    assert "under services.c.args (it is 32768)" in e.value.hint
    assert 16384 < length < 32768


def test_lower_concurrency_is_a_remedy() -> None:
    with pytest.raises(PlanError) as e:
        require_gpus(services("c: {model: /m, concurrency: 64}"), gpus(1, 80), {"c": QWEN7})
    at_once = int(e.value.hint.partition("concurrency: ")[2].split()[0])
    assert f"write concurrency: {at_once} under services.c (it is 64)" in e.value.hint
    placed(f"c: {{model: /m, concurrency: {at_once}}}", gpus(1, 80), c=QWEN7)


def test_what_is_missing_counts_everybody() -> None:
    """The first one that finds no place is not the last one that has none."""
    found = share_gpus(
        services("a: {model: /m}, b: {model: /m}, c: {model: /m}"), gpus(1, 24), dict.fromkeys("abc", QWEN7)
    )
    assert isinstance(found, Misfit)
    assert found.missing >= 2 * found.need.least - 24 * GIB + found.need.least


def test_a_narrow_cache_holds_twice_as_much() -> None:
    def sequences(args: str) -> float:
        return one(placed(f"c: {{model: /m, args: {args}}}", gpus(1, 40), c=QWEN7), "c").sequences

    assert sequences("{kv_cache_dtype: fp8}") == pytest.approx(2 * sequences("{}"), rel=0.01)


def test_concurrency_is_asked_for() -> None:
    least = one(placed("c: {model: /m, concurrency: 10}", gpus(2, 80), c=QWEN7), "c").need.kv_least
    assert least == 10 * 32768 * 57344
    assert isinstance(share_gpus(services("c: {model: /m, concurrency: 100}"), gpus(1, 80), {"c": QWEN7}), Misfit)


def test_what_runs_stays_where_it_is() -> None:
    here = replace(machine(), engine=replace(machine().engine, device="cuda"), gpus=gpus(2, 80))
    text = "services: {c: {model: /m, gpus: [0], args: {kv_cache_dtype: auto}}}"
    flags = {**here.engine.flags, "kv_cache_dtype": replace(here.engine.flags["runner"], name="kv_cache_dtype")}
    here = replace(here, engine=replace(here.engine, flags=flags))
    before = make_plan(config.parse(text), here, {"c": QWEN7})
    more = text.replace("services: {", "services: {e: {model: /e}, ")
    after = make_plan(config.parse(more), here, {"c": QWEN7, "e": BERT}, Running(before.programs))
    assert after.service("c") == before.service("c")
    assert after.services[0].replicas[0].gpus == (1,)
    (program,) = before.programs
    assert "CUDA_VISIBLE_DEVICES" in program.env
    assert json.loads(json.dumps(stored.to_dict(before)))["services"][0]["replicas"][0]["gpu_memory_bytes"] > 70 * GIB
    assert gpus_have_room(after.programs, here.gpus)
    assert not gpus_have_room((*after.programs, program), here.gpus)


def test_nothing_restarts_for_what_a_driver_counts_beside_the_processes() -> None:
    """With engines running a little less is free than was shared out (9 MiB on an H200); that is in the reserve."""
    here = replace(machine(), engine=replace(machine().engine, device="cuda"), gpus=gpus(1, 141))
    wanted = config.parse("services: {c: {model: /m}, e: {model: /e}, r: {model: /r}}")
    models = {"c": QWEN7, "e": BERT, "r": XLMR}
    before = make_plan(wanted, here, models)
    (gpu,) = here.gpus
    there = replace(here, gpus=(replace(gpu, free=gpu.free - 9 * MIB),))
    started = Running(tuple(p for p in before.programs if p.name == "c-0"))
    assert make_plan(wanted, there, models, started).service("c") == before.service("c")
    much_less = replace(here, gpus=(replace(gpu, free=gpu.free - 9 * GIB),))
    assert make_plan(wanted, much_less, models, started).service("c") != before.service("c")


MODELS = st.sampled_from([QWEN7, QWEN72, SMALL, BERT, XLMR])
SOME = st.lists(st.tuples(MODELS, st.integers(1, 2)), min_size=1, max_size=4)
MACHINE = st.lists(st.sampled_from([8, 16, 24, 48, 80, 141]), min_size=1, max_size=4)


def ask(wanted: list[tuple[ModelFacts, int]], sizes: list[int]) -> tuple[Shares | Misfit, tuple[Gpu, ...]]:
    on = tuple(Gpu(i, "GPU", gib * GIB, gib * GIB) for i, gib in enumerate(sizes))
    args = "{max_model_len: 4096}"
    text = ", ".join(f"s{i}: {{model: /m, replicas: {n}, args: {args}}}" for i, (m, n) in enumerate(wanted))
    return share_gpus(services(text), on, {f"s{i}": m for i, (m, _) in enumerate(wanted)}), on


@given(SOME, MACHINE)
def test_nothing_is_over_committed(wanted: list[tuple[ModelFacts, int]], sizes: list[int]) -> None:
    found, on = ask(wanted, sizes)
    if isinstance(found, Misfit):
        assert found.missing > 0
        return
    shares = [share for own in found.values() for share in own.values()]
    assert sum(map(len, found.values())) == sum(n for _, n in wanted)
    for gpu in on:
        assert sum(s.gpu_memory_bytes for s in shares if gpu.index in s.gpus) <= gpu.free
    for share in shares:
        assert len(set(share.gpus)) == share.tensor * share.pipeline
        assert share.kv_cache_bytes >= share.need.kv_least
    assert ask(wanted, sizes)[0] == found


@given(SOME, MACHINE, st.integers(0, 3))
def test_more_memory_never_places_less(wanted: list[tuple[ModelFacts, int]], sizes: list[int], which: int) -> None:
    if isinstance(ask(wanted, sizes)[0], Misfit):
        return
    larger = [size + (40 if i == which else 0) for i, size in enumerate(sizes)]
    # A GPU from 70 GiB on reads larger batches, which takes more of it: vLLM's own default.
    if [size >= 70 for size in larger] == [size >= 70 for size in sizes]:
        assert not isinstance(ask(wanted, larger)[0], Misfit)
    assert not isinstance(ask(wanted, [*sizes, sizes[0]])[0], Misfit)
