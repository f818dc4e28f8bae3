"""Keys, limits, certificates, other hosts that change, under a client at a steady rate: nothing fails or is cut."""

from __future__ import annotations

import pytest

from tests.integration.workflow.changes import OF_GATEWAY, Change, lose_nothing

pytestmark = pytest.mark.integration


@pytest.mark.parametrize("change", OF_GATEWAY, ids=lambda change: change.name)
def test_nothing_is_lost(change: Change) -> None:
    lose_nothing(change)
