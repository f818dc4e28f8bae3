"""Hosts with homes of llmhost. Skipped, with the reason, where there can be no such hosts."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import netns
from tests.wheels import wheelhouse


@pytest.fixture
def network() -> Iterator[netns.Network]:
    place = Path(tempfile.mkdtemp(prefix="lhn", dir="/tmp"))
    try:
        netns.require()
        pip = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheelhouse()), "PIP_CONFIG_FILE": os.devnull}
        with netns.network(place, pip) as made:
            yield made
    except netns.CannotRun as e:
        pytest.skip(str(e))
    finally:
        shutil.rmtree(place)
