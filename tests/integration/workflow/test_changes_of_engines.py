"""Engines that come, go and change, under a client at a steady rate: nothing fails, nothing is cut."""

from __future__ import annotations

import pytest

from tests.integration.workflow.changes import OF_ENGINES, Change, lose_nothing

pytestmark = pytest.mark.integration


@pytest.mark.parametrize("change", OF_ENGINES, ids=lambda change: change.name)
def test_nothing_is_lost(change: Change) -> None:
    lose_nothing(change)
