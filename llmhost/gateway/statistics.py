"""Which requests Envoy counts apart besides those of each service: those of each API key, as virtual clusters.

They count what is forwarded to an engine, or would be if one were ready; what the gateway refuses by itself (401, 403,
429 of a key) is not among it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from llmhost.gateway.access import USER
from llmhost.gateway.envoy import Data
from llmhost.plan.types import KeyPlan

MARK = "~"
"""Not allowed in the name of a key. It stands before the name, so that no key is called like what Envoy counts beside
them ("other"), and in the place of each dot, which separates the parts of a name of Envoy's statistics.
`llmhost.metrics.page` has the same and turns it back."""


def virtual_clusters(keys: Iterable[KeyPlan]) -> list[Data]:
    """One for each name: a key that was rotated and its predecessor are counted together."""
    return [_of_key(name) for name in dict.fromkeys(key.name for key in keys)]


def _of_key(name: str) -> Data:
    whose = {"safe_regex": {"regex": re.escape(name) + r"\.[0-9]+"}}
    return {"name": MARK + name.replace(".", MARK), "headers": [{"name": USER, "string_match": whose}]}
