"""Hosts with homes of llmhost. Skipped, with the reason, where there can be no such hosts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.integration.nodes.homes import Homes, make_nodes, some_hosts
from tests.netns import CannotRun, Network


@contextmanager
def _hosts() -> Iterator[Network]:
    try:
        with some_hosts() as made:
            yield made
    except CannotRun as e:
        pytest.skip(str(e))


@pytest.fixture
def network() -> Iterator[Network]:
    with _hosts() as made:
        yield made


@pytest.fixture
def homes(network: Network) -> Homes:
    return Homes(network)


@pytest.fixture(scope="module")
def three() -> Iterator[Homes]:
    """Three nodes a, b, c with a service of three replicas; a was first. Nothing runs yet."""
    with _hosts() as made:
        yield make_nodes(made, "a", "b", "c")
