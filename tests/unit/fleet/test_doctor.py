"""What is asked of several nodes, without any: what is looked at lies in the integration tests."""

from __future__ import annotations

from llmhost.diagnosis.nodes import Seen
from llmhost.fleet import doctor


def test_of_another_llmhost_it_is_not_known_which_engine_it_has() -> None:
    checks = doctor._check_versions({"a": Seen("1.0", "0.32.0")}, {"b": Seen("0.9", "")})
    assert [(check.name, check.status) for check in checks] == [("llmhost", "fail"), ("vLLM", "ok")]
    assert checks[1].message == "0.32.0 on a"


def test_only_what_the_plan_refuses_misleads() -> None:
    assert doctor._misleading({"a": "127.0.0.1", "b": "127.0.0.2"}) == {}
    assert doctor._misleading({"a": "10.0.0.1", "b": "127.0.1.1", "c": ""}) == {"b": "127.0.1.1", "c": ""}
