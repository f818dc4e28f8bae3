"""Sizes on the command line."""

from __future__ import annotations

import click
import pytest

from llmhost.cli.bundle import Size


@pytest.mark.parametrize(
    ("written", "size"), [("60M", 60_000_000), ("60MB", 60_000_000), ("1.5g", 1_500_000_000), ("2MiB", 2_097_152)]
)
def test_sizes(written: str, size: int) -> None:
    assert Size().convert(written, None, None) == size


@pytest.mark.parametrize("written", ["", "M", "60 apples", "-5M", "10K", "999999"])
def test_no_sizes(written: str) -> None:
    with pytest.raises(click.BadParameter):
        Size().convert(written, None, None)
