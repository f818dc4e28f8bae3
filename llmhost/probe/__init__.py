"""Reads facts: this machine, a model directory, a running service."""
