"""What is right and what is wrong with a machine, an engine and a home: one finding each, with a remedy."""

from llmhost.diagnosis.findings import Check, Status, fail, ok, warn

__all__ = ["Check", "Status", "fail", "ok", "warn"]
