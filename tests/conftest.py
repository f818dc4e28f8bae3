"""For all tests."""

from __future__ import annotations

import signal

from hypothesis import settings

# The same examples on every machine, and no time asserted: a slow machine is no failure.
settings.register_profile("llmhost", derandomize=True, deadline=None)
settings.load_profile("llmhost")

# A shell that starts the tests in its background has them, and every command that they run, ignore Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)
