"""The gateway's own OpenAPI, fuzzed: nothing that can be made from it is answered with 5xx, or let in without a key."""

from __future__ import annotations

from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings

from llmhost.gateway.endpoints import ENDPOINTS
from tests.integration.gateway.locked import Locked

pytestmark = pytest.mark.integration

MODEST = settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@pytest.mark.parametrize("known", [True, False])
def test_no_server_error_and_no_way_in(locked: Locked, known: bool) -> None:
    with locked.gateway.client() as client:
        document = client.get("/openapi.json", headers={"x-api-key": locked.secret}).json()
    operations = [found.ok() for found in schemathesis.openapi.from_dict(document).get_all_operations()]
    assert {o.path for o in operations} >= {e.path for e in ENDPOINTS if set(e.served_by) & {"chat", "embed"}}
    for operation in operations:
        _fuzz(locked, operation, known)


def _fuzz(locked: Locked, operation: Any, known: bool) -> None:
    headers = {"x-api-key": locked.secret if known else "sk-wrong"}
    answered = []

    @MODEST
    @given(case=operation.as_strategy())
    def run(case: Any) -> None:
        before = locked.reached
        answer = case.call(base_url=f"http://127.0.0.1:{locked.gateway.port}", headers=headers)
        answered.append(answer.status_code)
        assert answer.status_code < 500, answer.text
        if not known and case.path != "/health":
            assert answer.status_code == 401
            assert locked.reached == before

    run()
    assert answered
