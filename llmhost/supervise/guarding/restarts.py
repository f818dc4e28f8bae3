"""When a failed engine is started again, and when no more: exponential back-off and a circuit that opens."""

from __future__ import annotations

FIRST_DELAY = 1.0
"""Seconds before the first restart."""
LONGEST_DELAY = 300.0
GOOD_SECONDS = 600.0
"""Seconds of being ready after which earlier failures are forgotten."""
UNKNOWN_TRIES = 3
"""Starts of an engine that never became ready and ends for a reason that is not in `causes`."""


class Restarts:
    """Counts the failures in a row of one engine, across lives of the guard."""

    def __init__(self, limit: int, failures: int = 0) -> None:
        self.limit = limit
        """Failures in a row after which the circuit opens: the engine is not started any more."""
        self.failures = failures

    def failed(self, ready_seconds: float = 0.0) -> None:
        """Count a failure after so many seconds of being ready."""
        self.failures = 1 if ready_seconds >= GOOD_SECONDS else self.failures + 1

    def open(self, explained: bool) -> bool:
        """Whether the circuit is open; an unexplained failure before the engine was ever ready opens it sooner."""
        return self.failures >= (self.limit if explained else min(self.limit, UNKNOWN_TRIES))

    @property
    def delay(self) -> float:
        """Seconds until the next start: 1, 2, 4 … 300."""
        return float(min(LONGEST_DELAY, FIRST_DELAY * 2 ** min(max(self.failures - 1, 0), 20)))
