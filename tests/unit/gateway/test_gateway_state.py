"""When a gateway counts as one that serves what it was given."""

from __future__ import annotations

from dataclasses import replace

import pytest

from llmhost.probe.gateway import GatewayState

VERSIONS = {"cds": "1", "lds": "2"}
PORTS = {"gateway": 8000, "port-chat": 1283}
STATE = GatewayState(live=True, versions=VERSIONS, listeners=PORTS)


def test_everything_is_in_force() -> None:
    assert STATE.serves(VERSIONS, PORTS)
    assert STATE.serves(VERSIONS)


@pytest.mark.parametrize(
    "state",
    [
        replace(STATE, live=False),
        replace(STATE, versions=VERSIONS | {"cds": "0"}),
        replace(STATE, warming=1),
        replace(STATE, errors=("cannot bind",)),
        replace(STATE, listeners={"gateway": 8000}),
        replace(STATE, listeners=PORTS | {"port-chat": 1282}),
    ],
    ids=["not live", "old clusters", "clusters that warm", "a port that is taken", "a port to come", "another port"],
)
def test_something_is_not_in_force_yet(state: GatewayState) -> None:
    assert not state.serves(VERSIONS, PORTS)


def test_clusters_that_warm_matter_to_who_waits_for_clusters_only() -> None:
    warming = replace(STATE, warming=1)
    assert warming.knows({"lds": "2"})
    assert not warming.knows({"cds": "1"})
