"""Hosts with homes of llmhost. Skipped, with the reason, where there can be no such hosts."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import netns


@pytest.fixture
def network() -> Iterator[netns.Network]:
    place = Path(tempfile.mkdtemp(prefix="lhn", dir="/tmp"))
    try:
        with netns.network(place) as made:
            yield made
    except netns.CannotRun as e:
        pytest.skip(str(e))
    finally:
        shutil.rmtree(place)
