"""Large bodies with several services: the first route that is found then is an answer of the gateway's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integration.gateway.running import Gateway
from tests.integration.gateway.stub import Stub
from tests.unit.gateway.plans import make_service

pytestmark = pytest.mark.integration

MIB = 2**20


@pytest.mark.parametrize(("mebibytes", "status"), [(0.5, 200), (1.5, 200), (7, 200), (9, 413)])
def test_a_body_up_to_the_limit_reaches_one_of_several_services(home: Path, mebibytes: float, status: int) -> None:
    services = [make_service(home, name) for name in ("one", "two", "three")]
    with Gateway(home, max_body_bytes=8 * MIB) as gateway, Stub(Path(services[1].replicas[0].socket), "two"):
        gateway.start(*services)
        gateway.wait_healthy(two=1)
        with gateway.client() as client:
            body = {"text": "x" * int(mebibytes * MIB), "model": "two"}
            answer = client.post("/v1/chat/completions", json=body)
    assert answer.status_code == status, answer.text[:200]
