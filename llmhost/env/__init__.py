"""Builds, verifies and reads engine environments."""

from llmhost.env.progress import Progress, Silent
from llmhost.env.setup import ensure_engine, find_engine

__all__ = ["Progress", "Silent", "ensure_engine", "find_engine"]
