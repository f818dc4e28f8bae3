"""What follows from what was seen of several nodes."""

from __future__ import annotations

from llmhost.diagnosis.nodes import (
    Clock,
    Seen,
    Way,
    check_addresses,
    check_clocks,
    check_files,
    check_versions,
    check_ways,
)


def statuses(checks: object) -> list[tuple[str, str]]:
    return [(check.name, check.status) for check in checks]  # type: ignore[attr-defined]


def test_versions_that_differ_fail_and_say_where() -> None:
    same = {name: Seen("1.0", "0.33.0", "eth0") for name in "ab"}
    assert statuses(check_versions(same)) == [("llmhost", "ok"), ("vLLM", "ok")]
    other = {**same, "c": Seen("0.9", "", "eth0")}
    llmhost, none, vllm = check_versions(other)
    assert (llmhost.status, none.status, vllm.status) == ("fail", "warn", "ok")
    assert "1.0 on a, b; 0.9 on c" in llmhost.message
    assert "c" in none.message


def test_a_clock_is_wrong_only_by_what_is_certain() -> None:
    clocks = {"a": Clock(0.9, 0.01), "b": Clock(-1.5, 0.8), "c": Clock(-1.5, 0.1), "d": Clock(400, 5)}
    assert [status for _, status in statuses(check_clocks(clocks))] == ["ok", "ok", "warn", "fail"]
    assert "ahead of" in next(iter(check_clocks(clocks))).message
    assert "behind" in list(check_clocks(clocks))[1].message


def test_addresses_that_mislead_are_found() -> None:
    addresses = {"a": "10.0.0.1", "b": "gpu-b"}
    seen = {"a": Seen("1", "2", "eth0", {"b": "127.0.1.1"}), "b": Seen("1", "2", "", {})}
    assert statuses(check_addresses(seen, addresses)) == [("interface", "ok"), ("name", "fail"), ("interface", "warn")]
    told = [check.message for check in check_addresses(seen, addresses)]
    assert told[1] == "gpu-b, the address of b, means 127.0.1.1, the machine itself on a"
    unknown = {"a": Seen("1", "2", "eth0", {"b": ""})}
    assert "means nothing on a" in list(check_addresses(unknown, addresses))[1].message


def test_files_that_differ_are_named() -> None:
    first, second = check_files({"a": [], "b": ["llmhost.yaml", "keys.json", "nodes/a.json", "nodes/c.json"]})
    assert first.status == "ok"
    assert second.message == "b has other files than this node: llmhost.yaml, keys.json, nodes/a.json and 1 more"
    assert "node sync" in second.remedy


def test_ways_that_are_closed_or_slow() -> None:
    ways = [
        Way("a", "b", "10.0.0.2", {8443: "", 20480: ""}, 0.0001, 1e9),
        Way("b", "a", "10.0.0.1", {8443: "", 20480: "no answer"}, 0.0001, 1e9),
        Way("a", "c", "10.0.0.3", {8443: ""}, 0.01, 1e9),
        Way("c", "a", "10.0.0.1", {8443: ""}, 0.0001, 1e6),
        Way("c", "b", "10.0.0.2", {8443: ""}, None, None),
    ]
    found = list(check_ways(ways))
    assert [(check.name, check.status) for check in found] == [
        ("network", "ok"), ("ports", "fail"), ("network", "ok"), ("network", "warn"), ("network", "warn"),
        ("network", "fail"),
    ]  # fmt: skip
    assert "b does not reach a (10.0.0.1) on port 20480 (no answer)" in found[1].message
    assert all(check.remedy for check in found if check.status != "ok")
