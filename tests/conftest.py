"""For all tests."""

from __future__ import annotations

from hypothesis import settings

# The same examples on every machine, and no time asserted: a slow machine is no failure.
settings.register_profile("llmhost", derandomize=True, deadline=None)
settings.load_profile("llmhost")
